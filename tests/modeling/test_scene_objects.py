"""Objects of the stem: how they are found, what is said of them, and what teaches it."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from igvg_d2.modeling import build_vl_backbone
from igvg_d2.modeling.backbone import role_reasoning
from igvg_d2.modeling.backbone.build import SceneObjects
from igvg_d2.modeling.backbone.role_reasoning import RoleReasoner, object_facts
from igvg_d2.modeling.backbone.scene_objects import ObjectFinder
from igvg_d2.modeling.scene_losses import center_loss, object_loss
from igvg_d2.modeling.targets import SceneTargets
from igvg_d2.testing import random_targets, tiny_cfg

STEM = [
    "MODEL.BEIT3.STEM_CHANNELS", [8, 8, 16, 16],
    "MODEL.BEIT3.STEM_BLOCKS", [0, 1, 2, 1],
    "MODEL.BEIT3.STEM_TEXT_STAGE", 2,
    "MODEL.BEIT3.STEM_OBJECTS", 5,
    "MODEL.BEIT3.STEM_ROLES", 2,
]  # fmt: skip


class Planted(nn.Module):
    """Stands for a predictor that has learned its task."""

    def __init__(self, maps):
        super().__init__()
        self.maps = maps

    def forward(self, x):
        return self.maps


def planted_finder(num_objects=3):
    """Two objects on a 3 x 4 grid: columns 0 and 1 of the first two rows, and the last column."""
    maps = torch.zeros(1, 4, 3, 4)
    maps[:, 0] = -6.0
    maps[:, 3] = -20.0
    for rows, columns, center in (((0, 2), (0, 2), (1.0, 1.0)), ((0, 3), (3, 4), (3.5, 1.5))):
        for row in range(*rows):
            for column in range(*columns):
                maps[0, 1, row, column] = center[0] - (column + 0.5)
                maps[0, 2, row, column] = center[1] - (row + 0.5)
                maps[0, 3, row, column] = 20.0
        maps[0, 0, int(center[1]), int(center[0]) - (center[0] == 1.0)] = center[0]
    finder = ObjectFinder(4, 2, num_objects)
    finder.predictor = Planted(maps)
    nn.init.zeros_(finder.area.weight)
    nn.init.zeros_(finder.area.bias)
    return finder


def test_objects_are_found_where_they_were_planted():
    cells = torch.arange(24.0).view(1, 2, 3, 4)
    objects = planted_finder()(torch.zeros(1, 4, 3, 4), cells)
    expected = torch.tensor([[3.5 / 4, 1.5 / 3], [1.0 / 4, 1.0 / 3]])
    torch.testing.assert_close(objects.positions[0, :2], expected)
    torch.testing.assert_close(objects.exists_logits[0, :2], torch.tensor([3.5, 1.0]))
    assert objects.exists_logits[0, 2] <= -6
    share = objects.assignment[0].unflatten(0, (3, 4))
    # The third slot is no object; what little of the cells it wins is noise.
    assert (share[:, 3, 0] > 0.9).all() and (share[:2, :2, 1] > 0.9).all()
    assert share[:, 2].abs().max() < 1e-6
    mean = cells[0, :, :, 3].mean(-1)
    torch.testing.assert_close(objects.features[0, 0], mean, rtol=2e-2, atol=0.1)


def test_more_slots_than_cells_are_refused():
    with pytest.raises(ValueError, match="STEM_OBJECTS = 13 .* 3 x 4"):
        ObjectFinder(4, 2, 13)(torch.zeros(1, 4, 3, 4), torch.zeros(1, 2, 3, 4))


def facts_of(fit, exists, positions):
    """Facts by name for one picture and one role: object -> number(s)."""
    facts = object_facts(
        torch.tensor(fit)[None, :, None], torch.tensor(exists)[None], torch.tensor(positions)[None]
    )[0]
    names = {"fit": 1, "prob": 1, "total": 1, "distance": 1, "outermost": 4, "side": 2}
    names.update(further=4, is_number=25)
    return dict(zip(names, facts.split(list(names.values()), dim=-1)))


def test_facts_by_hand():
    # Three that fit in a row from left to right, one that does not fit, one that does not exist.
    positions = [[0.1, 0.5], [0.5, 0.5], [0.9, 0.5], [0.7, 0.1], [0.95, 0.9]]
    facts = facts_of([20.0, 20, 20, -20, 20], [20.0, 20, 20, 20, -20], positions)
    torch.testing.assert_close(facts["prob"][:, 0], torch.tensor([1.0, 1, 1, 0, 0]))
    torch.testing.assert_close(facts["total"][:, 0], torch.full((5,), 3.0))
    # Columns: right, down, left, up.
    number = facts["further"].round()
    assert number[:3, 0].tolist() == [2, 1, 0] and number[:3, 2].tolist() == [0, 1, 2]
    assert number[3, 0] == 1 and number[3, 1] == 3 and number[3, 3] == 0
    assert facts["outermost"][:, 0].argmax() == 2 and facts["outermost"][:, 2].argmax() == 0
    assert facts["outermost"][2, 0] > 0.99
    is_number = facts["is_number"].unflatten(-1, (5, 5))
    assert is_number[0, 0].argmax() == 2 and is_number[0, 4].argmax() == 3


def test_sides_and_distance_of_an_anchor():
    facts = facts_of([20.0, -20.0, -20.0], [20.0] * 3, [[0.5, 0.5], [0.1, 0.5], [0.5, 0.8]])
    right_of, below = facts["side"].unbind(-1)
    assert right_of[1] < -0.99 and abs(below[1]) < 1e-5
    assert below[2] > 0.9 and abs(right_of[2]) < 1e-5
    expected = torch.tensor([0.04, 4 * math.sqrt(0.16 + 1e-4), 4 * math.sqrt(0.09 + 1e-4)])
    torch.testing.assert_close(facts["distance"][:, 0], expected, rtol=1e-4, atol=1e-4)


def test_positions_and_facts_are_exact_under_bfloat16(monkeypatch):
    """Three objects in a row, each 0.004 of the picture after the other: bfloat16 merges them."""
    seen = {}

    def record(*args):
        seen["facts"] = object_facts(*args)
        return seen["facts"]

    monkeypatch.setattr(role_reasoning, "object_facts", record)
    objects = random_objects(n=1)
    objects.positions = torch.tensor([[[0.900, 0.5], [0.904, 0.5], [0.908, 0.5]]])
    objects.exists_logits = torch.zeros(1, 3)
    text, padding = torch.randn(1, 4, 16), torch.zeros(1, 4, dtype=torch.bool)
    finder, x = ObjectFinder(4, 2, 5), torch.randn(1, 4, 40, 40)
    nn.init.normal_(finder.predictor.weight, std=1e-3)
    nn.init.zeros_(finder.predictor.bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = finder(x.bfloat16(), x[:, :2])
        # Words that resemble nothing: all objects fit alike, and the anchor is their middle.
        RoleReasoner(16, 1)(objects, torch.zeros(1, 3, 4), text, padding)
    # Centres are whole cells here, up to small offsets, which 16 bits hold.
    in_cells = found.positions.float() * 40 - 0.5
    torch.testing.assert_close(in_cells, in_cells.round(), rtol=0, atol=0.02)
    # Behind fit, prob, total, distance and outermost (4).
    right_of = seen["facts"][0, :, 8]
    side = math.tanh(8 * 0.004)
    torch.testing.assert_close(right_of, torch.tensor([-side, 0.0, side]), rtol=0, atol=1e-4)


def random_objects(n=2, k=3, cells=(2, 4), dim=16):
    torch.manual_seed(0)
    return SceneObjects(
        center_logits=torch.randn(n, *cells),
        foreground_logits=torch.randn(n, *cells),
        cell_middles=torch.rand(cells[0] * cells[1], 2),
        votes=torch.rand(n, cells[0] * cells[1], 2),
        positions=torch.rand(n, k, 2),
        exists_logits=torch.randn(n, k),
        assignment=torch.rand(n, cells[0] * cells[1], k).softmax(-1),
        features=torch.randn(n, k, dim),
    )


def test_reasoner_reads_no_padding_and_trains_every_weight():
    objects, reasoner = random_objects(), RoleReasoner(16, 2)
    text, similarity = torch.randn(2, 4, 16), torch.randn(2, 3, 4)
    padding = torch.tensor([[False] * 4, [False, False, True, True]])
    result, found = reasoner(objects, similarity, text, padding)
    assert result.target_logits.shape == (2, 3) and found.shape == (2, 3, 16)
    noise = 100.0 * padding
    again, _ = reasoner(
        objects, similarity + noise[:, None], text + noise[..., None], padding
    )  # fmt: skip
    torch.testing.assert_close(again.target_logits, result.target_logits)
    result.target_logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in reasoner.parameters())


def test_center_loss_by_hand():
    """One object fills the left half of a 2 x 2 grid; its centre lies between two cells."""
    instances = torch.zeros(1, 8, 8, dtype=torch.uint8)
    instances[:, :, :4] = 1
    middles = torch.tensor([[0.5, 0.5], [1.5, 0.5], [0.5, 1.5], [1.5, 1.5]])
    objects = random_objects(n=1, cells=(2, 2))
    objects.cell_middles = middles
    objects.center_logits = torch.zeros(1, 2, 2)
    objects.foreground_logits = torch.zeros(1, 2, 2)
    objects.votes = middles[None] + torch.tensor([0.0, 0.5])
    near, far = math.exp(-0.25 / 0.72), math.exp(-1.25 / 0.72)
    # The centre is (0.5, 1): cells of the left column miss it by 0 and by 1.
    votes = (0.0 + 1.0) / (2 + 1)
    expected = math.log(2) + votes + math.log(2)
    assert near > far
    scene = SceneTargets(instances, instances, num_objects=2)
    assert float(center_loss(objects, scene)) == pytest.approx(expected, rel=1e-5)
    # Moving the score towards the centre lowers the loss, away from it raises it.
    objects.center_logits = torch.tensor([[[near, far], [near, far]]]).logit()
    assert float(center_loss(objects, scene)) < expected
    objects.center_logits = -objects.center_logits
    assert float(center_loss(objects, scene)) > expected


def test_shares_and_centers_of_objects_by_hand():
    instances = torch.zeros(1, 4, 6, dtype=torch.uint8)
    instances[0, 0, 1:4] = 1
    instances[0, 1:4, 5] = 3
    scene = SceneTargets(instances, instances, num_objects=3)
    shares = scene.object_shares((2, 3))
    assert shares.shape == (1, 6, 3)
    expected = torch.zeros(6, 3)
    expected[0, 0], expected[1, 0] = 1 / 4, 2 / 4
    expected[2, 2], expected[5, 2] = 1 / 4, 2 / 4
    torch.testing.assert_close(shares[0], expected)
    torch.testing.assert_close(scene.category_shares(4, (2, 3))[0, :, 1:], expected)
    centers, present = scene.object_centers()
    assert present.tolist() == [[1.0, 0.0, 1.0]]
    expected = torch.tensor([[2.5 / 6, 0.5 / 4], [5.5 / 6, 2.5 / 4]])
    torch.testing.assert_close(centers[0, [0, 2]], expected)
    with pytest.raises(ValueError, match="4 x 6 pixels, which a grid of 3 x 3 cells"):
        scene.object_shares((3, 3))


def test_object_loss_by_hand():
    targets = random_targets([1, 0], size=(8, 8))
    targets.masks = torch.zeros(2, 1, 8, 8)
    targets.masks[0, 0, :, :4] = 1
    objects = random_objects(n=2, k=3, cells=(1, 2))
    # Slot 0 is the target's half, slot 1 the other one, slot 2 does not exist.
    objects.assignment = torch.tensor([[[1.0, 0, 0], [0, 1.0, 0]]]).expand(2, -1, -1)
    objects.exists_logits = torch.tensor([[20.0, 20.0, -40.0]]).expand(2, -1)
    objects.target_logits = torch.tensor([[1.0, -2.0, 9.0], [1.0, -2.0, 9.0]])
    losses = F.softplus(torch.tensor([-1.0, -2.0, 1.0, -2.0]))
    expected = losses.sum() / 4
    torch.testing.assert_close(object_loss(objects, targets), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("num_targets", [[2, 0], [0, 0]])
def test_losses_of_pictures_without_objects_are_finite(num_targets):
    backbone = build_vl_backbone(tiny_cfg(STEM))
    ids = torch.ones(2, 4, dtype=torch.int64)
    features = backbone(torch.randn(2, 3, 64, 64), ids, torch.zeros(2, 4, dtype=torch.bool))
    nothing = torch.zeros(2, 64, 64, dtype=torch.uint8)
    losses = [
        center_loss(features.objects, SceneTargets(nothing, nothing, num_objects=1)),
        object_loss(features.objects, random_targets(num_targets)),
    ]
    sum(losses).backward()
    assert all(torch.isfinite(loss) for loss in losses)
    assert all(torch.isfinite(p.grad).all() for p in backbone.parameters() if p.grad is not None)


def test_objects_are_those_of_the_picture_alone():
    backbone = build_vl_backbone(tiny_cfg(STEM)).eval()
    images = torch.randn(1, 3, 64, 96)
    padding = torch.zeros(1, 4, dtype=torch.bool)
    with torch.no_grad():
        one, other = (
            backbone(images, torch.full((1, 4), word), padding).objects for word in (5, 9)
        )
    assert one.positions.shape == (1, 5, 2)
    assert torch.equal(one.positions, other.positions)
    assert torch.equal(one.features, other.features)
    assert not torch.equal(one.target_logits, other.target_logits)
