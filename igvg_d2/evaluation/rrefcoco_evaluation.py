"""R-RefCOCO, R-RefCOCO+ and R-RefCOCOg: true and false sentences about one object."""

from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from .boxes import RELEASED_SCORE_THRESHOLD, no_target_decisions
from .build import GROUNDING_EVALUATOR_REGISTRY
from .frames import GroundTruth
from .grounding_evaluation import GroundingEvaluator, Record, Results
from .metrics import iou_ratio, overall_iou, percent
from .protocols import Protocol


@GROUNDING_EVALUATOR_REGISTRY.register()
class RRefCOCOEvaluator(GroundingEvaluator):
    """Robust segmentation by the rules of RefSegformer.

    The unit is the object (the ref) with all its sentences, so every mean is one of per-object
    means. Read from a model output: "mask" bool (height, width), "no_target" bool or 0-d tensor,
    and for released rules "candidates" Instances with scores.

    Results: "rref" {mIoU, oIoU, mRR, rIoU} from the masks alone, a false sentence being recognised
    by a mask without any pixel; "rref_flag" the same after masks whose no-target flag is set have
    been emptied, those of true sentences too (the authors' ``--use_exist``). In percent. NaN if an
    object has no true sentence (mIoU) or no false one (mRR), as in the official code.

    Official rules: the targets lack pixels covered by two polygon parts, as in the official loader;
    "rref_union_gt" and "rref_flag_union_gt" have unions of parts, as all other protocols. Released
    rules: a false sentence is accepted if a box scores above 0.7, and only then its mask counts
    ("rref"; there is no "rref_flag").
    """

    official_single_cover = True

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
        groups = _groups(records)
        name = protocol.name
        if protocol.rules == "released":
            return {"rref": _summarize(groups.values(), name, "boxes")}
        results = {
            "rref": _summarize(groups.values(), name, "mask"),
            "rref_flag": _summarize(groups.values(), name, "flag"),
        }
        if protocol.rules == "official":
            name += "_union_gt"
            results["rref_union_gt"] = _summarize(groups.values(), name, "mask")
            results["rref_flag_union_gt"] = _summarize(groups.values(), name, "flag")
        return results

    def ratios(self, records: Sequence[Record], protocol: Protocol) -> Dict[str, Any]:
        """The four numbers of "rref"; an object counts at the place of its first sentence."""
        groups = _groups(records)
        decision = "boxes" if protocol.rules == "released" else "mask"
        numbers = _numbers(groups.values(), protocol.name, decision)
        position = {}
        for i, record in enumerate(records):
            position.setdefault(record["group_id"], i)
        places = [position[group] for group in groups]

        def spread(values) -> np.ndarray:
            column = np.zeros(len(records))
            column[places] = values
            return column

        ones = spread(np.ones(len(groups)))
        ratios = {name: (spread(numbers[name]), ones) for name in ("mIoU", "mRR", "rIoU")}
        overall = (spread(numbers["intersection"]), spread(numbers["union"]))
        # Rates of objects are in percent already, and a ratio becomes a percentage.
        ratios = {name: (values / 100, weights) for name, (values, weights) in ratios.items()}
        return {**ratios, "oIoU": overall}


def _groups(records: Sequence[Record]) -> Dict[Any, List[Record]]:
    """The records of each object."""
    groups: Dict[Any, List[Record]] = {}
    for record in records:
        groups.setdefault(record["group_id"], []).append(record)
    return groups


def _summarize(groups, key: str, decision: str) -> Dict[str, float]:
    """The four numbers over objects; each group holds the records of one."""
    numbers = _numbers(groups, key, decision)
    return {
        "mIoU": _mean(numbers["mIoU"]),
        "oIoU": overall_iou(numbers["intersection"], numbers["union"]),
        "mRR": _mean(numbers["mRR"]),
        "rIoU": _mean(numbers["rIoU"]),
    }


def _numbers(groups, key: str, decision: str) -> Dict[str, List[float]]:
    """mIoU, mRR and rIoU in percent, intersection and union in pixels, of each object."""
    numbers: Dict[str, List[float]] = {
        name: [] for name in ("mIoU", "mRR", "rIoU", "intersection", "union")
    }
    for records in groups:
        positives = [_pixels(r, key, decision) for r in records if r["num_targets"]]
        negatives = [_pixels(r, key, decision) for r in records if not r["num_targets"]]
        intersection, union = (sum(pixels[k] for pixels in positives) for k in (0, 1))
        ious = iou_ratio([pixels[0] for pixels in positives], [pixels[1] for pixels in positives])
        false_area = sum(p[2] for p in negatives if p[3])
        numbers["mIoU"].append(percent(ious.sum(), len(ious)))
        numbers["mRR"].append(percent(sum(not p[3] for p in negatives), len(negatives)))
        numbers["rIoU"].append(percent(intersection, union + false_area))
        numbers["intersection"].append(intersection)
        numbers["union"].append(union)
    return numbers


def _pixels(record: Record, key: str, decision: str) -> Tuple[int, int, int, bool]:
    """(intersection, union, predicted pixels, sentence accepted).

    Args:
        record: of one sentence.
        key: of its `pixels`.
        decision: "mask", "flag" (a flagged mask counts as empty) or "boxes" (released).
    """
    intersection, union, pred_area, gt_area = record["pixels"][key]
    if decision == "flag" and record["pred_no_target"]:
        return 0, gt_area, 0, False
    accepted = record["num_confident"] > 0 if decision == "boxes" else pred_area > 0
    return intersection, union, pred_area, accepted


def _mean(values: Sequence[float]) -> float:
    """Mean in the unit of the values; NaN for none, or if one of them is NaN."""
    return float(np.mean(values)) if len(values) else float("nan")
