"""Records of an evaluation as columns of numbers, and decisions about them."""

from typing import Dict, Sequence, Tuple, Union

import numpy as np

from .calibration import Calibration, risk_percent
from .metrics import ABSENT_KINDS, no_target_accuracy, percent, target_accuracy
from .protocols import Protocol
from .reporting import Record


def target_counts(records: Sequence[Record]) -> np.ndarray:
    """int64 (N,), the number of targets of each record."""
    return np.array([r["num_targets"] for r in records], dtype=np.int64)


def has_masks(records: Sequence[Record]) -> np.ndarray:
    """bool (N,): whether all targets of a record have a mask; True without target.

    It is True, too, for records of earlier versions, which knew nothing else.
    """
    return np.array([r.get("has_masks", True) for r in records], dtype=bool)


def mask_is_known(records: Sequence[Record]) -> np.ndarray:
    """bool (N,): in mask metrics; none is if all that has targets has boxes only."""
    known, has_target = has_masks(records), target_counts(records) > 0
    return known & ((known & has_target).any() | ~has_target.any())


def no_target_flags(records: Sequence[Record], protocol: Protocol) -> np.ndarray:
    """bool (N,): the model's flag; under released rules, whether no box scores above 0.7."""
    if protocol.rules == "released":
        return np.array([r["num_confident"] == 0 for r in records], dtype=bool)
    return np.array([r["pred_no_target"] for r in records], dtype=bool)


def pixel_columns(records: Sequence[Record], key: str) -> np.ndarray:
    """int64 (4, N): intersections, unions, predicted and target pixels under `key` of `pixels`."""
    return np.array([r["pixels"][key] for r in records], dtype=np.int64).reshape(-1, 4).T


def hallucination_ratios(
    records: Sequence[Record], answered: Sequence[bool], counted: Union[bool, np.ndarray] = True
) -> Dict[str, Tuple[np.ndarray, np.ndarray]]:
    """Share of the samples without target that are answered, of all of them and by kind.

    Args:
        records: with `absent_kind` where it is known.
        answered: bool (N,), whether anything is shown.
        counted: bool or bool (N,), which samples take part.

    Returns:
        "hallucination", "hallucination_absent", ... -> numerators and denominators bool (N,).
    """
    is_no_target, answered = (target_counts(records) == 0) & counted, np.asarray(answered, bool)
    groups = {"hallucination": is_no_target}
    for kind in ABSENT_KINDS:
        has_kind = np.array([r.get("absent_kind") == kind for r in records], bool)
        groups[f"hallucination_{kind}"] = is_no_target & has_kind
    return {name: (answered & group, group) for name, group in groups.items()}


def hallucination_rates(
    records: Sequence[Record], answered: Sequence[bool], counted: Union[bool, np.ndarray] = True
) -> Dict[str, float]:
    """`hallucination_ratios` in percent, NaN without a case."""
    ratios = hallucination_ratios(records, answered, counted)
    return {name: percent(n.sum(), d.sum()) for name, (n, d) in ratios.items()}


def calibrated_flags(records: Sequence[Record], calibration: Calibration) -> np.ndarray:
    """bool (N,): "nothing matches" as a calibration decides.

    Raises:
        ValueError: an output had no "no_target_score".
    """
    scores = [r["no_target_score"] for r in records]
    if None in scores:
        raise ValueError(
            f"a calibration needs 'no_target_score' of every sample: {scores.count(None)} of "
            f"{len(scores)} have none"
        )
    return np.array(scores, np.float64) >= calibration.no_target_threshold


def summarize_calibrated(records: Sequence[Record], calibration: Calibration) -> Dict[str, float]:
    """{the risk, alpha (its bound), N_acc, T_acc} of a calibrated decision, in percent."""
    flags, is_no_target = calibrated_flags(records, calibration), target_counts(records) == 0
    risk = risk_percent(flags, is_no_target, [r["image_id"] for r in records], calibration.risk)
    return {
        calibration.risk.replace("-", "_"): risk,
        "alpha": 100.0 * calibration.alpha,
        "N_acc": no_target_accuracy(is_no_target, flags),
        "T_acc": target_accuracy(is_no_target, flags),
    }
