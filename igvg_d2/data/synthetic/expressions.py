"""Expressions about a scene: what may be said of it, what is meant, and which objects that is.

Every expression starts as an `ExpressionPlan` drawn without looking at the scene: kind, form, which
attributes are named, and whether a target exists. Filling the plan from the scene decides words
only. So the form of a text says nothing about whether it has a target.
"""

from dataclasses import dataclass
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from .grammar import Meaning
from .render import SHAPES
from .scene import COLORS, SIZES, Scene, SceneObject

KINDS = ("attribute", "plural", "count", "order", "relation", "coordination", "exclusion")
DIRECTIONS = ("left", "right", "above", "below")
VALUES = {"size": SIZES, "color": COLORS, "shape": SHAPES}

# Smallest difference, over the image side, that counts as a difference of position.
POSITION_MARGIN = 0.06

# Attribute patterns (s size, c colour, h shape) with their shares.
SINGLE_PATTERNS = {"ch": 0.36, "h": 0.12, "c": 0.12, "sh": 0.14, "sc": 0.08, "sch": 0.18}
GROUP_PATTERNS = {"ch": 0.34, "h": 0.24, "c": 0.18, "sh": 0.14, "sc": 0.10}
SIZELESS_PATTERNS = {"ch": 0.3, "h": 0.4, "c": 0.3}
EXCEPTION_PATTERNS = {"h": "cs", "c": "hs", "ch": "s", "sh": "c", "sc": "h"}
_MISSING_MODES = {"swap": 0.6, "absent": 0.4}

FORMS = {
    "attribute": {"one": 1.0},
    "plural": {"all": 1.0},
    "count": {"count": 1.0},
    "order": {"extreme": 0.3, "ordinal": 0.34, "extremes": 0.1, "size": 0.16, "pair_side": 0.1},
    "relation": {"side": 0.62, "distance": 0.2, "half": 0.18},
    "coordination": {"list": 0.75, "shared_noun": 0.25},
    "exclusion": {"except_one": 0.4, "except_all": 0.2, "except_most": 0.16, "not": 0.24},
}
# Counts and ranks with their shares.
NUMBERS = {
    "count": {"2": 0.62, "3": 0.3, "4": 0.08},
    "extremes": {"2": 0.7, "3": 0.3},
    "ordinal": {"1": 0.15, "2": 0.5, "3": 0.3, "4": 0.05},
}
# Forms that can fail although everything they name is there.
FALSIFIABLE_FORMS = (
    "count",
    "ordinal",
    "extremes",
    "side",
    "half",
    "except_one",
    "except_all",
    "not",
)


@dataclass(frozen=True)
class ExpressionPlan:
    """An expression before it meets a scene.

    Attributes:
        kind, form: see `Meaning`.
        no_target_kind: "" for an expression with targets, else absent, swap or false.
        pattern, other_pattern: attributes named of the objects and of the anchor or exception.
        number: count or rank, 0 where the form has none.
        plural: all of them rather than the only one.
        part_plurals: one flag per coordinated part.
        novel: the first description must be a held-out (colour, shape) pair.
        contrast: a relation must have to choose among several candidates.
    """

    kind: str
    form: str
    no_target_kind: str
    pattern: str
    other_pattern: str = ""
    number: int = 0
    plural: bool = False
    part_plurals: Tuple[bool, ...] = ()
    novel: bool = False
    contrast: bool = False


def _draw(rng: np.random.Generator, shares: Dict[str, float]) -> str:
    """Draw a key with probability proportional to its share."""
    weights = np.array(list(shares.values()))
    return list(shares)[int(rng.choice(len(weights), p=weights / weights.sum()))]


def _sample_patterns(
    rng: np.random.Generator, kind: str, form: str, number: int, novel: bool
) -> Tuple[str, str]:
    """Attributes named of the objects, and of the anchor or exception ("" without one)."""
    patterns = SINGLE_PATTERNS if form == "one" else GROUP_PATTERNS
    if kind in ("order", "relation") or number >= 3:
        patterns = SIZELESS_PATTERNS
    pattern = _draw(rng, patterns)
    if novel or form == "shared_noun":
        pattern = "sch" if form == "one" and rng.random() < 0.25 else "ch"
    if kind == "relation":
        return pattern, _draw(rng, SINGLE_PATTERNS)
    if kind != "exclusion":
        return pattern, ""
    if form == "not" and "h" not in pattern:
        pattern = "h"  # "all red things that are not stars" would need another template
    return pattern, _draw(rng, {letter: 1.0 for letter in EXCEPTION_PATTERNS[pattern]})


