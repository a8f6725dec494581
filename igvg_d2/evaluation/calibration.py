"""How far the no-target score can be trusted, and the threshold that tools/calibrate.py fitted."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Dict, Hashable, Optional, Sequence

import numpy as np

from igvg_d2.io.json_stream import without_repetition

from .metrics import mean_percent, no_target_accuracy, percent, target_accuracy

_THRESHOLDS = tuple(i / 20 for i in range(1, 20))
_FORMAT, _VERSION = "igvg_d2 calibration", 1
_LARGEST_FILE = 1 << 20

# Errors of the decision that can be bounded, and what they are in words.
RISKS = {
    "false-answers": "expressions without target are answered",
    "missed-targets": "expressions with targets are answered by 'nothing matches'",
}


@dataclass(frozen=True)
class Calibration:
    """A fitted threshold of the no-target score, and what is promised of it.

    Attributes:
        no_target_threshold: from this score on the answer is "nothing matches".
        risk: of `RISKS`.
        alpha: bound of the risk, in (0, 1), see `risk_percent`.
        confidence: in (0, 1); None if the promise is one on average.
        calibration_sets: {name: hash} of the data it was fitted on.
        training_sets: {name: hash} of the data that the model was trained on, as far as told.
        facts: of the fit, for reading only.
    """

    no_target_threshold: float
    risk: str
    alpha: float
    confidence: Optional[float]
    calibration_sets: Dict[str, str]
    training_sets: Dict[str, str]
    facts: Dict[str, Any]

    def __post_init__(self):
        """ValueError for what tools/calibrate.py does not write."""
        check_threshold(self.no_target_threshold)
        shares = (self.alpha, self.alpha if self.confidence is None else self.confidence)
        sets = (self.calibration_sets, self.training_sets)
        is_right = (
            self.no_target_threshold is not None
            and self.risk in list(RISKS)
            and all(isinstance(x, float) and 0.0 < x < 1.0 for x in shares)
            and all(isinstance(x, dict) for x in (*sets, self.facts))
            and all(isinstance(x, str) for pairs in sets for pair in pairs.items() for x in pair)
        )
        if not is_right or not self.calibration_sets:
            raise ValueError("a field is not what tools/calibrate.py writes")

    @property
    def guarantee(self) -> str:
        """What is promised, in one sentence."""
        sure = "on average over calibration sets"
        if self.confidence is not None:
            sure = f"with confidence {100 * self.confidence:g} % over the calibration set"
        return (
            f"no_target_score >= {self.no_target_threshold:.6g} decides: {sure}, at most "
            f"{100 * self.alpha:g} % of {RISKS[self.risk]} (mean over images)"
        )

    @property
    def assumption(self) -> str:
        """When it holds, in one sentence."""
        return (
            f"holds for the model calibrated, on images with their expressions exchangeable with "
            f"those of {', '.join(self.calibration_sets)} (drawn alike, none trained on), not for "
            "single images, kinds of expressions, or other data"
        )

    def refuse(self, name: str, fingerprint: str) -> None:
        """ValueError if a data set is one that the model or the threshold was fitted on."""
        for own, own_hash in (*self.training_sets.items(), *self.calibration_sets.items()):
            if own_hash == fingerprint:
                raise ValueError(
                    f"data set '{name}' has the hash of '{own}', on which the model was trained or "
                    "calibrated: nothing is promised there; use other data, or no calibration"
                )

    def to_dict(self) -> Dict[str, Any]:
        """As it is written; guarantee and assumption are for people, and not read again."""
        head = {"format": _FORMAT, "version": _VERSION}
        return {**head, **asdict(self), "guarantee": self.guarantee, "assumption": self.assumption}


def read_calibration(path: str) -> Calibration:
    """The file of tools/calibrate.py.

    Raises:
        ValueError: it is none, or one of another version: names the file.
    """
    with open(path, "rb") as file:
        text = file.read(_LARGEST_FILE + 1)
    try:
        content = json.loads(text, object_pairs_hook=without_repetition)
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(f"no JSON object with 'format': '{_FORMAT}'")
        if content.get("version") != _VERSION:
            raise ValueError(f"of version {str(content.get('version'))[:20]}, known is {_VERSION}")
        return Calibration(**{f: content.get(f) for f in Calibration.__dataclass_fields__})
    except (ValueError, RecursionError) as error:
        raise ValueError(f"calibration file {path}: {error}") from error


def check_threshold(value: Optional[float]) -> None:
    """ValueError for a threshold at which every answer would be "no target", or none; not for None.

    The fit returns the next number above 1 when nothing should be rejected.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (is_number and 0.0 < value <= np.nextafter(1.0, 2.0)):
        raise ValueError(
            "no_target_threshold: expected a number above 0, at most 1, as tools/calibrate.py "
            f"finds, found {value!r:.30}; leave it out to report the model's own decision only"
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


def risk_percent(
    flags: Sequence[bool], is_no_target: Sequence[bool], images: Sequence[Hashable], risk: str
) -> float:
    """A risk of `RISKS` in percent: mean over images of the share of expressions that go wrong.

    Args:
        flags: bool (N,), "nothing matches" was answered.
        is_no_target: bool (N,), ground truth.
        images: N ids.

    Returns:
        the exact sum divided once; NaN without an expression that the risk is about.
    """
    wrong = np.asarray(flags, bool) != np.asarray(is_no_target, bool)
    concerned = np.flatnonzero(np.asarray(is_no_target, bool) == (risk == "false-answers"))
    counts = Counter(images[i] for i in concerned)
    total = sum((Fraction(1, counts[images[i]]) for i in concerned if wrong[i]), Fraction(0))
    return percent(float(total), len(counts))
