"""Classic RES and REC: exactly one target per expression."""

from typing import Any, Dict, Optional, Sequence

import numpy as np
from detectron2.config import configurable

from .build import GROUNDING_EVALUATOR_REGISTRY
from .grounding_evaluation import (
    GroundingEvaluator,
    GroundTruth,
    Record,
    Results,
    check_candidates,
    output_field,
    to_numpy,
)
from .instance_evaluation import pairwise_box_iou
from .metrics import iou_ratio, mean_percent, overall_iou, precision_at


@GROUNDING_EVALUATOR_REGISTRY.register()
class RefCOCOEvaluator(GroundingEvaluator):
    """Mask and top-1 box accuracy of RefCOCO, RefCOCO+ and RefCOCOg.

    Read from a model output: "mask" bool (height, width), never cleared by a no-target flag, and
    "candidates" Instances with scores and pred_boxes; the one with the highest score answers (the
    first of equals, no candidate is a miss).

    Results: "res" {mIoU, oIoU, Pr@0.5 ... Pr@0.9} and "rec" {Acc@0.5}, in percent, over sentences.
    The mask ground truth is the union of all polygon parts (MAttNet), not LAVT's "covered exactly
    once"; the box overlap is plain IoU in continuous coordinates.
    """

    @configurable
    def __init__(
        self,
        *,
        dataset_name: str,
        output_folder: Optional[str] = None,
        allow_missing: bool = False,
        save_predictions: bool = False,
        iou_threshold: float = 0.5,
        precision_thresholds: Sequence[float] = (0.5, 0.6, 0.7, 0.8, 0.9),
    ):
        """
        Args:
            dataset_name, output_folder, allow_missing, save_predictions: see
                `GroundingEvaluator`.
            iou_threshold: smallest IoU of a correct box.
            precision_thresholds: mask IoUs of Pr@X.
        """
        super().__init__(
            dataset_name=dataset_name,
            output_folder=output_folder,
            allow_missing=allow_missing,
            save_predictions=save_predictions,
        )
        self.iou_threshold = iou_threshold
        self.precision_thresholds = tuple(precision_thresholds)

    def settings(self) -> Dict[str, float]:
        """See `GroundingEvaluator.settings`."""
        return {"rec_iou_threshold": self.iou_threshold}

    def make_record(self, target: GroundTruth, output: Dict[str, Any]) -> Record:
        """See `GroundingEvaluator.make_record`; adds iou, box_iou and box_score.

        Raises:
            ValueError: the sample has not exactly one target.
        """
        if target.num_targets != 1:
            raise ValueError(
                f"sample '{target.sample['sample_id']}': RES and REC need exactly 1 target, found "
                f"{target.num_targets}; register '{self.dataset_name}' with "
                "evaluator_type='grefcoco'"
            )
        record = super().make_record(target, output)
        candidates = output_field(output, "candidates", target.sample)
        scores = to_numpy(candidates.scores)
        check_candidates(candidates, scores.max(initial=0.0), target.sample)
        box_iou, box_score = 0.0, None
        if len(scores):
            top = int(np.argmax(scores))
            box = to_numpy(candidates.pred_boxes.tensor)[top : top + 1].astype(np.float64)
            box_iou = float(pairwise_box_iou(box, target.boxes)[0, 0])
            box_score = float(scores[top])
        iou = float(iou_ratio([record["intersection"]], [record["union"]])[0])
        record.update(iou=iou, box_iou=box_iou, box_score=box_score)
        return record

    def summarize(self, records: Sequence[Record]) -> Results:
        """See the class for the keys."""
        ious = [r["iou"] for r in records]
        res = {
            "mIoU": mean_percent(ious),
            "oIoU": overall_iou(
                [r["intersection"] for r in records], [r["union"] for r in records]
            ),
        }
        res.update({f"Pr@{t}": precision_at(ious, t) for t in self.precision_thresholds})
        accuracy = precision_at([r["box_iou"] for r in records], self.iou_threshold)
        return {"res": res, "rec": {f"Acc@{self.iou_threshold}": accuracy}}