def sample_plan(
    rng: np.random.Generator,
    kind_shares: Dict[str, float],
    *,
    no_target_share: float,
    plural_share: float,
    novel_share: float,
) -> ExpressionPlan:
    """Draw the plan of one expression.

    Args:
        rng: the only source of randomness.
        kind_shares: relative frequency of each of ``KINDS``.
        no_target_share: probability of a plan without target, the same for every kind and form.
        plural_share, novel_share: see `SplitConfig`; from a plural share of 0.5 on order
            expressions ask for several objects more often as well.
    """
    kind = _draw(rng, kind_shares)
    forms = dict(FORMS[kind])
    if kind == "order" and plural_share >= 0.5:
        forms["extremes"] = 1.5
    form = _draw(rng, forms)
    no_target_kind = ""
    if rng.random() < no_target_share:
        falsifiable = form in FALSIFIABLE_FORMS
        modes = {"false": 0.65, "swap": 0.2, "absent": 0.15} if falsifiable else _MISSING_MODES
        no_target_kind = _draw(rng, modes)
    number = int(_draw(rng, NUMBERS[form])) if form in NUMBERS else 0
    if number == 1 and no_target_kind == "false":
        # A first one exists whenever any does; the share of no-target stays that of other ranks.
        no_target_kind = _draw(rng, _MISSING_MODES)
    novel = bool(rng.random() < novel_share)
    pattern, other = _sample_patterns(rng, kind, form, number, novel)
    several = form == "all" or (form in ("side", "half") and bool(rng.random() < plural_share))
    part_plurals = tuple(bool(flag) for flag in rng.random(2 + (rng.random() < 0.15)) < 0.45)
    return ExpressionPlan(
        kind=kind,
        form=form,
        no_target_kind=no_target_kind,
        pattern=pattern,
        other_pattern=other,
        number=number,
        plural=several,
        part_plurals=part_plurals if kind == "coordination" else (),
        novel=novel,
        contrast=kind == "relation" and bool(rng.random() < 0.7),
    )


def _sort_key(direction: str, scene: Scene) -> Callable[[SceneObject], float]:
    """Coordinate over the image side that grows away from ``direction``."""
    axis, side = (0, scene.width) if direction in ("left", "right") else (1, scene.height)
    sign = 1 if direction in ("left", "above") else -1
    return lambda item: sign * item.position[axis] / side


def _resolve_order(meaning: Meaning, scene: Scene, found: List[int]) -> Optional[List[int]]:
    """Targets of superlatives and ordinals."""
    form, number = meaning.form, meaning.number
    if not found:
        return []
    if form == "size":
        ranks = [SIZES.index(scene.objects[index].size) for index in found]
        wanted = max(ranks) if meaning.direction == "largest" else min(ranks)
        best = [index for index, rank in zip(found, ranks) if rank == wanted]
        return best if len(found) >= 2 and len(best) == 1 else None
    if form == "pair_side" and len(found) != 2:
        return None
    if number and len(found) < number:
        return []
    if len(found) < 2 or (form == "extremes" and len(found) == number):
        return None
    key = _sort_key(meaning.direction, scene)
    ordered = sorted(found, key=lambda index: key(scene.objects[index]))
    values = [key(scene.objects[index]) for index in ordered]
    last = max(number, 1)
    first = last if form == "ordinal" else 1
    # The chosen ones must stand clear of the object before them and of the one behind them.
    for border in {first - 1, last} - {0, len(ordered)}:
        if values[border] - values[border - 1] < POSITION_MARGIN:
            return None
    return ordered[first - 1 : last]


