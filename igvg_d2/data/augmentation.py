"""Flips and colour jitter of grounding samples, in plain numpy.

Detectron2's own augmentations are not used for two reasons. A default config flips the picture
under "the left man", and its generic path through ``AugInput`` costs more than reading a small
picture. What a flip needs beside the pixels, the exchange of direction words, is
:func:`swap_direction_words`.
"""

import re
from typing import Dict, Sequence, Tuple

import cv2
import numpy as np

# Words that change places under a flip. Parts joined by hyphens ("left-hand", "upper-left") are
# found as words.
_WORD_PAIRS: Dict[str, Tuple[Tuple[str, str], ...]] = {
    "horizontal": (
        ("left", "right"),
        ("leftmost", "rightmost"),
        ("lefthand", "righthand"),
        ("leftside", "rightside"),
        ("leftward", "rightward"),
        ("leftwards", "rightwards"),
        ("topleft", "topright"),
        ("bottomleft", "bottomright"),
        ("upperleft", "upperright"),
        ("lowerleft", "lowerright"),
    ),
    "vertical": (
        ("top", "bottom"),
        ("topmost", "bottommost"),
        ("above", "below"),
        ("upper", "lower"),
        ("uppermost", "lowermost"),
        ("highest", "lowest"),
        ("over", "under"),
        ("topleft", "bottomleft"),
        ("topright", "bottomright"),
        ("upperleft", "lowerleft"),
        ("upperright", "lowerright"),
    ),
}
# Words that speak of a direction but have no counterpart to be exchanged with: do not flip at all.
_UNSWAPPABLE_WORDS: Dict[str, Tuple[str, ...]] = {
    "horizontal": (
        *("clockwise", "counterclockwise", "anticlockwise", "o'clock", "oclock"),
        *("east", "west", "mirrored", "l", "r", "lt", "rt", "lft"),
    ),
    "vertical": (
        *("clockwise", "counterclockwise", "anticlockwise", "o'clock", "oclock"),
        *("north", "south", "up", "down", "upside", "upright", "upwards", "downwards"),
        *("beneath", "underneath", "higher", "atop", "upward", "downward"),
    ),
}
AXES = tuple(_WORD_PAIRS)


def _swap_table(pairs: Sequence[Tuple[str, str]]) -> Dict[str, str]:
    """Both directions of the pairs, so that swapping twice restores the text."""
    return {**dict(pairs), **{second: first for first, second in pairs}}


def _word_pattern(words: Sequence[str]) -> "re.Pattern[str]":
    """Matches any of the words, whole and in any case."""
    alternatives = "|".join(sorted(map(re.escape, words), key=len, reverse=True))
    return re.compile(rf"\b(?:{alternatives})\b", re.IGNORECASE)


_SWAPS = {axis: _swap_table(pairs) for axis, pairs in _WORD_PAIRS.items()}
_SWAP_PATTERNS = {axis: _word_pattern(list(table)) for axis, table in _SWAPS.items()}
_UNSWAPPABLE_PATTERNS = {axis: _word_pattern(words) for axis, words in _UNSWAPPABLE_WORDS.items()}


def swap_direction_words(expression: str, axis: str) -> str:
    """Exchanges left/right or top/bottom words, so that the text fits a flipped picture.

    Capitals (``Left``, ``LEFT``), punctuation and spacing are kept; swapping twice restores the
    text. It looks at words, not at their meaning: "right next to", "the right answer", "he left
    the room", "a red top" and "over there" come out wrong, and so does mirrored writing in the
    picture. On generated text it is exact; on real data flips are opt-in.

    Args:
        expression: as annotated.
        axis: "horizontal" or "vertical".

    Returns:
        The expression that names the same objects in the flipped picture.
    """
    _check_axis(axis)
    table = _SWAPS[axis]
    return _SWAP_PATTERNS[axis].sub(lambda m: _match_case(table[m[0].lower()], m[0]), expression)


def is_flippable(expression: str, axis: str) -> bool:
    """Whether :func:`swap_direction_words` knows all direction words it would have to exchange.

    Args:
        expression: as annotated.
        axis: "horizontal" or "vertical".

    Returns:
        False for e.g. "at 3 o'clock" or, vertically, "the ball beneath the chair".
    """
    _check_axis(axis)
    return _UNSWAPPABLE_PATTERNS[axis].search(expression) is None


def _check_axis(axis: str) -> None:
    if axis not in AXES:
        raise ValueError(f"axis: expected one of {AXES}, found {axis!r}")


def _match_case(word: str, model: str) -> str:
    """``word`` in lower case, capitalised or in upper case, like ``model``."""
    if model.isupper():
        return word.upper()
    return word.capitalize() if model[0].isupper() else word


def flip(
    image: np.ndarray, boxes: np.ndarray, masks: np.ndarray, axis: str
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mirrors a sample; "horizontal" exchanges left and right, "vertical" top and bottom.

    Args:
        image: uint8 (H, W, 3).
        boxes: float32 (T, 4) XYXY pixels of this image.
        masks: bool (T, H, W).
        axis: "horizontal" or "vertical".

    Returns:
        The same three, image and masks as views of the input.
    """
    _check_axis(axis)
    height, width = image.shape[:2]
    boxes = boxes.copy()
    if axis == "horizontal":
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        return image[:, ::-1], boxes, masks[:, :, ::-1]
    boxes[:, [1, 3]] = height - boxes[:, [3, 1]]
    return image[::-1], boxes, masks[:, ::-1]


def jitter_color(image: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    """Scales brightness, and contrast around the mean intensity of the picture.

    Args:
        image: uint8 (H, W, 3), any channel order.
        brightness, contrast: factors; 1.0 changes nothing.

    Returns:
        uint8 (H, W, 3), a new array.
    """
    levels = np.arange(256) * contrast + (1.0 - contrast) * float(image.mean())
    table = np.clip(np.rint(levels * brightness), 0, 255).astype(np.uint8)
    return cv2.LUT(image, table)
