"""Ref-ZOM: one target, several, or none."""

from typing import Any, Dict, Sequence

from .build import GROUNDING_EVALUATOR_REGISTRY
from .grounding_evaluation import GroundingEvaluator, GroundTruth, Record, Results, output_field
from .metrics import iou_ratio, mean_percent, overall_iou, precision_at

_PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


@GROUNDING_EVALUATOR_REGISTRY.register()
class RefZOMEvaluator(GroundingEvaluator):
    """Mask metrics of Ref-ZOM by the rules of its authors (DMMI), at the original resolution.

    Read from a model output: "mask" bool (height, width) and "no_target" bool or 0-d tensor.

    Results: "refzom" {mIoU, oIoU, Pr@0.5 ... Pr@0.9} over sentences with a target, Acc over those
    without: a mask without any pixel is right. "Acc_flag" asks the no-target flag instead, as the
    released evaluation of IGVG does. In percent, NaN where there is no such sentence.
    """

    def make_record(self, target: GroundTruth, output: Dict[str, Any]) -> Record:
        """See `GroundingEvaluator.make_record`; adds pred_no_target."""
        record = super().make_record(target, output)
        record["pred_no_target"] = bool(output_field(output, "no_target", target.sample))
        return record

    def summarize(self, records: Sequence[Record]) -> Results:
        """See the class for the keys."""
        targeted = [r for r in records if r["num_targets"]]
        zero = [r for r in records if not r["num_targets"]]
        intersections = [r["intersection"] for r in targeted]
        unions = [r["union"] for r in targeted]
        ious = iou_ratio(intersections, unions)
        results = {"mIoU": mean_percent(ious), "oIoU": overall_iou(intersections, unions)}
        results.update({f"Pr@{t}": precision_at(ious, t) for t in _PRECISION_THRESHOLDS})
        results["Acc"] = mean_percent([r["pred_area"] == 0 for r in zero])
        results["Acc_flag"] = mean_percent([r["pred_no_target"] for r in zero])
        return {"refzom": results}
