"""The Shapes grammar: from the meaning of an expression to one of its paraphrases."""

from dataclasses import dataclass, field
from typing import Dict, List, Optional, Tuple

import numpy as np

from . import words
from .scene import SceneObject


@dataclass(frozen=True)
class Description:
    """Wanted attributes; None leaves an attribute open."""

    size: Optional[str] = None
    color: Optional[str] = None
    shape: Optional[str] = None

    def matches(self, item: SceneObject) -> bool:
        """Whether ``item`` has every attribute that is asked for."""
        return (
            self.size in (None, item.size)
            and self.color in (None, item.color)
            and self.shape in (None, item.shape)
        )


@dataclass(frozen=True)
class Meaning:
    """What an expression says, before it is put into words.

    Attributes:
        kind: attribute, plural, count, order, relation, coordination or exclusion.
        form: the variety within the kind, a key of ``TEMPLATES``.
        description: the objects the expression is about.
        plural: whether it speaks of all of them rather than of the only one.
        direction: left, right, above or below ("" when the form has none); for ``size`` forms
            "largest" or "smallest".
        number: counted objects, or the rank of an ordinal; 0 when the form has none.
        other: anchor of a relation, or the attributes of the exception.
        parts: coordinated (description, plural) pairs; only for coordination.
    """

    kind: str
    form: str
    description: Description = field(default_factory=Description)
    plural: bool = False
    direction: str = ""
    number: int = 0
    other: Optional[Description] = None
    parts: Tuple[Tuple[Description, bool], ...] = ()


def _pick(rng: np.random.Generator, options: Tuple, usual: float = 0.7):
    """The first option with probability ``usual``, else any of the others."""
    if len(options) == 1 or rng.random() < usual:
        return options[0]
    return options[1 + rng.integers(len(options) - 1)]


def _any(rng: np.random.Generator, options: Tuple):
    """Any option with equal probability."""
    return options[rng.integers(len(options))]


def _adjectives(rng: np.random.Generator, description: Description) -> List[str]:
    """Size and colour words of a description."""
    found = []
    if description.size:
        found.append(_pick(rng, words.SIZE_WORDS[description.size], 0.6))
    if description.color:
        found.append(_pick(rng, words.COLOR_WORDS[description.color], 0.85))
    return found


def noun_phrase(
    rng: np.random.Generator, description: Description, generic: Tuple = words.GENERIC_NOUNS
) -> Tuple[str, str]:
    """Noun phrase without article, as (singular, plural) that differ in the noun only."""
    if description.shape:
        nouns = _pick(rng, words.SHAPE_WORDS[description.shape], 0.85)
    else:
        nouns = _any(rng, generic)
    prefix = "".join(word + " " for word in _adjectives(rng, description))
    return prefix + nouns[0], prefix + nouns[1]


def _clause_phrase(rng: np.random.Generator, description: Description) -> Tuple[str, str]:
    """Like `noun_phrase`, sometimes with the colour or size in a clause: "star that is red"."""
    known = [name for name in ("size", "color") if getattr(description, name)]
    if not description.shape or not known or rng.random() > 0.15:
        return noun_phrase(rng, description, words.GENERIC_NOUNS + (("one", "ones"),))
    name = known[rng.integers(len(known))]
    moved = Description(**{name: getattr(description, name)})
    rest = {key: getattr(description, key) for key in ("size", "color", "shape") if key != name}
    single, plural = noun_phrase(rng, Description(**rest))
    word = _adjectives(rng, moved)[0]
    pronoun = _any(rng, ("that", "which"))
    return f"{single} {pronoun} is {word}", f"{plural} {pronoun} are {word}"


def _exception_words(rng: np.random.Generator, exception: Description) -> Dict[str, str]:
    """Words for the excepted objects: "red one", "red ones", or the bare attribute."""
    if exception.shape:
        single, plural = noun_phrase(rng, exception)
        return {"exception": single, "exceptions": plural, "attribute": ""}
    adjectives = " ".join(_adjectives(rng, exception))
    return {
        "exception": adjectives + " one",
        "exceptions": adjectives + " ones",
        "attribute": adjectives,
    }


def _list_text(rng: np.random.Generator, meaning: Meaning) -> str:
    """Coordinated noun phrases: "the red star and all blue rings"."""
    bare = rng.random() < 0.2
    phrases = []
    for description, plural in meaning.parts:
        single, many = noun_phrase(rng, description)
        if plural:
            template = "{nps}" if bare else _any(rng, ("all {nps}", "all the {nps}", "the {nps}"))
        else:
            template = "{np}" if bare else "the {np}"
        phrases.append(template.format(np=single, nps=many))
    conjunction = _any(rng, words.AND_WORDS)
    if len(phrases) == 2 and conjunction == "and" and not bare and rng.random() < 0.15:
        if not meaning.parts[0][1]:
            return "both " + " and ".join(phrases)
    return ", ".join(phrases[:-1]) + f" {conjunction} {phrases[-1]}"


def _fields(rng: np.random.Generator, meaning: Meaning) -> Dict[str, str]:
    """Every placeholder that a template of this meaning may use."""
    description, direction = meaning.description, meaning.direction
    simple = meaning.form in ("one", "all")
    phrase = _clause_phrase if simple else noun_phrase
    single, plural = phrase(rng, description)
    heads = words.PLURAL_TEMPLATES if meaning.plural else ("the {np}", "the {np}", "{np}")
    fields = {
        "np": single,
        "nps": plural,
        "head": _any(rng, heads).format(np=single, nps=plural),
        "base": _any(rng, words.BASE_TEMPLATES).format(np=single, nps=plural),
        "n": words.NUMBER_WORDS.get(meaning.number, ""),
        "ordinal": words.ORDINAL_WORDS.get(meaning.number, ""),
        "except": _any(rng, words.EXCEPT_WORDS),
        "picture": _any(rng, words.PICTURE_WORDS),
    }
    # "every star that is ...", but "all stars that are ..." and "each of the stars that are ...".
    fields["verb"] = _any(
        rng, words.VERBS if fields["head"].endswith(single) else words.PLURAL_VERBS
    )
    for name, table in (
        ("most", words.MOST_WORDS),
        ("half", words.HALF_WORDS),
        ("relation", words.RELATION_WORDS),
    ):
        if direction in table:
            fields[name] = _any(rng, table[direction])
    fields["side"] = words.SIDE_WORDS.get(direction, "")
    if meaning.other is not None:
        fields["anchor"] = noun_phrase(rng, meaning.other)[0]
        fields.update(_exception_words(rng, meaning.other))
    if meaning.form == "shared_noun":
        colors = [_adjectives(rng, Description(color=part.color))[0] for part, _ in meaning.parts]
        fields["colors"] = " and ".join(colors)
        fields["nps"] = noun_phrase(rng, Description(shape=description.shape))[1]
    return fields


def verbalize(meaning: Meaning, rng: np.random.Generator) -> str:
    """Put a meaning into words.

    The choice of words depends on ``rng`` and on the meaning only, never on whether the scene
    holds a target, so that the text alone does not give a no-target sample away.

    Returns:
        lower-case English; the words are all in `vocabulary_words`, a list may contain commas.
    """
    if meaning.form == "list":
        text = _list_text(rng, meaning)
    else:
        text = _any(rng, words.TEMPLATES[meaning.form]).format(**_fields(rng, meaning))
        if meaning.form in ("one", "all", "count") and rng.random() < 0.12:
            text += f" in the {_any(rng, words.PICTURE_WORDS)}"
    if rng.random() < 0.12:
        text = f"{_any(rng, words.PREFIXES)} {text}"
    return text
