"""What an expression without target lacks: its class of object, or what tells objects apart.

* "absent": it names classes, and the image has no object of any of them;
* "lookalike": the image has an object of a class that it names: an attribute, a relation or a
  number must be what does not fit;
* "unnamed": it names none of the classes ("the one on the left"), so nothing can be said.

A file may state it as ``absent_kind`` beside the text. The synthetic data have a finer
``no_target_kind``: "absent" is no object within one attribute of what is described, or of the
anchor of a relation; "swap" (of one attribute) and "false" (number, rank or place) are look-alikes.
Else a class is named if its name in ``categories``, a word of `SYNONYMS`, or the plural of one
stands in the text as whole words; of overlapping ones the longest counts ("hot dog" is no dog).

Limits: every noun counts, also that of an anchor ("left of the dog"); adjectives are not told from
nouns ("orange"); what is not annotated, and classes outside ``categories``, are not seen. Crowds
are objects. EvoSeg's rule is this one without synonyms, and with "unnamed" counted as absent.
"""

import re
from typing import Any, Collection, Dict, Optional, Set

from .common import RecordError, short

KINDS = ("absent", "lookalike", "unnamed")
_SYNTHETIC_KINDS = {"absent": "absent", "swap": "lookalike", "false": "lookalike"}

# Of the classes of COCO; regular plurals are made of them.
_SYNONYMS = """
person: people man men woman women guy boy girl lady gentleman kid child children baby player skier
surfer rider driver catcher batter pitcher umpire; bicycle: bike; motorcycle: motorbike;
airplane: plane aeroplane jet; boat: ship; bird: seagull duck goose; cat: kitten; dog: puppy;
horse: pony; sheep: lamb; cow: calf calves bull cattle; handbag: purse; suitcase: luggage;
sports ball: ball; baseball bat: bat; baseball glove: mitt; cup: mug; knife: knives;
donut: doughnut; couch: sofa; potted plant: plant; dining table: table; tv: television monitor;
mouse: mice; cell phone: phone cellphone; refrigerator: fridge; teddy bear: teddy
"""
SYNONYMS = dict(pair.split(": ") for pair in " ".join(_SYNONYMS.split()).split("; "))


def stated_kind(record: Dict[str, Any]) -> Optional[str]:
    """The kind that a file states beside the text, or None; RecordError if it is not of `KINDS`."""
    kind = record.get("absent_kind")
    if kind is not None and kind not in KINDS:
        raise RecordError("absent_kind", f"expected one of {KINDS}, found {short(kind)}")
    made = record.get("no_target_kind")
    return kind or (_SYNTHETIC_KINDS.get(made) if isinstance(made, str) else None)


class ClassNames:
    """Finds the classes that a text names.

    Args:
        names: class id -> name.
    """

    def __init__(self, names: Dict[int, str]):
        self._classes: Dict[str, Set[int]] = {}
        for class_id, name in names.items():
            name = name.lower()
            for word in (name, *SYNONYMS.get(name, "").split()):
                for form in (word, f"{word}s", f"{word}es", re.sub("y$", "ies", word)):
                    self._classes.setdefault(form, set()).add(class_id)
        longest_first = sorted(filter(str.strip, self._classes), key=len, reverse=True)
        self._pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")

    def kind(self, expression: str, classes: Collection[int]) -> str:
        """Kind of an expression about an image with objects of these classes; "" without names."""
        found = filter(None, self._pattern.findall(expression.lower()))
        named = set().union(*(self._classes[form] for form in found))
        if not named:
            return "unnamed" if self._classes else ""
        return "absent" if named.isdisjoint(classes) else "lookalike"
