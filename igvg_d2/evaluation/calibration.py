"""How far the no-target score can be trusted, and at which threshold."""

from typing import Dict, Sequence

import numpy as np

from .metrics import mean_percent, no_target_accuracy, target_accuracy

_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_BINS = 10


def auroc(scores: Sequence[float], is_positive: Sequence[bool]) -> float:
    """Area under the ROC curve in percent: how often a positive outscores a negative, ties half.

    Args:
        scores: float (N,).
        is_positive: bool (N,).

    Returns:
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

    Args:
        scores: float (N,) in [0, 1], probabilities of being positive.
        is_positive: bool (N,).

    Returns:
        NaN without samples.
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
    """N_acc and T_acc if the score alone decided, at thresholds 0.1 to 0.9.

    A table to look at: a threshold chosen from it on a test split would be tuned on that split.

    Args:
        scores: float (N,), no-target scores.
        is_no_target: bool (N,).
    """
    scores = np.asarray(scores, np.float64)
    return {
        f"{threshold:.1f}": {
            "N_acc": no_target_accuracy(is_no_target, scores >= threshold),
            "T_acc": target_accuracy(is_no_target, scores >= threshold),
        }
        for threshold in _THRESHOLDS
    }
