"""Filling an expression plan from a scene: rejection sampling against `resolve`."""

from typing import Optional, Tuple

import numpy as np

from .expressions import DIRECTIONS, VALUES, ExpressionPlan, resolve
from .grammar import Description, Meaning
from .scene import HELD_OUT_PAIRS, Scene, pick

MAX_PROPOSALS = 60
_LETTERS = {"s": "size", "c": "color", "h": "shape"}


def _describe(scene: Scene, index: int, pattern: str) -> Description:
    """Description of an object by the attributes of ``pattern``."""
    item = scene.objects[index]
    return Description(**{_LETTERS[letter]: getattr(item, _LETTERS[letter]) for letter in pattern})


def _random_description(rng: np.random.Generator, pattern: str) -> Description:
    """Any combination of attribute values."""
    names = [_LETTERS[letter] for letter in pattern]
    return Description(**{name: pick(rng, VALUES[name]) for name in names})


def _swap_one(rng: np.random.Generator, description: Description) -> Description:
    """The description with one attribute replaced by another value."""
    values = {name: getattr(description, name) for name in VALUES}
    named = [name for name, value in values.items() if value]
    name = named[rng.integers(len(named))]
    values[name] = pick(rng, [value for value in VALUES[name] if value != values[name]])
    return Description(**values)


def _is_novel(description: Description) -> bool:
    """Whether colour and shape are a pair that training never shows."""
    return (description.color, description.shape) in HELD_OUT_PAIRS


def _is_absent(description: Description, scene: Scene) -> bool:
    """Whether no object of the scene comes within one attribute of the description."""
    named = [name for name in VALUES if getattr(description, name)]
    agree = [
        sum(getattr(item, name) == getattr(description, name) for name in named)
        for item in scene.objects
    ]
    return max(agree) <= max(len(named) - 2, 0)


def _wanted(
    rng: np.random.Generator, scene: Scene, pattern: str, no_target_kind: str, novel: bool
) -> Optional[Description]:
    """Propose a description that exists, or one that does not, in the way the plan asks for."""
    if no_target_kind == "absent":
        description = _random_description(rng, pattern)
        fits = _is_absent(description, scene)
    else:
        description = _describe(scene, int(rng.integers(len(scene.objects))), pattern)
        fits = True
        if no_target_kind == "swap":
            description = _swap_one(rng, description)
            fits = not any(description.matches(item) for item in scene.objects)
    return description if fits and (not novel or _is_novel(description)) else None


def _propose_parts(
    rng: np.random.Generator, scene: Scene, plan: ExpressionPlan
) -> Optional[Tuple[Tuple[Description, bool], ...]]:
    """Propose the parts of a coordination; all of them exist or none does."""
    parts = []
    for number, plural in enumerate(plan.part_plurals):
        pattern = plan.pattern
        if number and plan.form == "list":
            pattern = ("h", "ch", "ch", "c")[rng.integers(4)]
        part = _wanted(rng, scene, pattern, plan.no_target_kind, plan.novel and not number)
        if part is None:
            return None
        if number and plan.form == "shared_noun":
            part = Description(color=part.color, shape=parts[0][0].shape)
        parts.append((part, plural))
    if plan.form == "shared_noun":
        parts = [(part, True) for part, _ in parts[:2]]
    descriptions = [part for part, _ in parts]
    return tuple(parts) if len(set(descriptions)) == len(parts) else None


def _propose_other(
    rng: np.random.Generator, scene: Scene, plan: ExpressionPlan, description: Description
) -> Optional[Description]:
    """Propose the anchor of a relation or the exception of an exclusion."""
    if plan.kind == "exclusion":
        if plan.no_target_kind in ("swap", "absent"):
            return _random_description(rng, plan.other_pattern)
        inside = [i for i, item in enumerate(scene.objects) if description.matches(item)]
        return _describe(scene, inside[rng.integers(len(inside))], plan.other_pattern)
    return _wanted(rng, scene, plan.other_pattern, "", False)


def _propose(rng: np.random.Generator, scene: Scene, plan: ExpressionPlan) -> Optional[Meaning]:
    """One random meaning of the planned form, which may still turn out to be unusable."""
    if plan.kind == "coordination":
        parts = _propose_parts(rng, scene, plan)
        if parts is None:
            return None
        return Meaning(plan.kind, plan.form, parts[0][0], parts=parts)
    # Without target, either the objects or their anchor may be what is missing.
    anchor_missing = (
        plan.form in ("side", "distance")
        and plan.no_target_kind in ("swap", "absent")
        and rng.random() < 0.4
    )
    description_kind = "" if anchor_missing else plan.no_target_kind
    description = _wanted(rng, scene, plan.pattern, description_kind, plan.novel)
    if description is None:
        return None
    other = None
    if plan.other_pattern and plan.form not in ("half", "except_most"):
        if anchor_missing:
            other = _wanted(rng, scene, plan.other_pattern, plan.no_target_kind, False)
        else:
            other = _propose_other(rng, scene, plan, description)
        if other is None:
            return None
    directions = {"size": ("largest", "smallest"), "distance": ("near", "far")}
    choices = directions.get(plan.form, DIRECTIONS)
    directed = plan.kind in ("order", "relation") or plan.form == "except_most"
    direction = pick(rng, choices) if directed else ""
    return Meaning(plan.kind, plan.form, description, plan.plural, direction, plan.number, other)


def _mentions_held_out(meaning: Meaning) -> bool:
    """Whether the words name a pair that training must not show."""
    descriptions = [meaning.description, *(part for part, _ in meaning.parts)]
    if meaning.other is not None:
        descriptions.append(meaning.other)
        if meaning.kind == "exclusion":
            base = meaning.description
            descriptions.append(
                Description(
                    color=base.color or meaning.other.color, shape=base.shape or meaning.other.shape
                )
            )
    return any(_is_novel(description) for description in descriptions)


def realize(
    plan: ExpressionPlan, scene: Scene, rng: np.random.Generator, *, held_out: bool
) -> Optional[Tuple[Meaning, Tuple[int, ...]]]:
    """Find a meaning of the planned form that is unambiguous in the scene.

    Args:
        plan: what the expression has to look like.
        scene: what it is about.
        rng: the only source of randomness.
        held_out: whether held-out (colour, shape) pairs may be named. In training they are not
            even named in no-target expressions, otherwise the words would give the answer away.

    Returns:
        the meaning and the indices of its targets, or None if no proposal fits the scene.
    """
    for _ in range(MAX_PROPOSALS):
        meaning = _propose(rng, scene, plan)
        if meaning is None or (not held_out and _mentions_held_out(meaning)):
            continue
        targets = resolve(meaning, scene)
        if targets is None or bool(targets) == bool(plan.no_target_kind):
            continue
        if plan.contrast and targets:
            found = sum(meaning.description.matches(item) for item in scene.objects)
            if found == len(targets):
                continue
        return meaning, targets
    return None
