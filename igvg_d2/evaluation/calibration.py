"""How far the no-target score can be trusted, and at which threshold."""

from typing import Dict, Optional, Sequence

import numpy as np

from .metrics import mean_percent, no_target_accuracy, target_accuracy

_THRESHOLDS = tuple(i / 20 for i in range(1, 20))
_BINS = 10


def check_threshold(
    value: Optional[float], name: str = "TEST.NO_TARGET_THRESHOLD"
) -> Optional[float]:
    """A threshold of the no-target score, or None.

    Raises:
        ValueError: every answer would be "no target", or none: names the option.
    """
    # fit_threshold returns the next number above 1 when nothing should be rejected.
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is None or (is_number and 0.0 < value <= np.nextafter(1.0, 2.0)):
        return value
    raise ValueError(
        f"{name}: expected a number above 0, at most 1, as tools/fit_no_target_threshold.py finds, "
        f"found {value!r:.30}; leave it out to report the model's own decision only"
    )


def auroc(scores: Sequence[float], is_positive: Sequence[bool]) -> float:
    """Area under the ROC curve in percent: how often a positive outscores a negative, ties half.

    NaN unless there are positives and negatives.
    """
    scores, is_positive = np.asarray(scores, np.float64), np.asarray(is_positive, bool)
    positives, negatives = scores[is_positive], np.sort(scores[~is_positive])
    if not len(positives) or not len(negatives):
        return float("nan")
    below = np.searchsorted(negatives, positives, side="left")
    not_above = np.searchsorted(negatives, positives, side="right")
    return mean_percent((below + not_above) / (2.0 * len(negatives)))


def expected_calibration_error(scores: Sequence[float], is_positive: Sequence[bool]) -> float:
    """Mean distance in percent between score and frequency, over ten equally wide bins.

    Scores (N,) are probabilities of being positive. NaN without samples.
    """
    scores, is_positive = np.asarray(scores, np.float64), np.asarray(is_positive, np.float64)
    if not len(scores):
        return float("nan")
    bins = np.minimum((scores * _BINS).astype(np.int64), _BINS - 1)
    gaps = np.bincount(bins, weights=scores - is_positive, minlength=_BINS)
    return 100.0 * float(np.abs(gaps).sum()) / len(scores)


def summarize_calibration(
    scores: Sequence[float], is_no_target: Sequence[bool]
) -> Dict[str, float]:
    """Discrimination ("AUROC") and calibration ("ECE") of the no-target score, in percent."""
    return {
        "AUROC": auroc(scores, is_no_target),
        "ECE": expected_calibration_error(scores, is_no_target),
    }


def threshold_table(
    scores: Sequence[float], is_no_target: Sequence[bool]
) -> Dict[str, Dict[str, float]]:
    """N_acc and T_acc if the score (N,) alone decided, at thresholds 0.05 to 0.95.

    To look at: a threshold chosen from it on a test split would be tuned on that split.
    """
    scores = np.asarray(scores, np.float64)
    return {
        f"{threshold:g}": {
            "N_acc": no_target_accuracy(is_no_target, scores >= threshold),
            "T_acc": target_accuracy(is_no_target, scores >= threshold),
        }
        for threshold in _THRESHOLDS
    }


def fit_threshold(scores: Sequence[float], is_no_target: Sequence[bool]) -> Dict[str, float]:
    """The threshold with the largest mean of N_acc and T_acc when ``score >= threshold`` decides.

    The mean of both rates does not depend on how many samples have no target, which differs much
    between gRefCOCO's train (9 %) and val (63 %).

    Args:
        scores: float (N,) in [0, 1].
        is_no_target: bool (N,).

    Returns:
        "threshold", the middle of the gap between two scores where the optimum is reached (of equal
        optima the one with the lowest threshold), "N_acc" and "T_acc" there.

    Raises:
        ValueError: not both kinds of samples.
    """
    scores, is_no_target = np.asarray(scores, np.float64), np.asarray(is_no_target, bool)
    if is_no_target.all() or not is_no_target.any():
        raise ValueError(
            f"a no-target threshold needs samples with and without target, found "
            f"{int(is_no_target.sum())} without among {len(scores)}"
        )
    order = np.argsort(scores, kind="mergesort")
    ordered, positives = scores[order], is_no_target[order]
    # Cut i rejects the samples from i on; equal scores cannot be cut apart.
    cuts = np.concatenate([[0], np.flatnonzero(np.diff(ordered) > 0) + 1, [len(ordered)]])
    below = np.concatenate([[0], np.cumsum(positives)])[cuts]
    n_acc = 1.0 - below / positives.sum()
    t_acc = (cuts - below) / (~positives).sum()
    best = int(np.argmax(n_acc + t_acc))
    low = ordered[cuts[best] - 1] if cuts[best] > 0 else 0.0
    # Rejecting nothing needs a threshold above every score, even above 1.
    high = ordered[cuts[best]] if cuts[best] < len(ordered) else max(1.0, np.nextafter(low, 2.0))
    threshold = float((low + high) / 2.0)
    # Two neighbouring floats have no number in between.
    threshold = threshold if low < threshold <= high else float(high)
    return {
        "threshold": threshold,
        "N_acc": 100.0 * float(n_acc[best]),
        "T_acc": 100.0 * float(t_acc[best]),
    }
