"""Ref-ZOM and R-RefCOCO, where an empty mask means that there is no target."""

from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from .boxes import RELEASED_SCORE_THRESHOLD, no_target_decisions
from .build import GROUNDING_EVALUATOR_REGISTRY
from .columns import hallucination_rates, no_target_flags, pixel_columns, target_counts
from .frames import GroundTruth
from .grounding_evaluation import GroundingEvaluator, Results
from .metrics import (
    iou_ratio,
    mask_results,
    mean_percent,
    overall_iou,
    percent,
    target_accuracy,
)
from .protocols import Protocol
from .reporting import Record


class _NoTargetEvaluator(GroundingEvaluator):
    """The no-target decision of both benchmarks.

    Read from a model output: "mask" bool (height, width), "no_target" bool or 0-d tensor, and for
    released rules "candidates" Instances with scores.
    """

    def settings(self, protocol: Protocol) -> Dict[str, Any]:
        """See `GroundingEvaluator.settings`."""
        if protocol.rules == "released":
            return {"no_target": f"no box score > {RELEASED_SCORE_THRESHOLD}"}
        return {"no_target": "mask without a pixel"}

    def make_record(self, target: GroundTruth, output: Dict[str, Any]) -> Record:
        """See `GroundingEvaluator.make_record`; adds pred_no_target and num_confident.

        Raises:
            ValueError: a target has no mask.
        """
        if not target.has_masks:
            raise ValueError(
                f"sample '{target.sample['sample_id']}': this benchmark needs the masks of all "
                f"targets; register '{self.dataset_name}' with evaluator_type='grefcoco'"
            )
        record = super().make_record(target, output)
        return {**record, **no_target_decisions(output, target.sample, self.protocols)}


@GROUNDING_EVALUATOR_REGISTRY.register()
class RefZOMEvaluator(_NoTargetEvaluator):
    """Mask metrics of Ref-ZOM by the rules of its authors (DMMI); one target, several, or none.

    Results: "refzom" {mIoU, oIoU, Pr@0.5 ... Pr@0.9} over sentences with a target, Acc over those
    without: a mask without any pixel is right, under released rules no box score above 0.7;
    "hallucination" is the rest, also by what is absent (`hallucination_ratios`), and T_acc the
    share of those with a target that are answered. "Acc_flag" asks the no-target flag instead. In
    percent, NaN where there is no such sentence.
    """

    def summarize_protocol(self, records: Sequence[Record], protocol: Protocol) -> Results:
        """See the class for the keys."""
        targeted, rejected = target_counts(records) > 0, _rejected(records, protocol)
        results = mask_results(*pixel_columns(records, protocol.name)[:2, targeted])
        flags = np.array([r["pred_no_target"] for r in records], bool)
        results["Acc"] = mean_percent(rejected[~targeted])
        results["Acc_flag"] = mean_percent(flags[~targeted])
        return {"refzom": {**results, **_answer_rates(records, ~rejected)}}

    def ratios(self, records: Sequence[Record], protocol: Protocol) -> Dict[str, Any]:
        """mIoU, oIoU and Acc by mask or boxes."""
        targeted = target_counts(records) > 0
        intersections, unions, _, _ = pixel_columns(records, protocol.name)
        return {
            "mIoU": (iou_ratio(intersections, unions) * targeted, targeted),
            "oIoU": (intersections * targeted, unions * targeted),
            "Acc": (_rejected(records, protocol) & ~targeted, ~targeted),
        }


def _rejected(records: Sequence[Record], protocol: Protocol) -> np.ndarray:
    """bool (N,): no box scores above 0.7 under released rules, else the mask is empty."""
    if protocol.rules == "released":
        return no_target_flags(records, protocol)
    return pixel_columns(records, protocol.name)[2] == 0


