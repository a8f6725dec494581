"""Which objects an expression means, worked out by hand on one scene."""

import numpy as np
import pytest

from igvg_d2.data.synthetic.expressions import ExpressionPlan, resolve
from igvg_d2.data.synthetic.grammar import Description, Meaning, verbalize
from igvg_d2.data.synthetic.proposals import realize
from igvg_d2.data.synthetic.scene import Scene, SceneObject

RED_STAR, RED_RING = Description(color="red", shape="star"), Description(color="red", shape="ring")
STAR, RING, RED, BLUE = (
    Description(**{k: v})
    for k, v in (("shape", "star"), ("shape", "ring"), ("color", "red"), ("color", "blue"))
)
CROSS = Description(shape="cross")


def make_object(shape, color, size, x, y):
    """Object with a box of 10 by 10 pixels around (x, y)."""
    return SceneObject(shape, color, size, 5.0, 0.0, (x, y), (x - 5, y - 5, 10, 10))


@pytest.fixture
def scene():
    """100 by 200 pixels; stars at x = 20, 60, 66 and 180, rings at (100, 80) and (140, 20)."""
    objects = (
        make_object("star", "red", "small", 20, 50),  # 0
        make_object("star", "blue", "small", 60, 20),  # 1
        make_object("star", "blue", "large", 66, 90),  # 2: within 6 % of the width of 1
        make_object("ring", "red", "medium", 100, 80),  # 3
        make_object("ring", "green", "small", 140, 20),  # 4
        make_object("star", "green", "small", 180, 60),  # 5
    )
    return Scene(100, 200, objects, np.zeros((6, 100, 200), dtype=bool), (1.0,) * 6)


def order(form, description, direction, number=0):
    return Meaning("order", form, description, direction=direction, number=number)


def relation(description, direction, other, plural=False, form="side"):
    return Meaning("relation", form, description, plural, direction, other=other)


def exclusion(form, description, other=None, direction=""):
    return Meaning("exclusion", form, description, direction=direction, other=other)


def listing(*parts, form="list"):
    return Meaning("coordination", form, parts[0][0], parts=parts)


NEVER = None  # ambiguous or odd: must not be written


@pytest.mark.parametrize(
    "meaning, expected",
    [
        (Meaning("attribute", "one", RED_STAR), (0,)),
        (Meaning("attribute", "one", STAR), NEVER),
        (Meaning("attribute", "one", CROSS), ()),
        (Meaning("plural", "all", STAR, plural=True), (0, 1, 2, 5)),
        (Meaning("plural", "all", RED_STAR, plural=True), NEVER),
        (Meaning("count", "count", RING, number=2), (3, 4)),
        (Meaning("count", "count", RING, number=3), ()),
        (Meaning("count", "count", STAR, number=3), ()),
        (order("extreme", STAR, "left"), (0,)),
        (order("extreme", BLUE, "left"), NEVER),  # 1 and 2 are too close
        (order("extreme", BLUE, "above"), (1,)),
        (order("extreme", RED_STAR, "left"), NEVER),  # the only one is not the leftmost one
        (order("extremes", STAR, "left", 3), (0, 1, 2)),
        (order("extremes", STAR, "left", 2), NEVER),
        (order("extremes", STAR, "right", 4), NEVER),  # all of them
        (order("extremes", RING, "left", 3), ()),
        (order("ordinal", STAR, "right", 1), (5,)),
        (order("ordinal", STAR, "right", 2), NEVER),
        (order("ordinal", STAR, "above", 3), (5,)),
        (order("ordinal", RING, "above", 3), ()),
        (order("pair_side", RING, "below"), (3,)),
        (order("pair_side", STAR, "below"), NEVER),
        (order("size", STAR, "largest"), (2,)),
        (order("size", STAR, "smallest"), NEVER),
        (relation(STAR, "right", RED_RING), (5,)),
        (relation(STAR, "left", RED_RING), NEVER),  # three of them, but singular
        (relation(STAR, "left", RED_RING, plural=True), (0, 1, 2)),
        (relation(RING, "left", RED_STAR), ()),
        (relation(RED, "right", RED_STAR), (3,)),  # the anchor itself does not count
        (relation(RED_STAR, "left", RED_STAR), NEVER),
        (relation(RED_STAR, "left", RING), NEVER),  # two anchors
        (relation(RED_STAR, "left", CROSS), ()),
        (relation(RING, "near", RED_STAR, form="distance"), (3,)),
        (relation(RING, "far", RED_STAR, form="distance"), (4,)),
        (relation(RED_RING, "near", RED_STAR, form="distance"), NEVER),
        (relation(RING, "above", None, form="half"), (4,)),
        (relation(RED, "left", None, form="half"), NEVER),  # the ring is in the middle
        (relation(RED_STAR, "right", None, form="half"), ()),
        (listing((RED_STAR, False), (RING, True)), (0, 3, 4)),
        (listing((RED_STAR, True), (RING, True)), NEVER),
        (listing((RED_STAR, False), (CROSS, True)), NEVER),  # half true
        (listing((RED_STAR, False), (RED, True)), NEVER),  # names the star twice
        (listing((CROSS, True), (Description(color="gray"), False)), ()),
        (listing((RED_STAR, True), (Description(color="blue", shape="star"), True),
                 form="shared_noun"), (0, 1, 2)),
        (exclusion("except_one", STAR, RED), (1, 2, 5)),
        (exclusion("except_one", STAR, BLUE), NEVER),
        (exclusion("except_all", STAR, BLUE), (0, 5)),
        (exclusion("not", STAR, BLUE), (0, 5)),
        (exclusion("not", RING, BLUE), NEVER),  # nothing to leave out
        (exclusion("except_one", RED_RING, Description(size="medium")), ()),
        (exclusion("except_most", STAR, direction="left"), (1, 2, 5)),
        (exclusion("except_most", BLUE, direction="left"), NEVER),
        (exclusion("not", CROSS, BLUE), ()),
    ],
)  # fmt: skip
def test_resolve(scene, meaning, expected):
    assert resolve(meaning, scene) == expected


@pytest.mark.parametrize("no_target_kind", ["", "false", "swap", "absent"])
def test_realize_keeps_to_the_plan(scene, no_target_kind):
    plan = ExpressionPlan("order", "ordinal", no_target_kind, "h", number=3)
    rng = np.random.default_rng(0)
    meaning, targets = realize(plan, scene, rng, held_out=False)
    assert meaning.number == 3 and bool(targets) == (no_target_kind == "")
    named = {item.shape for item in scene.objects}
    assert (meaning.description.shape in named) == (no_target_kind in ("", "false"))


def test_realize_gives_up_on_an_impossible_plan(scene):
    plan = ExpressionPlan("count", "count", "", "h", number=3)
    assert realize(plan, scene, np.random.default_rng(0), held_out=False) is None


def test_one_meaning_has_many_paraphrases():
    rng = np.random.default_rng(0)
    meaning = order("ordinal", Description(size="small", color="gray"), "left", 2)
    texts = {verbalize(meaning, rng) for _ in range(300)}
    assert len(texts) > 80
    assert all("second" in text and "left" in text for text in texts)