def _resolve_distance(meaning: Meaning, scene: Scene, found: List[int], anchor: int):
    """The object clearly closest to (or farthest from) the anchor."""
    origin = scene.objects[anchor].position
    side = min(scene.height, scene.width)
    candidates = [index for index in found if index != anchor]
    if len(candidates) < 2:
        return None
    sign = 1 if meaning.direction == "near" else -1
    scored = []
    for index in candidates:
        x, y = scene.objects[index].position
        scored.append((sign * float(np.hypot(x - origin[0], y - origin[1])) / side, index))
    scored.sort()
    return [scored[0][1]] if scored[1][0] - scored[0][0] >= POSITION_MARGIN else None


def _resolve_relation(meaning: Meaning, scene: Scene, found: List[int]) -> Optional[List[int]]:
    """Targets of relations to an anchor object or to the middle of the image."""
    origin = 0.5 if meaning.direction in ("left", "above") else -0.5
    candidates = found
    if meaning.form != "half":
        anchors = [i for i, item in enumerate(scene.objects) if meaning.other.matches(item)]
        if len(anchors) > 1:
            return None
        if not found or not anchors:
            return []
        if meaning.form == "distance":
            return _resolve_distance(meaning, scene, found, anchors[0])
        origin = _sort_key(meaning.direction, scene)(scene.objects[anchors[0]])
        candidates = [index for index in found if index != anchors[0]]
    if found and not candidates:
        return None
    key = _sort_key(meaning.direction, scene)
    offsets = [key(scene.objects[index]) - origin for index in candidates]
    if any(abs(offset) < POSITION_MARGIN for offset in offsets):
        return None
    targets = [index for index, offset in zip(candidates, offsets) if offset < 0]
    return targets if not targets or meaning.plural == (len(targets) > 1) else None


def _resolve_coordination(meaning: Meaning, scene: Scene) -> Optional[List[int]]:
    """Union of the parts; a list of which only some parts exist is never written."""
    sets = [
        [index for index, item in enumerate(scene.objects) if description.matches(item)]
        for description, _ in meaning.parts
    ]
    if not any(sets):
        return []
    union = sorted(set().union(*sets))
    if not all(sets) or len(union) < sum(len(part) for part in sets):
        return None
    if meaning.form == "list":
        if any(plural != (len(part) > 1) for part, (_, plural) in zip(sets, meaning.parts)):
            return None
    return union


def _resolve_exclusion(meaning: Meaning, scene: Scene, found: List[int]) -> Optional[List[int]]:
    """The described objects without the excepted ones."""
    if not found:
        return []
    if meaning.form == "except_most":
        first = _resolve_order(
            Meaning("order", "extreme", meaning.description, direction=meaning.direction),
            scene,
            found,
        )
        return None if first is None else [index for index in found if index != first[0]]
    excepted = [index for index in found if meaning.other.matches(scene.objects[index])]
    wrong_number = {
        "except_one": len(excepted) != 1,
        "except_all": len(excepted) < 2,
        "not": not excepted,
    }
    if wrong_number[meaning.form]:
        return None
    return [index for index in found if index not in excepted]


def resolve(meaning: Meaning, scene: Scene) -> Optional[Tuple[int, ...]]:
    """Find the objects a meaning refers to.

    Returns:
        indices into ``scene.objects``, ascending; () when nothing fits, which makes it a no-target
        expression; None when it is ambiguous, only half true or an odd thing to say: such an
        expression must not be written.
    """
    found = [i for i, item in enumerate(scene.objects) if meaning.description.matches(item)]
    targets: Optional[Sequence[int]]
    if meaning.kind == "attribute":
        targets = found if len(found) <= 1 else None
    elif meaning.kind == "plural":
        targets = found if len(found) != 1 else None
    elif meaning.kind == "count":
        targets = found if len(found) == meaning.number else []
    elif meaning.kind == "order":
        targets = _resolve_order(meaning, scene, found)
    elif meaning.kind == "relation":
        targets = _resolve_relation(meaning, scene, found)
    elif meaning.kind == "coordination":
        targets = _resolve_coordination(meaning, scene)
    else:
        targets = _resolve_exclusion(meaning, scene, found)
    return None if targets is None else tuple(sorted(targets))
