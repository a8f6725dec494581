"""OpenRef: F1 of boxes, and how firmly what is not there is rejected."""

from typing import Any, Dict, Sequence

import numpy as np

from .build import GROUNDING_EVALUATOR_REGISTRY
from .frames import GroundTruth, to_numpy
from .grefcoco_evaluation import GRefCOCOEvaluator
from .grounding_evaluation import Results
from .metrics import mean_percent, pairwise_box_iou, percent
from .reporting import Record


@GROUNDING_EVALUATOR_REGISTRY.register()
class OpenRefEvaluator(GRefCOCOEvaluator):
    """OpenRef's metrics as in the code of its authors, beside those of `GRefCOCOEvaluator`.

    Results: "openref", in percent: F1 (mean over expressions with targets) and F1_micro (of summed
    counts) of the boxes that score `score_threshold` or more, assigned by the largest sum of IoUs,
    a match from 0.5 on; NSR, the share of expressions without target with no such box, and N3R,
    the mean of the product of 1 - score of these boxes; both also "_absolute" (kind "none") and
    "_relative" (kind "negative"). N3R rewards low scores: read it beside NSR and F1.
    """

    def make_record(self, target: GroundTruth, output: Dict[str, Any]) -> Record:
        """See `GRefCOCOEvaluator.make_record`; adds openref [matched, kept, rejection]."""
        # As in the matcher: the import takes long.
        from scipy.optimize import linear_sum_assignment

        record = super().make_record(target, output)
        scores = to_numpy(output["candidates"].scores).astype(np.float64)
        kept = scores >= self.score_threshold
        boxes = to_numpy(output["candidates"].pred_boxes.tensor).astype(np.float64)[kept]
        ious = pairwise_box_iou(boxes, target.boxes)
        matched = int((ious[linear_sum_assignment(-ious)] >= 0.5).sum())
        return {**record, "openref": [matched, int(kept.sum()), float((1 - scores[kept]).prod())]}

    def summarize_shared(self, records: Sequence[Record]) -> Results:
        """See the class for the keys."""
        found = [r for r in records if r["num_targets"]]
        hits = np.array([2 * r["openref"][0] for r in found])
        boxes = np.array([r["openref"][1] + r["num_targets"] for r in found])
        results = {"F1": mean_percent(hits / boxes), "F1_micro": percent(hits.sum(), boxes.sum())}
        absent = [r for r in records if not r["num_targets"]]
        for suffix, kind in (("", None), ("_absolute", "none"), ("_relative", "negative")):
            group = [r["openref"] for r in absent if kind in (None, r.get("kind"))]
            results[f"NSR{suffix}"] = mean_percent([kept == 0 for _, kept, _ in group])
            results[f"N3R{suffix}"] = mean_percent([rejection for _, _, rejection in group])
        return {**super().summarize_shared(records), "openref": results}
