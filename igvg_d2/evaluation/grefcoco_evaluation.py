"""GRES and GREC, the two generalized benchmarks, with instance metrics, in one pass."""

from typing import Any, Dict, Optional, Sequence

import numpy as np
from detectron2.config import configurable

from .boxes import RELEASED_SCORE_THRESHOLD, check_candidates, count_confident, grec_counts
from .build import GROUNDING_EVALUATOR_REGISTRY
from .calibration import summarize_calibration, threshold_table
from .frames import GroundTruth, output_field, undefined_official
from .grounding_evaluation import (
    GroundingEvaluator,
    Record,
    Results,
    pixel_columns,
)
from .instance_evaluation import make_instance_record, summarize_instances, summarize_sets
from .metrics import (
    by_cardinality,
    count_by_cardinality,
    gres_counts,
    mean_percent,
    no_target_accuracy,
    overall_iou,
    precision_at,
    target_accuracy,
)
from .protocols import Protocol


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
    gIoU_3plus, count_0, ...} and "grec" {F1score, N_acc, T_acc, F1_0, ...} for each protocol;
    "instance" (see `summarize_instances`, `summarize_sets`), "no_target" {AUROC, ECE} if every
    output has a "no_target_score", and with a fitted threshold "gres_fitted" and "grec_fitted". The
    N_acc and T_acc of GRES come from the flag, those of GREC from the kept boxes. F1_k is the share
    of samples with k targets whose F1 is 1.

    Official rules (ReLA, MDETR for gRefCOCO): crowds are no targets of GRES; N_acc and T_acc of
    GRES are both 0 if no sample is without target; GREC with missing samples is NaN, because the
    official script stops there, while GRES counts the samples that are there. Released rules: the
    flag is "no box scores above 0.7"; rates of GREC without a case are 0.
    """

    official_target = "polygons"

    @configurable
    def __init__(
        self,
        *,
        dataset_name: str,
        output_folder: Optional[str] = None,
        allow_missing: bool = False,
        save_predictions: bool = False,
        protocols: Sequence[str] = ("native",),
        metrics_file: Optional[str] = None,
        no_target_threshold: Optional[float] = None,
        score_threshold: float = 0.7,
        iou_threshold: float = 0.5,
        precision_thresholds: Sequence[float] = (0.7, 0.8, 0.9),
        min_candidate_score: float = 0.05,
    ):
        """
        Args:
            dataset_name, output_folder, allow_missing, save_predictions, protocols, metrics_file,
                no_target_threshold: see `GroundingEvaluator`.
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
            protocols=protocols,
            metrics_file=metrics_file,
            no_target_threshold=no_target_threshold,
        )
        self.score_threshold = score_threshold
        self.iou_threshold = iou_threshold
        self.precision_thresholds = tuple(precision_thresholds)
        self.min_candidate_score = min_candidate_score

    def settings(self, protocol: Protocol) -> Dict[str, Any]:
        """See `GroundingEvaluator.settings`."""
        flag = "the model's flag"
        if protocol.rules == "released":
            flag = f"no box score > {RELEASED_SCORE_THRESHOLD}"
        return {
            "gres_no_target": flag,
            "grec_score_threshold": self.score_threshold,
            "grec_generalized_iou_threshold": self.iou_threshold,
            "grec_f1_threshold": 1.0,
            "ap_min_candidate_score": self.min_candidate_score,
            "fitted_no_target_threshold": self.no_target_threshold,
        }

    def make_record(self, target: GroundTruth, output: Dict[str, Any]) -> Record:
        """See `GroundingEvaluator.make_record`.

        Returns:
            the base record with pred_no_target, no_target_score, num_confident (released flag),
            grec {protocol: [F1, kept, matched]}, undefined (why the official code stops, or None),
            the keys of `make_instance_record`, and of the primary protocol iou (GRES rules), f1,
            num_kept, num_matched (GREC).
        """
        record = super().make_record(target, output)
        score = output.get("no_target_score")
        candidates = output_field(output, "candidates", target.sample)
        check_candidates(candidates, self.score_threshold, target.sample)
        thresholds = dict(score_threshold=self.score_threshold, iou_threshold=self.iou_threshold)
        record.update(
            pred_no_target=bool(output_field(output, "no_target", target.sample)),
            no_target_score=None if score is None else float(score),
            num_confident=count_confident(candidates),
            grec={p.name: grec_counts(candidates, target, p, **thresholds) for p in self.protocols},
            undefined=undefined_official(target.sample),
        )
        f1, num_kept, num_matched = record["grec"][self.primary.name]
        _, _, ious = self._gres([record], self.primary)
        record.update(iou=float(ious[0]), f1=f1, num_kept=num_kept, num_matched=num_matched)
        record.update(
            make_instance_record(
                target,
                candidates,
                min_score=self.min_candidate_score,
                score_threshold=self.score_threshold,
            )
        )
        return record

    def summarize_protocol(self, records: Sequence[Record], protocol: Protocol) -> Results:
        """Tasks "gres" and "grec"; every value is in percent except the counts."""
        results = {
            "gres": self._summarize_gres(records, protocol, _flags(records, protocol)),
            "grec": self._summarize_grec(records, protocol),
        }
        has_scores = bool(records) and all(r["no_target_score"] is not None for r in records)
        if self.no_target_threshold is not None and has_scores and protocol.rules != "released":
            fitted = np.array([r["no_target_score"] >= self.no_target_threshold for r in records])
            results["gres_fitted"] = self._summarize_gres(records, protocol, fitted)
            results["grec_fitted"] = self._summarize_grec(records, protocol, fitted)
        return results

    def summarize_shared(self, records: Sequence[Record]) -> Results:
        """Task "instance", of the original frame, and "no_target" if there are scores."""
        results = {"instance": {**summarize_instances(records), **summarize_sets(records)}}
        scores, is_no_target = _scores(records)
        if scores:
            results["no_target"] = summarize_calibration(scores, is_no_target)
        return results

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
        tables = {**({"kind": table} if table else {}), **super().breakdown(records)}
        scores, is_no_target = _scores(records)
        if scores:
            tables["no_target_score >="] = threshold_table(scores, is_no_target)
        reasons = sorted({r["undefined"] for r in records if r["undefined"]})
        if reasons and any(p.rules == "official" for p in self.protocols):
            tables["official GRES code stops, counted with what is there"] = {
                reason: {"samples": sum(r["undefined"] == reason for r in records)}
                for reason in reasons
            }
        return tables

    def ratios(self, records: Sequence[Record], protocol: Protocol) -> Dict[str, Any]:
        """Main numbers of GRES and GREC."""
        is_no_target = _is_no_target(records)
        flagged = _flags(records, protocol)
        intersections, unions, ious = self._gres(records, protocol)
        ones = np.ones(len(records))
        return {
            "gIoU": (ious, ones),
            "cIoU": (intersections, unions),
            "N_acc": (flagged & is_no_target, is_no_target),
            "T_acc": (~flagged & ~is_no_target, ~is_no_target),
            "F1score": ([r["grec"][protocol.name][0] >= 1.0 for r in records], ones),
        }

    def _gres(self, records, protocol, flags=None):
        """I, U and IoU by the rules of `gres_counts`."""
        intersections, unions, _, _ = pixel_columns(records, protocol.name)
        flags = _flags(records, protocol) if flags is None else flags
        return gres_counts(intersections, unions, _is_no_target(records), flags)

    def _summarize_gres(self, records, protocol, flags) -> Dict[str, float]:
        """Mask metrics with the given no-target flags."""
        num_targets = np.array([r["num_targets"] for r in records], dtype=np.int64)
        is_no_target = num_targets == 0
        intersections, unions, ious = self._gres(records, protocol, flags)
        results = {
            "gIoU": mean_percent(ious),
            "cIoU": overall_iou(intersections, unions),
            "N_acc": no_target_accuracy(is_no_target, flags),
            "T_acc": target_accuracy(is_no_target, flags),
        }
        if protocol.rules != "native" and records and not is_no_target.any():
            # ReLA and the release print 0 for both when there is no no-target sample.
            results.update(N_acc=0.0, T_acc=0.0)
        for threshold in self.precision_thresholds:
            results[f"Pr@{threshold}"] = precision_at(ious[~is_no_target], threshold)
        groups = by_cardinality(ious, num_targets)
        results.update({f"gIoU_{name}": value for name, value in groups.items()})
        counts = count_by_cardinality(num_targets)
        results.update({f"count_{name}": count for name, count in counts.items()})
        return results

    def _summarize_grec(self, records, protocol, flags=None) -> Dict[str, float]:
        """Box metrics: a sample is correct when its F1 is 1; flagged samples keep no box."""
        num_targets = np.array([r["num_targets"] for r in records], dtype=np.int64)
        table = np.array([r["grec"][protocol.name] for r in records], np.float64).reshape(-1, 3)
        correct, nothing_kept = table[:, 0] >= 1.0, table[:, 1] == 0
        if flags is not None:
            correct = np.where(flags, num_targets == 0, correct)
            nothing_kept = nothing_kept | flags
        groups = by_cardinality(correct, num_targets)
        results = {
            "F1score": mean_percent(correct),
            "N_acc": no_target_accuracy(num_targets == 0, nothing_kept),
            "T_acc": target_accuracy(num_targets == 0, nothing_kept),
            **{f"F1_{name}": value for name, value in groups.items()},
        }
        if protocol.rules == "official" and len(records) < len(self.samples):
            return {name: float("nan") for name in results}
        if protocol.rules == "released" and records:
            results["N_acc"], results["T_acc"] = np.nan_to_num(
                [results["N_acc"], results["T_acc"]]
            ).tolist()
        return results


def _is_no_target(records: Sequence[Record]) -> np.ndarray:
    """bool (N,), ground truth."""
    return np.array([r["num_targets"] == 0 for r in records], dtype=bool)


def _flags(records: Sequence[Record], protocol: Protocol) -> np.ndarray:
    """bool (N,), the no-target decision that GRES takes under a protocol."""
    if protocol.rules == "released":
        return np.array([r["num_confident"] == 0 for r in records], dtype=bool)
    return np.array([r["pred_no_target"] for r in records], dtype=bool)


def _scores(records: Sequence[Record]):
    """(no-target scores, is no target), empty if a sample has no score."""
    scores = [r["no_target_score"] for r in records]
    return ([], []) if None in scores else (scores, _is_no_target(records))
