"""Is one row better than another: paired over seeds, and over samples by the bootstrap."""

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from igvg_d2.evaluation.bootstrap import bootstrap_intervals
from igvg_d2.evaluation.grefcoco_evaluation import GRefCOCOEvaluator

# Name on the page -> task and metric of an evaluation. CoverAcc is that of Eq. 3, of all points.
METRICS = {
    "F1score": ("grec", "F1score"),
    "N_acc": ("gres", "N_acc"),
    "gIoU": ("gres", "gIoU"),
    "cIoU": ("gres", "cIoU"),
    "mask AP50": ("instance", "mask_AP50"),
    "box AP50": ("instance", "box_AP50"),
    "CoverAcc": ("instance", "CoverAcc_all"),
    "recall 3+": ("instance", "recall_3plus"),
}
# Where the paper's own rows are closer than this, in percent, it claims no order.
TIE = 0.25
# Overlaps of the records that average precision at 0.5 is computed from.
_OVERLAPS = {"mask AP50": "mask_ious", "box AP50": "box_ious"}
_RESAMPLES, _BLOCK = 1000, 50
_RECALLS = np.linspace(0.0, 1.0, 101)


class Evaluated:
    """An evaluated run: its results, and its records for resampling."""

    def __init__(self, results: Dict[str, Dict[str, Any]], records: List[Dict[str, Any]]):
        """
        Args:
            results: {task: {metric: percent or None}}.
            records: of all samples, sorted by sample id, see `GRefCOCOEvaluator.make_record`.
        """
        self.results = results
        self.records = records
        self.ap50_draws = functools.lru_cache(maxsize=None)(self._draw_ap50)

    @classmethod
    def read(cls, folder: Path, dataset: str) -> "Evaluated":
        """The final evaluation of the run in a folder."""
        prefix = folder / "inference" / dataset / dataset
        report = json.loads(Path(f"{prefix}_metrics.json").read_text(encoding="utf-8"))
        records = json.loads(Path(f"{prefix}_records.json").read_text(encoding="utf-8"))
        return cls({**report["results"], "data": {"hash": report["dataset_hash"]}}, records)

    def value(self, metric: str) -> float:
        """In percent; NaN where it is not defined: points of learned queries, absent masks."""
        task, name = METRICS[metric]
        found = self.results.get(task, {}).get(name)
        return math.nan if found is None else found

    @functools.cached_property
    def ratios(self) -> Dict[str, Tuple[np.ndarray, np.ndarray]]:
        """Metrics as (numerators (N,), denominators (N,)), all but AP50."""
        evaluator = GRefCOCOEvaluator(dataset_name="")
        found = evaluator.ratios(self.records, evaluator.primary)
        targets = np.array([r["num_targets"] for r in self.records])
        matched = np.array([r["num_matched"] for r in self.records])
        found["recall 3+"] = matched * (targets >= 3), targets * (targets >= 3)
        covered = [r["num_covered_all"] for r in self.records]
        if None not in covered:
            found["CoverAcc"] = np.array(covered) / np.maximum(targets, 1), targets > 0
        return {
            name: (np.asarray(n, dtype=float), np.asarray(d, dtype=float))
            for name, (n, d) in found.items()
        }

    def _draw_ap50(self, metric: str) -> np.ndarray:
        """AP50 in percent of the resamples of images, which are the same for all rows."""
        images = [r["image_id"] for r in self.records]
        order, groups = np.unique(images, return_inverse=True)
        table = PrecisionTable(self.records, _OVERLAPS[metric])
        generator = np.random.default_rng(0)
        shares = [1.0 / len(order)] * len(order)
        draws = [
            table.average_precision(generator.multinomial(len(order), shares, _BLOCK)[:, groups])
            for _ in range(_RESAMPLES // _BLOCK)
        ]
        return 100.0 * np.concatenate(draws)


class PrecisionTable:
    """AP at an IoU of 0.5 of weighted samples; with weights 1 it is COCO's."""

    def __init__(self, records: Sequence[Dict[str, Any]], overlaps: str):
        """Match once: that an image is drawn twice changes nothing in it.

        Args:
            records: see :class:`Evaluated`.
            overlaps: "mask_ious" or "box_ious".
        """
        found = [
            (score, hit, index)
            for index, record in enumerate(records)
            for score, hit in zip(record["scores"], _hits(record, overlaps))
        ]
        scores, hits, samples = (np.array(column) for column in zip(*found)) if found else [[]] * 3
        order = np.argsort(-np.asarray(scores, dtype=float), kind="mergesort")
        self.hits = np.asarray(hits, dtype=float)[order]
        self.samples = np.asarray(samples, dtype=int)[order]
        self.num_targets = np.array([r["num_targets"] for r in records], dtype=float)

    def average_precision(self, weights: np.ndarray) -> np.ndarray:
        """AP (R,) in [0, 1] for weights (R, N) of the samples."""
        chosen = weights[:, self.samples]
        found, kept = np.cumsum(chosen * self.hits, 1), np.cumsum(chosen, 1)
        recall = found / (weights @ self.num_targets)[:, None]
        precision = found / (kept + np.spacing(1))
        precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        padded = np.pad(precision, ((0, 0), (0, 1)))
        return np.array(
            [row[np.searchsorted(at, _RECALLS)].mean() for row, at in zip(padded, recall)]
        )


def _hits(record: Dict[str, Any], overlaps: str) -> List[bool]:
    """Whether each candidate, by falling score, takes a target: COCO's greedy matching."""
    free = [True] * record["num_targets"]
    hits = []
    for ious in record[overlaps]:
        # Of equal overlaps the last one is taken, as COCOeval does.
        best = max(
            (j for j, is_free in enumerate(free) if is_free), key=lambda j: (ious[j], j), default=-1
        )
        hits.append(best >= 0 and ious[best] >= 0.5)
        if hits[-1]:
            free[best] = False
    return hits


@dataclasses.dataclass(frozen=True)
class Difference:
    """One row's metric minus another's, in points of percent.

    Attributes:
        per_seed: paired by seed.
        low, high: 95 % interval over samples: images are drawn anew, together for all seeds.
        paper: the paper's difference, None where it has none.
    """

    per_seed: Tuple[float, ...]
    low: float
    high: float
    paper: Optional[float] = None

    @property
    def mean(self) -> float:
        """Over seeds."""
        return sum(self.per_seed) / len(self.per_seed)

    @property
    def num_agreeing(self) -> int:
        """Seeds whose difference has the sign of the mean."""
        return sum(value * self.mean > 0 for value in self.per_seed)

    @property
    def sign(self) -> int:
        """1 or -1 if the interval is on one side of 0 and so is every seed, else 0: noise."""
        if not (self.low > 0 or self.high < 0) or self.num_agreeing < len(self.per_seed):
            return 0
        return 1 if self.mean > 0 else -1

    @property
    def verdict(self) -> str:
        """On the paper's order: "holds", "reversed", "noise", "tie" (of the paper); without one:
        "higher", "lower" or "noise"."""
        if self.paper is None:
            return {1: "higher", -1: "lower", 0: "noise"}[self.sign]
        if abs(self.paper) < TIE:
            return "tie"
        if self.sign == 0:
            return "noise"
        return "holds" if self.sign * self.paper > 0 else "reversed"


def difference(
    metric: str,
    before: Sequence[Evaluated],
    after: Sequence[Evaluated],
    paper: Optional[float] = None,
) -> Optional[Difference]:
    """``after`` minus ``before``; runs of the same seeds, in the same order.

    Returns:
        None where one of the two has no such metric, or without a run.

    Raises:
        ValueError: the runs were evaluated on other samples.
    """
    pairs = list(zip(before, after))
    per_seed = tuple(b.value(metric) - a.value(metric) for a, b in pairs)
    if not pairs or any(map(math.isnan, per_seed)):
        return None
    ids = [[r["sample_id"] for r in run.records] for run in (*before, *after)]
    if any(other != ids[0] for other in ids):
        raise ValueError("runs to compare were evaluated on different samples")
    if metric in _OVERLAPS:
        draws = np.mean([b.ap50_draws(metric) - a.ap50_draws(metric) for a, b in pairs], axis=0)
        low, high = np.nanquantile(draws, [0.025, 0.975])
    else:
        parts = _difference_ratio([(a.ratios[metric], b.ratios[metric]) for a, b in pairs])
        images = [r["image_id"] for r in before[0].records]
        limits = bootstrap_intervals({metric: parts}, images)[metric]
        low, high = limits["low"], limits["high"]
    return Difference(per_seed, float(low), float(high), paper)


def _difference_ratio(pairs: Sequence[Tuple[Any, Any]]) -> Tuple[np.ndarray, np.ndarray]:
    """The difference of ratios, averaged over pairs, as one ratio of sums.

    Where denominators are of the truth alone the numerators are subtracted. Those of cIoU are not:
    its ratios are linearised at their values, which is exact for all samples, and of second order
    in the resamples.
    """
    denominators = pairs[0][0][1]
    if all(np.array_equal(d, denominators) for pair in pairs for _, d in pair):
        return np.mean([b[0] - a[0] for a, b in pairs], axis=0), denominators
    numerators = np.mean([_linear(b) - _linear(a) for a, b in pairs], axis=0)
    return numerators, np.ones(len(numerators))


def _linear(ratio: Tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Values (N,) whose mean is sum(n) / sum(d), each with the influence of its sample."""
    numerators, denominators = ratio
    value = numerators.sum() / denominators.sum()
    return value + (numerators - value * denominators) / denominators.mean()
