"""R-RefCOCO, R-RefCOCO+ and R-RefCOCOg: true and false sentences about one object."""

from typing import Any, Dict, List, Sequence

import numpy as np

from .build import GROUNDING_EVALUATOR_REGISTRY
from .grounding_evaluation import GroundingEvaluator, GroundTruth, Record, Results, output_field
from .metrics import iou_ratio, overall_iou, percent


@GROUNDING_EVALUATOR_REGISTRY.register()
class RRefCOCOEvaluator(GroundingEvaluator):
    """Robust segmentation by the rules of RefSegformer, at the original resolution.

    The unit is the object (the ref) with all its sentences, so every mean is one of per-object
    means. Read from a model output: "mask" bool (height, width), "no_target" bool or 0-d tensor.

    Results: "rref" {mIoU, oIoU, mRR, rIoU} from the masks alone, a false sentence being recognised
    by a mask without any pixel; "rref_flag" the same after masks whose no-target flag is set have
    been emptied, those of true sentences too (the authors' ``--use_exist``). In percent. NaN if an
    object has no true sentence (mIoU, rIoU) or no false one (mRR), as in the official code. The
    targets are unions of polygon parts, where the official loader drops pixels covered by two.
    """

    def make_record(self, target: GroundTruth, output: Dict[str, Any]) -> Record:
        """See `GroundingEvaluator.make_record`; adds pred_no_target."""
        record = super().make_record(target, output)
        record["pred_no_target"] = bool(output_field(output, "no_target", target.sample))
        return record

    def summarize(self, records: Sequence[Record]) -> Results:
        """See the class for the keys."""
        groups: Dict[Any, List[Record]] = {}
        for record in records:
            groups.setdefault(record["group_id"], []).append(record)
        return {
            "rref": _summarize(groups.values(), use_flag=False),
            "rref_flag": _summarize(groups.values(), use_flag=True),
        }


def _summarize(groups, use_flag: bool) -> Dict[str, float]:
    """The four numbers over objects; each group holds the records of one."""
    mean_ious, true_negative_rates, robust_ious = [], [], []
    intersections, unions = [], []
    for records in groups:
        positives = [_pixels(r, use_flag) for r in records if r["num_targets"]]
        false_areas = [_pixels(r, use_flag)[2] for r in records if not r["num_targets"]]
        intersection, union = (sum(pixels[k] for pixels in positives) for k in (0, 1))
        intersections.append(intersection)
        unions.append(union)
        ious = iou_ratio([pixels[0] for pixels in positives], [pixels[1] for pixels in positives])
        mean_ious.append(percent(ious.sum(), len(ious)))
        rejected = sum(area == 0 for area in false_areas)
        true_negative_rates.append(percent(rejected, len(false_areas)))
        robust_ious.append(percent(intersection, union + sum(false_areas)))
    return {
        "mIoU": _mean(mean_ious),
        "oIoU": overall_iou(intersections, unions),
        "mRR": _mean(true_negative_rates),
        "rIoU": _mean(robust_ious),
    }


def _pixels(record: Record, use_flag: bool):
    """(intersection, union, predicted pixels); a flagged mask counts as empty if asked for."""
    if use_flag and record["pred_no_target"]:
        return 0, record["gt_area"], 0
    return record["intersection"], record["union"], record["pred_area"]


def _mean(values: Sequence[float]) -> float:
    """Mean in the unit of the values; NaN for none, or if one of them is NaN."""
    return float(np.mean(values)) if len(values) else float("nan")
