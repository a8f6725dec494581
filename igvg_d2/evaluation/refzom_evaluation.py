"""Ref-ZOM: one target, several, or none."""

from typing import Any, Dict, Sequence

import numpy as np

from .boxes import RELEASED_SCORE_THRESHOLD, no_target_decisions
from .build import GROUNDING_EVALUATOR_REGISTRY
from .frames import GroundTruth
from .grounding_evaluation import (
    GroundingEvaluator,
    Record,
    Results,
    pixel_columns,
)
from .metrics import iou_ratio, mean_percent, overall_iou, precision_at
from .protocols import Protocol

_PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


@GROUNDING_EVALUATOR_REGISTRY.register()
class RefZOMEvaluator(GroundingEvaluator):
    """Mask metrics of Ref-ZOM by the rules of its authors (DMMI).

    Read from a model output: "mask" bool (height, width), "no_target" bool or 0-d tensor, and for
    released rules "candidates" Instances with scores.

    Results: "refzom" {mIoU, oIoU, Pr@0.5 ... Pr@0.9} over sentences with a target, Acc over those
    without: a mask without any pixel is right, under released rules no box score above 0.7.
    "Acc_flag" asks the no-target flag instead. In percent, NaN where there is no such sentence.
    """

    def settings(self, protocol: Protocol) -> Dict[str, Any]:
        """See `GroundingEvaluator.settings`."""
        if protocol.rules == "released":
            return {"no_target": f"no box score > {RELEASED_SCORE_THRESHOLD}"}
        return {"no_target": "mask without a pixel"}

    def make_record(self, target: GroundTruth, output: Dict[str, Any]) -> Record:
        """See `GroundingEvaluator.make_record`; adds pred_no_target and num_confident."""
        record = super().make_record(target, output)
        return {**record, **no_target_decisions(output, target.sample, self.protocols)}

    def summarize_protocol(self, records: Sequence[Record], protocol: Protocol) -> Results:
        """See the class for the keys."""
        targeted = np.array([r["num_targets"] > 0 for r in records], bool)
        intersections, unions, areas, _ = pixel_columns(records, protocol.name)
        intersections, unions = intersections[targeted], unions[targeted]
        ious = iou_ratio(intersections, unions)
        results = {"mIoU": mean_percent(ious), "oIoU": overall_iou(intersections, unions)}
        results.update({f"Pr@{t}": precision_at(ious, t) for t in _PRECISION_THRESHOLDS})
        rejected = areas == 0
        if protocol.rules == "released":
            rejected = np.array([r["num_confident"] == 0 for r in records], bool)
        flags = np.array([r["pred_no_target"] for r in records], bool)
        results["Acc"] = mean_percent(rejected[~targeted])
        results["Acc_flag"] = mean_percent(flags[~targeted])
        return {"refzom": results}

    def ratios(self, records: Sequence[Record], protocol: Protocol) -> Dict[str, Any]:
        """mIoU, oIoU and Acc by mask or boxes."""
        targeted = np.array([r["num_targets"] > 0 for r in records], bool)
        intersections, unions, areas, _ = pixel_columns(records, protocol.name)
        rejected = areas == 0
        if protocol.rules == "released":
            rejected = np.array([r["num_confident"] == 0 for r in records], bool)
        return {
            "mIoU": (iou_ratio(intersections, unions) * targeted, targeted),
            "oIoU": (intersections * targeted, unions * targeted),
            "Acc": (rejected & ~targeted, ~targeted),
        }
