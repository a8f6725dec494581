"""Confidence intervals of ratios of sums, by resampling images."""

from typing import Dict, Sequence, Tuple

import numpy as np

_RESAMPLES = 1000
# Resamples per pass: bounds the memory at some ten megabytes for every benchmark.
_BLOCK = 50


def bootstrap_intervals(
    ratios: Dict[str, Tuple[Sequence[float], Sequence[float]]],
    cluster_ids: Sequence,
    confidence: float = 0.95,
    seed: int = 0,
) -> Dict[str, Dict[str, float]]:
    """Percentile intervals of sum(numerators) / sum(denominators), in percent.

    Expressions about one image rise and fall together, so images are drawn, not expressions.

    Args:
        ratios: name -> (numerators (N,), denominators (N,)) per sample; a mean has denominators 1.
        cluster_ids: N hashable ids, the image of each sample.
        confidence: share of the resamples between the limits.
        seed: of the resampling; the result depends on it and on the data only, not on their order.

    Returns:
        name -> {"low", "high"}; NaN where a ratio is undefined in more than half of the resamples.
    """
    order = sorted(set(cluster_ids))
    index = {cluster: i for i, cluster in enumerate(order)}
    groups = np.array([index[cluster] for cluster in cluster_ids], dtype=np.int64)
    sums = {
        name: [np.bincount(groups, weights=part, minlength=len(order)) for part in parts]
        for name, parts in ratios.items()
    }
    generator = np.random.default_rng(seed)
    values = {name: [] for name in ratios}
    for _ in range(_RESAMPLES // _BLOCK):
        draws = generator.multinomial(len(order), [1.0 / len(order)] * len(order), size=_BLOCK)
        for name, (numerators, denominators) in sums.items():
            above, below = draws @ numerators, draws @ denominators
            undefined = np.full(_BLOCK, np.nan)
            values[name].append(np.divide(above, below, out=undefined, where=below > 0))
    tail = (1.0 - confidence) / 2.0
    return {name: _limits(np.concatenate(found), tail) for name, found in values.items()}


def _limits(values: np.ndarray, tail: float) -> Dict[str, float]:
    """The quantiles at both ends, in percent."""
    defined = values[~np.isnan(values)]
    if 2 * len(defined) <= len(values):
        return {"low": float("nan"), "high": float("nan")}
    low, high = np.quantile(defined, [tail, 1.0 - tail])
    return {"low": 100.0 * float(low), "high": 100.0 * float(high)}
