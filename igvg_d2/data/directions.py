"""Direction words of expressions, and how they change when an image is flipped.

Real expressions use "left" and "right" in many ways. Those that name a side of the image are
exchanged. Where the words may mean something else ("right next to", "the slice that is left"), and
where a mirrored image shows what the expression does not say (writing, numbers, clock positions),
the sample is not flipped: a flip that is left out costs nothing, a false expression teaches noise.
"""

import re
from typing import Dict, Sequence, Tuple

# Words that change places under a flip, with the abbreviations of RefCOCO: "L guy", "girl on rt",
# "lft side". Parts joined by hyphens ("left-hand", "upper-left") are found as words.
_WORD_PAIRS = {
    "horizontal": (
        "left/right lefts/rights leftmost/rightmost leftest/rightest lefter/righter lefty/righty "
        "lefties/righties lefthand/righthand lefthanded/righthanded leftside/rightside "
        "leftward/rightward leftwards/rightwards topleft/topright bottomleft/bottomright "
        "upperleft/upperright lowerleft/lowerright farleft/farright l/r lt/rt lft/rgt"
    ),
    "vertical": (
        "top/bottom topmost/bottommost above/below upper/lower uppermost/lowermost highest/lowest "
        "over/under topleft/bottomleft topright/bottomright upperleft/lowerleft "
        "upperright/lowerright"
    ),
}
AXES = tuple(_WORD_PAIRS)

# What a flipped image shows differently in a way no exchange of words expresses.
_NOT_MIRRORED = (
    r"clockwise|counterclockwise|anticlockwise|o'?clock|o’clock",
    r"letters?|lettering|initials?|words?|text|written|writing|handwriting|says?|saying|reads",
    r"spells?|spelled|spelling|labell?ed|label|logo|numbers?|numbered|numerals?|digits?|mirrored",
)
# Not after words that make it a side: "on the left the dog", "top right near the tree".
_SIDE_MARKERS = ("the", "on", "to", "from", "far", "top", "upper", "lower", "bottom")
_NO_SIDE = "".join(rf"(?<!\b{word} )" for word in _SIDE_MARKERS)
_UNSAFE: Dict[str, Tuple[str, ...]] = {
    "horizontal": (
        *_NOT_MIRRORED,
        "east|west|eastern|western|driver'?s?|passenger'?s? side|port|starboard",
        # "right" as an adverb, an adjective of what is correct, a noun, an interjection.
        _NO_SIDE
        + r"right\s+(?:behind|next|beside|besides|by|there|here|now|away|about|before|after|when|as"
        r"|where|above|below|beneath|under|underneath|in|inside|on|onto|at|near|against|between"
        r"|among|across|along|around|over|through|off|past|within|outside|up|down|out|into|beyond"
        r"|to\s+the)",
        r"right\s+(?:angles?|answer|way|size|colou?r|order|thing|choice|place|spot|time)",
        r"(?:all|alright|that'?s|just|it'?s|not|copy)\s+right|wrong|alright|human rights",
        r"(?:is|are|was|were|be)\s+right(?!\s+of|\s+(?:hand|side|most))",
        # "left" as a form of "leave" or a remainder.
        _NO_SIDE
        + r"left\s+(?:behind|over|overs|out|alone|off|open|unattended|uneaten|empty|the|a|an|his"
        r"|her|their|its|some|it|for|after|untouched)",
        r"(?:has|have|had|having|is|are|was|were|be|been|being|who|that|which|he|she|they|it|what"
        r"|what'?s|nothing|nobody|anything|got)\s+left(?!\s+of|\s+(?:hand|side|most))",
        r"(?:left|right)[\s-]+field(?:er)?",
        # Letters that name a shape, and R that is a word.
        r"[lr][\s-]+(?:shaped?|shape)|r\s+us|l\.|r\.",
    ),
    "vertical": (
        *_NOT_MIRRORED,
        "north|south|up|down|upside|upright|upwards|downwards|beneath|underneath|higher|atop",
        "upward|downward|over\\s+(?:there|here)|all\\s+over|(?:tank|crop|halter)\\s+top",
    ),
}
# Words with "left" or "right" in them that say nothing of a side.
_HARMLESS = r"\w*bright\w*|\w*fright\w*|upright\w*|leftovers?|cleft|\w*wrights?|outright|copyright"
# Words that look like a misspelt direction.
_SUSPICIOUS = re.compile(
    r"\b(?:rigth|rigt|righ|righy|rihgt|riht|rght|rite|rigjt|roght|lef|leff|letf|lfet|elft)\b",
    re.IGNORECASE,
)


