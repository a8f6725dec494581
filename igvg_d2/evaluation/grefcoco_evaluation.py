"""GRES and GREC, the two generalized benchmarks, with instance metrics, in one pass."""

from typing import Any, Dict, Sequence

import numpy as np

from .boxes import RELEASED_SCORE_THRESHOLD, check_candidates, count_confident, grec_counts
from .build import GROUNDING_EVALUATOR_REGISTRY
from .calibration import auroc, threshold_table
from .columns import (
    calibrated_flags,
    hallucination_rates,
    hallucination_ratios,
    mask_is_known,
    no_target_flags,
    pixel_columns,
    target_counts,
)
from .frames import GroundTruth, output_field, undefined_official
from .grounding_evaluation import GroundingEvaluator, Results
from .instance_evaluation import make_instance_record, summarize_instances, summarize_sets
from .metrics import (
    by_cardinality,
    count_by_cardinality,
    gres_counts,
    mean_percent,
    no_target_accuracy,
    percent,
    precision_at,
    target_accuracy,
)
from .protocols import Protocol
from .reporting import Record


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

    Results: "gres" {gIoU, cIoU, N_acc, T_acc, hallucination, hallucination_absent, ..., Pr@0.7,
    Pr@0.8, Pr@0.9, gIoU_0, gIoU_1, gIoU_2, gIoU_3plus, count_0, ...} and "grec" {F1score, N_acc,
    T_acc, hallucination, ..., F1_0, ...} for each protocol; "instance" (see `summarize_instances`,
    `summarize_sets`), "no_target" {AUROC} if every output has a "no_target_score", and with a
    calibration "gres_calibrated" and "grec_calibrated". The N_acc and T_acc of GRES come from the
    flag, those of GREC from the kept boxes. Of the samples without target, hallucinations of GRES
    are those not flagged whose mask has a pixel in the protocol's frame, those of GREC are those
    with a kept box, also by what is absent (`hallucination_ratios`). F1_k is the share of samples
    with k targets whose F1 is 1. Mask metrics, the hallucinations of GRES too, leave out samples
    with a target without mask, and are NaN if no target has one; N_acc and T_acc need none.

    Official rules (ReLA, MDETR for gRefCOCO): crowds are no targets of GRES; N_acc and T_acc of
    GRES are both 0 if no sample is without target; GREC with missing samples is NaN, because the
    official script stops there, while GRES counts the samples that are there. Released rules: the
    flag is "no box scores above 0.7"; rates of GREC without a case are 0.
    """

    official_target = "polygons"

    # GREC keeps boxes from this score on, and matches them from this generalized IoU on.
    score_threshold = 0.7
    iou_threshold = 0.5
    # Mask IoUs of Pr@X.
    precision_thresholds = (0.7, 0.8, 0.9)
    # Candidates below take no part in AP.
    min_candidate_score = 0.05

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
            "gres_hallucination": "not flagged and a pixel in the mask",
            "grec_hallucination": f"a box score >= {self.score_threshold}",
        }

    def make_record(self, target: GroundTruth, output: Dict[str, Any]) -> Record:
        """See `GroundingEvaluator.make_record`.

        Returns:
            the base record with pred_no_target, num_confident (released flag),
            grec {protocol: [F1, kept, matched]}, undefined (why the official code stops, or None),
            the keys of `make_instance_record`, and of the primary protocol iou (GRES rules), f1,
            num_kept, num_matched (GREC).
        """
        record = super().make_record(target, output)
        candidates = output_field(output, "candidates", target.sample)
        check_candidates(candidates, self.score_threshold, target.sample)
        thresholds = dict(score_threshold=self.score_threshold, iou_threshold=self.iou_threshold)
        record.update(
            pred_no_target=bool(output_field(output, "no_target", target.sample)),
            num_confident=count_confident(candidates),
            grec={p.name: grec_counts(candidates, target, p, **thresholds) for p in self.protocols},
            undefined=undefined_official(target.sample),
        )
        f1, num_kept, num_matched = record["grec"][self.primary.name]
        flags = no_target_flags([record], self.primary)
        iou = float(_gres_ratios([record], self.primary, flags)["gIoU"][0][0])
        iou = iou if target.has_masks else None
        record.update(iou=iou, f1=f1, num_kept=num_kept, num_matched=num_matched)
        instances = make_instance_record(
            target,
            candidates,
            min_score=self.min_candidate_score,
            score_threshold=self.score_threshold,
        )
        return {**record, **instances}

    def summarize_protocol(self, records: Sequence[Record], protocol: Protocol) -> Results:
        """Tasks "gres" and "grec"; every value is in percent except the counts."""
        flags = no_target_flags(records, protocol)
        results = {
            "gres": self._summarize_gres(records, protocol, flags),
            "grec": self._summarize_grec(records, protocol),
        }
        if self.calibration is not None and protocol.rules != "released":
            flags = calibrated_flags(records, self.calibration)
            results["gres_calibrated"] = self._summarize_gres(records, protocol, flags)
            results["grec_calibrated"] = self._summarize_grec(records, protocol, flags)
        return results

    def summarize_shared(self, records: Sequence[Record]) -> Results:
        """Task "instance", of the original frame, and "no_target" if there are scores."""
        results = {"instance": {**summarize_instances(records), **summarize_sets(records)}}
        scores, is_no_target = _scores(records)
        if scores:
            results["no_target"] = {"AUROC": auroc(scores, is_no_target)}
        return results

    def breakdown(self, records: Sequence[Record]) -> Dict[str, Dict[str, Dict[str, float]]]:
        """Kinds of expressions (where the set tells them), intervals, no-target thresholds."""
        tables, known = {}, mask_is_known(records)
        for title, key in (("kind", "kind"), ("kind of no-target expression", "absent_kind")):
            for kind in sorted({r[key] for r in records if key in r}):
                chosen = [r for r in records if r.get(key) == kind]
                ious = [r["iou"] for r, has in zip(records, known) if has and r.get(key) == kind]
                tables.setdefault(title, {})[kind] = {
                    "samples": len(chosen),
                    "gIoU": mean_percent(ious),
                    "F1score": mean_percent([r["f1"] >= 1.0 for r in chosen]),
                }
        tables.update(super().breakdown(records))
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
        correct = [r["grec"][protocol.name][0] >= 1.0 for r in records]
        flags = no_target_flags(records, protocol)
        shown = _shows_mask(records, protocol, flags)
        return {
            **_gres_ratios(records, protocol, flags),
            **hallucination_ratios(records, shown, mask_is_known(records)),
            "F1score": (correct, np.ones(len(records))),
        }

    def _summarize_gres(self, records, protocol, flags) -> Dict[str, float]:
        """Mask metrics with the given no-target flags."""
        num_targets = target_counts(records)
        ratios = _gres_ratios(records, protocol, flags)
        results = {name: percent(np.sum(n), np.sum(d)) for name, (n, d) in ratios.items()}
        known = mask_is_known(records)
        shown = _shows_mask(records, protocol, flags)
        results.update(hallucination_rates(records, shown, known))
        if protocol.rules != "native" and records and num_targets.all():
            # ReLA and the release print 0 for both when there is no no-target sample.
            results.update(N_acc=0.0, T_acc=0.0)
        ious, num_known = ratios["gIoU"][0][known], num_targets[known]
        for threshold in self.precision_thresholds:
            results[f"Pr@{threshold}"] = precision_at(ious[num_known > 0], threshold)
        groups = by_cardinality(ious, num_known)
        results.update({f"gIoU_{name}": value for name, value in groups.items()})
        counts = count_by_cardinality(num_targets)
        results.update({f"count_{name}": count for name, count in counts.items()})
        return results

    def _summarize_grec(self, records, protocol, flags=None) -> Dict[str, float]:
        """Box metrics: a sample is correct when its F1 is 1; flagged samples keep no box."""
        num_targets = target_counts(records)
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
            **hallucination_rates(records, ~nothing_kept),
            **{f"F1_{name}": value for name, value in groups.items()},
        }
        if protocol.rules == "official" and len(records) < len(self.samples):
            return {name: float("nan") for name in results}
        if protocol.rules == "released" and records:
            for name in ("N_acc", "T_acc"):
                results[name] = float(np.nan_to_num(results[name]))
        return results


def _gres_ratios(records: Sequence[Record], protocol: Protocol, flags) -> Dict[str, Any]:
    """Main numbers of GRES with the given no-target flags, see `GroundingEvaluator.ratios`."""
    is_no_target = target_counts(records) == 0
    intersections, unions, _, _ = pixel_columns(records, protocol.name)
    intersections, unions, ious = gres_counts(intersections, unions, is_no_target, flags)
    known = mask_is_known(records)
    intersections, unions = intersections * known, unions * known
    return {
        "gIoU": (np.where(known, ious, 0.0), known),
        "cIoU": (intersections, unions),
        "N_acc": (flags & is_no_target, is_no_target),
        "T_acc": (~flags & ~is_no_target, ~is_no_target),
    }


def _shows_mask(records: Sequence[Record], protocol: Protocol, flags) -> np.ndarray:
    """bool (N,): not flagged, and the mask has a pixel."""
    return ~flags & (pixel_columns(records, protocol.name)[2] > 0)


def _scores(records: Sequence[Record]):
    """(no-target scores, is no target), empty if a sample has no score."""
    scores = [r["no_target_score"] for r in records]
    return ([], []) if None in scores else (scores, target_counts(records) == 0)