@GROUNDING_EVALUATOR_REGISTRY.register()
class RRefCOCOEvaluator(_NoTargetEvaluator):
    """Robust segmentation (R-RefCOCO, R-RefCOCO+, R-RefCOCOg) by the rules of RefSegformer.

    The unit is the object (the ref) with all its true and false sentences, so every mean is one of
    per-object means.

    Results: "rref" {mIoU, oIoU, mRR, rIoU} from the masks alone, a false sentence being recognised
    by a mask without any pixel; "rref_flag" the same after masks whose no-target flag is set have
    been emptied, those of true sentences too (the authors' ``--use_exist``). In percent. NaN if an
    object has no true sentence (mIoU) or no false one (mRR), as in the official code. Beside them,
    over sentences and not by object, "hallucination", the share of false ones that are accepted,
    also by what is absent (`hallucination_ratios`), and T_acc, that of true ones.

    Official rules: the targets lack pixels covered by two polygon parts, as in the official loader;
    "rref_union_gt" and "rref_flag_union_gt" have unions of parts, as all other protocols. Released
    rules: a false sentence is accepted if a box scores above 0.7, and only then its mask counts
    ("rref"; there is no "rref_flag").
    """

    official_single_cover = True

    def summarize_protocol(self, records: Sequence[Record], protocol: Protocol) -> Results:
        """See the class for the keys."""
        if protocol.rules == "released":
            return {"rref": _summarize(records, protocol.name, "boxes")}
        results = {}
        for suffix in ("", "_union_gt") if protocol.rules == "official" else ("",):
            key = protocol.name + suffix
            results["rref" + suffix] = _summarize(records, key, "mask")
            results["rref_flag" + suffix] = _summarize(records, key, "flag")
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
        # Rates of objects are in percent already, and a ratio becomes a percentage.
        ratios = {name: (spread(numbers[name]) / 100, ones) for name in ("mIoU", "mRR", "rIoU")}
        return {**ratios, "oIoU": (spread(numbers["intersection"]), spread(numbers["union"]))}


def _answer_rates(records: Sequence[Record], answered: np.ndarray) -> Dict[str, float]:
    """T_acc, and `hallucination_rates`, of answered bool (N,)."""
    t_acc = target_accuracy(target_counts(records) == 0, ~answered)
    return {"T_acc": t_acc, **hallucination_rates(records, answered)}


def _groups(records: Sequence[Record]) -> Dict[Any, List[Record]]:
    """The records of each object."""
    groups: Dict[Any, List[Record]] = {}
    for record in records:
        groups.setdefault(record["group_id"], []).append(record)
    return groups


def _summarize(records: Sequence[Record], key: str, decision: str) -> Dict[str, float]:
    """The four numbers over objects, and the rates of answers over sentences."""
    numbers = _numbers(_groups(records).values(), key, decision)
    accepted = np.array([_pixels(r, key, decision)[3] for r in records], bool)

    def mean(name: str) -> float:
        # Of no object, and where one of them is undefined, it is NaN.
        return float(np.mean(numbers[name] or [np.nan]))

    overall = overall_iou(numbers["intersection"], numbers["union"])
    results = {"mIoU": mean("mIoU"), "oIoU": overall, "mRR": mean("mRR"), "rIoU": mean("rIoU")}
    return {**results, **_answer_rates(records, accepted)}


def _numbers(groups, key: str, decision: str) -> Dict[str, List[float]]:
    """mIoU, mRR and rIoU in percent, intersection and union in pixels, of each object."""
    numbers: Dict[str, List[float]] = {
        name: [] for name in ("mIoU", "mRR", "rIoU", "intersection", "union")
    }
    for records in groups:
        positives = [_pixels(r, key, decision) for r in records if r["num_targets"]]
        negatives = [_pixels(r, key, decision) for r in records if not r["num_targets"]]
        intersections, unions = [p[0] for p in positives], [p[1] for p in positives]
        ious = iou_ratio(intersections, unions)
        false_area = sum(p[2] for p in negatives if p[3])
        numbers["mIoU"].append(percent(ious.sum(), len(ious)))
        numbers["mRR"].append(percent(sum(not p[3] for p in negatives), len(negatives)))
        numbers["rIoU"].append(percent(sum(intersections), sum(unions) + false_area))
        numbers["intersection"].append(sum(intersections))
        numbers["union"].append(sum(unions))
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