def _swap_table(pairs: str) -> Dict[str, str]:
    """Both directions of the pairs, so that swapping twice restores the text."""
    table = dict(pair.split("/") for pair in pairs.split())
    return {**table, **{second: first for first, second in table.items()}}


def _word_pattern(patterns: Sequence[str]) -> "re.Pattern[str]":
    """Matches any of the patterns as whole words, not after an apostrophe, in any case."""
    alternatives = "|".join(f"(?:{pattern})" for pattern in patterns)
    return re.compile(rf"(?<![\w'’])(?:{alternatives})(?!\w)", re.IGNORECASE)


_SWAPS = {axis: _swap_table(pairs) for axis, pairs in _WORD_PAIRS.items()}
_SWAP_PATTERNS = {
    axis: _word_pattern(sorted(map(re.escape, table), key=len, reverse=True))
    for axis, table in _SWAPS.items()
}
_UNSAFE_PATTERNS = {axis: _word_pattern(patterns) for axis, patterns in _UNSAFE.items()}
# Numbers and quotations are as likely as not written in the image.
_NUMBER_OR_QUOTATION = re.compile(r"[\d\"“”]")
_DIRECTION_INSIDE = re.compile(r"\w*(?:left|right)\w*", re.IGNORECASE)
_HARMLESS_PATTERN = re.compile(_HARMLESS, re.IGNORECASE)


def swap_direction_words(expression: str, axis: str) -> str:
    """Exchanges left/right or top/bottom words, so that the text fits a flipped image.

    Capitals (``Left``, ``LEFT``), punctuation and spacing are kept; swapping twice restores the
    text. It looks at words, not at their meaning: ask :func:`is_flippable` first.

    Args:
        expression: as annotated.
        axis: "horizontal" or "vertical".
    """
    check_axis(axis)
    table = _SWAPS[axis]
    return _SWAP_PATTERNS[axis].sub(lambda m: _match_case(table[m[0].lower()], m[0]), expression)


def is_flippable(expression: str, axis: str) -> bool:
    """Whether :func:`swap_direction_words` makes the expression true of the flipped image.

    Careful rather than complete: False as soon as a word may not mean a side, or may name writing,
    numbers or a clock position in the image. What the image shows and the expression does not
    say, such as lettering on a shirt, is mirrored all the same.

    Args:
        expression: as annotated.
        axis: "horizontal" or "vertical".

    Returns:
        False for e.g. "right behind the man", "the slice that is left", "player 7", "at 3 o'clock",
        "man on the rigth" or, vertically, "the ball beneath the chair".
    """
    check_axis(axis)
    if _NUMBER_OR_QUOTATION.search(expression) or _UNSAFE_PATTERNS[axis].search(expression):
        return False
    if axis == "vertical":
        return True
    if _SUSPICIOUS.search(expression):
        return False
    return all(
        word.lower() in _SWAPS[axis] or _HARMLESS_PATTERN.fullmatch(word)
        for word in _DIRECTION_INSIDE.findall(expression)
    )


def check_axis(axis: str) -> None:
    """Refuse anything but "horizontal" and "vertical"."""
    if axis not in AXES:
        raise ValueError(f"axis: expected one of {AXES}, found {axis!r}")


def _match_case(word: str, model: str) -> str:
    """``word`` in lower case, capitalised or in upper case, like ``model``."""
    if model.isupper():
        return word.upper()
    return word.capitalize() if model[0].isupper() else word
