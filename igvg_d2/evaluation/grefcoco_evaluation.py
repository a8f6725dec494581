"""GRES and GREC, the two generalized benchmarks, with instance metrics, in one pass."""

from typing import Any, Dict, Optional, Sequence

import numpy as np
from detectron2.config import configurable

from .bootstrap import bootstrap_intervals
from .build import GROUNDING_EVALUATOR_REGISTRY
from .calibration import summarize_calibration, threshold_table
from .grounding_evaluation import (
    GroundingEvaluator,
    GroundTruth,
    Record,
    Results,
    check_candidates,
    output_field,
    to_numpy,
)
from .instance_evaluation import make_instance_record, summarize_instances
from .metrics import (
    by_cardinality,
    count_by_cardinality,
    grec_f1,
    gres_counts,
    mean_percent,
    no_target_accuracy,
    overall_iou,
    percent,
    precision_at,
    target_accuracy,
)


@GROUNDING_EVALUATOR_REGISTRY.register()
class GRefCOCOEvaluator(GroundingEvaluator):
    """GRES, GREC and instance metrics of data sets with zero, one or many targets.

    Read from a model output, all in the original frame:

    * "mask" bool (height, width): GRES mask, never cleared by the flag;
    * "no_target" bool or 0-d tensor: GRES flag, independent of the mask;
    * "no_target_score" float in [0, 1], optional, recorded for calibration;
    * "candidates" Instances with scores, pred_boxes, and optionally pred_masks and pred_points: all
      queries, unfiltered. GREC applies its own score threshold to them, so the result does not
      depend on the model's test threshold.

    Results: "gres" {gIoU, cIoU, N_acc, T_acc, Pr@0.7, Pr@0.8, Pr@0.9, gIoU_0, gIoU_1, gIoU_2,
    gIoU_3plus, count_0, ...}, "grec" {F1score, N_acc, T_acc, F1_0, ...}, "instance" {mask_AP, ...,
    box_AP, ..., CoverAcc, F1, precision, recall, recall_1, ..., count_acc}, and "no_target" {AUROC,
    ECE} if every output has a "no_target_score". The N_acc and T_acc of GRES come from the flag,
    those of GREC from the kept boxes. F1_k is the share of samples with k targets whose F1 is 1.
    """

    @configurable
    def __init__(
        self,
        *,
        dataset_name: str,
        output_folder: Optional[str] = None,
        allow_missing: bool = False,
        save_predictions: bool = False,
        score_threshold: float = 0.7,
        iou_threshold: float = 0.5,
        precision_thresholds: Sequence[float] = (0.7, 0.8, 0.9),
        min_candidate_score: float = 0.05,
    ):
        """
        Args:
            dataset_name, output_folder, allow_missing, save_predictions: see
                `GroundingEvaluator`.
            score_threshold: GREC keeps boxes with score >= this.
            iou_threshold: GREC matches boxes with generalized IoU >= this.
            precision_thresholds: mask IoUs of Pr@X.
            min_candidate_score: candidates below take no part in AP.
        """
        super().__init__(
            dataset_name=dataset_name,
            output_folder=output_folder,
            allow_missing=allow_missing,
            save_predictions=save_predictions,
        )
        self.score_threshold = score_threshold
        self.iou_threshold = iou_threshold
        self.precision_thresholds = tuple(precision_thresholds)
        self.min_candidate_score = min_candidate_score

    def settings(self) -> Dict[str, float]:
        """See `GroundingEvaluator.settings`."""
        return {
            "grec_score_threshold": self.score_threshold,
            "grec_generalized_iou_threshold": self.iou_threshold,
            "grec_f1_threshold": 1.0,
            "ap_min_candidate_score": self.min_candidate_score,
        }

    def make_record(self, target: GroundTruth, output: Dict[str, Any]) -> Record:
        """See `GroundingEvaluator.make_record`.

        Returns:
            the base record with pred_no_target, no_target_score, iou (GRES rules), f1, num_kept,
            num_matched (GREC), and the keys of `make_instance_record`.
        """
        record = super().make_record(target, output)
        pred_no_target = bool(output_field(output, "no_target", target.sample))
        score = output.get("no_target_score")
        candidates = output_field(output, "candidates", target.sample)
        check_candidates(candidates, self.score_threshold, target.sample)
        f1, num_kept, num_matched = grec_f1(
            to_numpy(candidates.pred_boxes.tensor),
            to_numpy(candidates.scores),
            target.boxes,
            score_threshold=self.score_threshold,
            iou_threshold=self.iou_threshold,
        )
        _, _, ious = gres_counts(
            [record["intersection"]], [record["union"]], [not target.num_targets], [pred_no_target]
        )
        record.update(
            pred_no_target=pred_no_target,
            no_target_score=None if score is None else float(score),
            iou=float(ious[0]),
            f1=f1,
            num_kept=num_kept,
            num_matched=num_matched,
        )
        record.update(make_instance_record(target, candidates, min_score=self.min_candidate_score))
        return record

    def summarize(self, records: Sequence[Record]) -> Results:
        """See the class for the keys; every value is in percent except the counts."""
        return {
            "gres": self._summarize_gres(records),
            "grec": self._summarize_grec(records),
            "instance": {**summarize_instances(records), **_summarize_sets(records)},
            **_calibration(records, summarize_calibration),
        }

    def _summarize_gres(self, records: Sequence[Record]) -> Dict[str, float]:
        """Mask metrics by the rules of `gres_counts`."""
        num_targets = np.array([r["num_targets"] for r in records], dtype=np.int64)
        pred_no_target = np.array([r["pred_no_target"] for r in records], dtype=bool)
        is_no_target = num_targets == 0
        intersections, unions, ious = gres_counts(
            [r["intersection"] for r in records],
            [r["union"] for r in records],
            is_no_target,
            pred_no_target,
        )
        results = {
            "gIoU": mean_percent(ious),
            "cIoU": overall_iou(intersections, unions),
            "N_acc": no_target_accuracy(is_no_target, pred_no_target),
            "T_acc": target_accuracy(is_no_target, pred_no_target),
        }
        for threshold in self.precision_thresholds:
            results[f"Pr@{threshold}"] = precision_at(ious[~is_no_target], threshold)
        groups = by_cardinality(ious, num_targets)
        results.update({f"gIoU_{name}": value for name, value in groups.items()})
        counts = count_by_cardinality(num_targets)
        results.update({f"count_{name}": count for name, count in counts.items()})
        return results

    def _summarize_grec(self, records: Sequence[Record]) -> Dict[str, float]:
        """Box metrics: a sample is correct when its F1 is 1."""
        num_targets = np.array([r["num_targets"] for r in records], dtype=np.int64)
        nothing_kept = np.array([r["num_kept"] == 0 for r in records], dtype=bool)
        correct = np.array([r["f1"] >= 1.0 for r in records], dtype=np.float64)
        groups = by_cardinality(correct, num_targets)
        return {
            "F1score": mean_percent(correct),
            "N_acc": no_target_accuracy(num_targets == 0, nothing_kept),
            "T_acc": target_accuracy(num_targets == 0, nothing_kept),
            **{f"F1_{name}": value for name, value in groups.items()},
        }

    def breakdown(self, records: Sequence[Record]) -> Dict[str, Dict[str, Dict[str, float]]]:
        """Kinds of expressions (Shapes tells them), intervals, no-target thresholds."""
        kinds = sorted({r["kind"] for r in records if "kind" in r})
        table = {}
        for kind in kinds:
            chosen = [r for r in records if r.get("kind") == kind]
            table[kind] = {
                "samples": len(chosen),
                "gIoU": mean_percent([r["iou"] for r in chosen]),
                "F1score": mean_percent([r["f1"] >= 1.0 for r in chosen]),
            }
        tables = {"kind": table} if table else {}
        if records:
            tables["95% interval"] = self._intervals(records)
        return {**tables, **_calibration(records, threshold_table, "no_target_score >=")}

    def _intervals(self, records: Sequence[Record]) -> Dict[str, Dict[str, float]]:
        """Bootstrap limits of the main numbers."""
        is_no_target = np.array([r["num_targets"] == 0 for r in records])
        flagged = np.array([r["pred_no_target"] for r in records])
        intersections, unions, ious = gres_counts(
            [r["intersection"] for r in records],
            [r["union"] for r in records],
            is_no_target,
            flagged,
        )
        ones = np.ones(len(records))
        ratios = {
            "gIoU": (ious, ones),
            "cIoU": (intersections, unions),
            "N_acc": (flagged & is_no_target, is_no_target),
            "T_acc": (~flagged & ~is_no_target, ~is_no_target),
            "F1score": ([r["f1"] >= 1.0 for r in records], ones),
        }
        return bootstrap_intervals(ratios, [r["image_id"] for r in records])


def _summarize_sets(records: Sequence[Record]) -> Dict[str, float]:
    """Kept boxes against targets, summed over samples, by the matches of GREC, in percent.

    F1, precision and recall of instances, recall by number of targets, and how often the number of
    kept boxes is the number of targets.
    """
    kept, matched, targets = (
        np.array([r[key] for r in records], dtype=np.int64)
        for key in ("num_kept", "num_matched", "num_targets")
    )
    results = {
        "F1": percent(2 * matched.sum(), kept.sum() + targets.sum()),
        "precision": percent(matched.sum(), kept.sum()),
        "recall": percent(matched.sum(), targets.sum()),
        "count_acc": mean_percent(kept == targets),
    }
    for name, chosen in (("1", targets == 1), ("2", targets == 2), ("3plus", targets >= 3)):
        results[f"recall_{name}"] = percent(matched[chosen].sum(), targets[chosen].sum())
    return results


def _calibration(records: Sequence[Record], function, title: str = "no_target") -> Dict[str, Any]:
    """``{title: function(scores, is_no_target)}``, or nothing if a sample has no score."""
    scores = [r["no_target_score"] for r in records]
    if not scores or None in scores:
        return {}
    return {title: function(scores, [r["num_targets"] == 0 for r in records])}
