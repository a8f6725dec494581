"""Word and sentence tables of the Shapes grammar.

Direction words are limited to pairs whose swap needs no context, so that an augmentation may flip
an image and exchange the words: left/right and leftmost/rightmost; above/below, over/under,
top/bottom, topmost/bottommost, upper/lower and highest/lowest. "right" has no other meaning here.
"""

from typing import Dict, List, Tuple

from .render import SHAPES
from .scene import COLORS, SIZES

# The first word of each tuple is the usual one; `_pick` takes the others less often.
COLOR_WORDS = {color: (color,) for color in COLORS}
COLOR_WORDS.update(gray=("gray", "grey"), purple=("purple", "violet"), cyan=("cyan", "turquoise"))
SIZE_WORDS = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "midsize"),
    "large": ("large", "big", "huge"),
}
SHAPE_WORDS = {
    "circle": (("circle", "circles"), ("disc", "discs")),
    "square": (("square", "squares"), ("box", "boxes")),
    "triangle": (("triangle", "triangles"),),
    "star": (("star", "stars"),),
    "ring": (("ring", "rings"), ("hoop", "hoops")),
    "cross": (("cross", "crosses"),),
}
GENERIC_NOUNS = (
    ("object", "objects"),
    ("thing", "things"),
    ("shape", "shapes"),
    ("item", "items"),
    ("figure", "figures"),
)
NUMBER_WORDS = {2: "two", 3: "three", 4: "four"}
ORDINAL_WORDS = {1: "first", 2: "second", 3: "third", 4: "fourth"}
SIDE_WORDS = {"left": "left", "right": "right", "above": "top", "below": "bottom"}
HALF_WORDS = {
    "left": ("left",),
    "right": ("right",),
    "above": ("top", "upper"),
    "below": ("bottom", "lower"),
}
MOST_WORDS = {
    "left": ("leftmost",),
    "right": ("rightmost",),
    "above": ("topmost", "highest"),
    "below": ("bottommost", "lowest"),
    "largest": ("largest", "biggest"),
    "smallest": ("smallest", "tiniest"),
}
RELATION_WORDS = {
    "left": ("left of", "to the left of", "on the left of", "on the left side of"),
    "right": ("right of", "to the right of", "on the right of", "on the right side of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "near": ("closest to", "nearest to", "nearest"),
    "far": ("farthest from", "furthest from"),
}
VERBS = ("that is", "which is", "lying", "located", "placed", "sitting", "positioned")
PLURAL_VERBS = ("that are", "which are") + VERBS[2:]
EXCEPT_WORDS = (
    "except",
    "except for",
    "but",
    "apart from",
    "other than",
    "excluding",
    "aside from",
    "besides",
)
AND_WORDS = ("and", "and", "and", "as well as", "together with", "along with", "plus")
PREFIXES = (
    "find",
    "show me",
    "please find",
    "select",
    "please select",
    "segment",
    "mark",
    "highlight",
    "locate",
    "pick out",
    "look for",
)
PICTURE_WORDS = ("image", "picture", "scene")

PLURAL_TEMPLATES = (
    "all {nps}",
    "all the {nps}",
    "the {nps}",
    "{nps}",
    "every {np}",
    "each {np}",
    "all of the {nps}",
    "each of the {nps}",
    "every one of the {nps}",
    "every single {np}",
)
TEMPLATES: Dict[str, Tuple[str, ...]] = {
    "one": ("the {np}", "the {np}", "{np}", "the only {np}", "the single {np}"),
    "all": PLURAL_TEMPLATES,
    "count": (
        "the {n} {nps}",
        "the {n} {nps}",
        "{n} {nps}",
        "exactly {n} {nps}",
        "the group of {n} {nps}",
        "the set of {n} {nps}",
    ),
    "extreme": (
        "the {most} {np}",
        "{most} {np}",
        "the {most} of the {nps}",
        "the {np} farthest to the {side}",
        "the {np} furthest to the {side}",
    ),
    "extremes": (
        "the {n} {most} {nps}",
        "{n} {most} {nps}",
        "the {most} {n} {nps}",
        "the {n} {nps} farthest to the {side}",
        "the {n} {nps} furthest to the {side}",
    ),
    "pair_side": (
        "the {half} {np}",
        "the {half} {np}",
        "{half} {np}",
        "the {half} one of the {nps}",
    ),
    "ordinal": (
        "the {ordinal} {np} from the {side}",
        "the {ordinal} {np} from the {side}",
        "{ordinal} {np} from the {side}",
        "the {np} that is {ordinal} from the {side}",
        "counting from the {side} the {ordinal} {np}",
        "the {ordinal} from the {side} among the {nps}",
    ),
    "size": (
        "the {most} {np}",
        "{most} {np}",
        "the {most} of the {nps}",
        "the {most} one of the {nps}",
    ),
    "side": ("{head} {relation} the {anchor}", "{head} {verb} {relation} the {anchor}"),
    "distance": (
        "the {np} {relation} the {anchor}",
        "the {np} {verb} {relation} the {anchor}",
        "{np} {relation} the {anchor}",
    ),
    "half": (
        "{head} in the {half} half",
        "{head} in the {half} half of the {picture}",
        "{head} on the {half} side of the {picture}",
        "{head} {verb} in the {half} half of the {picture}",
        "{head} in the {half} part of the {picture}",
    ),
    "list": (),
    "shared_noun": ("the {colors} {nps}", "all {colors} {nps}", "{colors} {nps}"),
    "except_one": ("{base} {except} the {exception}",),
    "except_all": ("{base} {except} the {exceptions}",),
    "except_most": ("{base} {except} the {most} one",),
    "not": (
        "all {nps} that are not {attribute}",
        "the {nps} that are not {attribute}",
        "all {nps} which are not {attribute}",
        "every {np} that is not {attribute}",
        "each {np} which is not {attribute}",
    ),
}
BASE_TEMPLATES = ("every {np}", "all {nps}", "all the {nps}", "each {np}", "all of the {nps}")


def vocabulary_words() -> List[str]:
    """Every word of the grammar, sorted: the vocabulary of ``ShapesTokenizer``.

    Trained weights depend on this list; a new word belongs into a new version of the data set.
    """
    phrases: List[str] = list(SHAPES) + list(SIZES) + list(COLORS)
    for table in (COLOR_WORDS, SIZE_WORDS, HALF_WORDS, MOST_WORDS, RELATION_WORDS, TEMPLATES):
        for options in table.values():
            phrases.extend(options)
    for pairs in (*SHAPE_WORDS.values(), GENERIC_NOUNS, (("one", "ones"),)):
        for pair in pairs:
            phrases.extend(pair)
    for words in (NUMBER_WORDS, ORDINAL_WORDS, SIDE_WORDS):
        phrases.extend(words.values())
    for options in (VERBS, PLURAL_VERBS, EXCEPT_WORDS, AND_WORDS, PREFIXES, PICTURE_WORDS):
        phrases.extend(options)
    phrases.extend(("both", "and", "in the", "which", "that", "is", "are", "are not"))
    words = {word for phrase in phrases for word in phrase.split()}
    return sorted(word for word in words if "{" not in word)
