"""Hand-worked cases and plain-loop oracles for matcher, losses, selectors and attention."""

import math

import pytest
import torch
from fvcore.nn import giou_loss

from igvg_d2.modeling import GroundingTargets
from igvg_d2.modeling.backbone.beit3 import interpolate_positions
from igvg_d2.modeling.grounding_head import GroundingCriterion, PointGuidedMatcher
from igvg_d2.modeling.losses import (
    dice_loss,
    generalized_iou,
    mask_bce_loss,
    masked_mean,
    weighted_cross_entropy,
)
from igvg_d2.modeling.query_generator import cell_centers, select_points, select_top_points
from igvg_d2.modeling.transformer import MSDeformAttn, ms_deform_attn_core


def greedy_points(heatmap, num_points, weight, unit):
    """Algorithm 1 as written, with Python loops over cells."""
    height, width = heatmap.shape
    score = heatmap.sigmoid()
    cells = [(i, j) for i in range(height) for j in range(width)]
    scale = 1.0 if unit == "cells" else 1 / math.hypot(height, width)
    chosen = [max(cells, key=lambda c: float(score[c]))]
    while len(chosen) < num_points:
        rest = [c for c in cells if c not in chosen]
        chosen.append(
            max(
                rest,
                key=lambda c: float(score[c])
                + weight * scale * min(math.dist(c, other) for other in chosen),
            )
        )
    return [i * width + j for i, j in chosen]


@pytest.mark.parametrize("unit", ["cells", "diagonal"])
@pytest.mark.parametrize("weight", [0.0, 0.003, 0.1])
def test_select_points_is_algorithm_1(unit, weight):
    heatmaps = torch.randn(
        12, 5, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    expected = [greedy_points(heatmap, 7, weight, unit) for heatmap in heatmaps]
    assert select_points(heatmaps, 7, weight, unit).tolist() == expected


def test_select_points_refuses_more_points_than_cells():
    with pytest.raises(ValueError, match="7 points"):
        select_points(torch.zeros(1, 2, 3), 7, 0.1)


def test_top_points_and_cell_centers():
    heatmap = torch.tensor([[[0.1, 0.9], [0.5, 0.2]]])
    indices = select_top_points(heatmap, 3)
    assert indices.tolist() == [[1, 2, 3]]
    centers = cell_centers(indices, 2, 2)
    assert centers.tolist() == [[[0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]]


def bilinear(feature, x, y):
    """Value of a map (H, W) at normalised (x, y), zero outside, by the four neighbours."""
    height, width = feature.shape
    column, row = x * width - 0.5, y * height - 0.5
    total = 0.0
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < height and 0 <= j < width:
                total += float(feature[i, j]) * (1 - abs(row - i)) * (1 - abs(column - j))
    return total


def test_deformable_attention_core_is_a_sum_of_bilinear_samples():
    generator = torch.Generator().manual_seed(0)
    shapes, heads, points, queries, dim = [(3, 5), (2, 4)], 2, 3, 2, 2
    sizes = [h * w for h, w in shapes]
    value = torch.randn(1, sum(sizes), heads, dim, generator=generator, dtype=torch.float64)
    size = (1, queries, heads, len(shapes), points)
    locations = torch.rand(*size, 2, generator=generator, dtype=torch.float64) * 1.4 - 0.2
    weights = torch.rand(size, generator=generator, dtype=torch.float64)
    out = ms_deform_attn_core(value, shapes, locations, weights)
    for query in range(queries):
        for head in range(heads):
            for channel in range(dim):
                expected = 0.0
                for level, level_value in enumerate(value[0, :, head, channel].split(sizes)):
                    feature = level_value.reshape(shapes[level])
                    for point in range(points):
                        index = (0, query, head, level, point)
                        x, y = locations[index].tolist()
                        expected += float(weights[index]) * bilinear(feature, x, y)
                assert float(out[0, query, head * dim + channel]) == pytest.approx(expected)


def test_deformable_attention_gradients():
    torch.manual_seed(0)
    layer = MSDeformAttn(4, 2, 2, 2).double()
    inputs = (torch.randn(1, 2, 4), torch.rand(1, 2, 2) * 0.5 + 0.2, torch.randn(1, 10, 4))
    inputs = [x.double().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(lambda q, r, m: layer(q, r, m, [(2, 3), (2, 2)]), inputs)


def test_dice_and_bce_by_hand():
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    target = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    # p = 1/2 everywhere: 1 - (2 * 0.5 + 1) / (2 + 1 + 1) = 0.5.
    assert float(dice_loss(logits, target)) == pytest.approx(0.5)
    assert float(mask_bce_loss(logits, target)) == pytest.approx(math.log(2))
    empty = torch.full((2, 2), -50.0)
    assert float(dice_loss(empty, torch.zeros(2, 2))) == pytest.approx(0.0)


def test_weighted_cross_entropy_by_hand():
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    # -log(1/2) with weight 1, -log(1/4) with weight 0.1.
    expected = (math.log(2) + 0.1 * math.log(4)) / 1.1
    loss = weighted_cross_entropy(logits, torch.tensor([0, 1]), torch.tensor([1.0, 0.1]))
    assert float(loss) == pytest.approx(expected)


def test_masked_mean_of_nothing_is_zero_with_gradient():
    values = torch.ones(3, requires_grad=True)
    mean = masked_mean(values, torch.zeros(3, dtype=torch.bool))
    mean.backward()
    assert mean.item() == 0.0 and values.grad.tolist() == [0.0, 0.0, 0.0]


def test_generalized_iou_agrees_with_fvcore():
    boxes1 = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0], [0.2, 0.1, 0.9, 0.5]])
    boxes2 = torch.tensor([[0.5, 0.0, 1.5, 1.0], [2.0, 2.0, 3.0, 3.0], [0.1, 0.3, 0.4, 0.8]])
    ours = generalized_iou(boxes1, boxes2)
    torch.testing.assert_close(ours, 1 - giou_loss(boxes1, boxes2), atol=1e-5, rtol=0)
    # Disjoint unit squares in a 3 x 3 hull: 0 - (9 - 2) / 9.
    assert float(ours[1]) == pytest.approx(-7 / 9, abs=1e-5)


def make_targets(boxes, size=4):
    """One sample with the given (cx, cy, w, h) boxes and full masks."""
    count = max(1, len(boxes))
    padded = torch.zeros(1, count, 4)
    if boxes:
        padded[0] = torch.tensor(boxes)
    valid = torch.zeros(1, count, dtype=torch.bool)
    valid[0, : len(boxes)] = True
    masks = torch.ones(1, count, size, size) * valid[..., None, None]
    return GroundingTargets(padded, masks, valid, [len(boxes)])


BOX = [0.5, 0.5, 0.2, 0.2]


def test_matcher_cost_by_hand():
    matcher = PointGuidedMatcher(point_weight=3.0, class_cost="ce")
    logits = torch.zeros(1, 1, 1, 2)
    boxes = torch.tensor([[[[0.6, 0.5, 0.2, 0.2]]]])
    points = torch.tensor([[[0.5, 0.4]]])
    cost = matcher.cost(logits, boxes, points, make_targets([BOX]))
    # Overlap 0.1 x 0.2 of union 0.06 in a hull 0.3 x 0.2 = 0.06: GIoU = 1/3.
    expected = math.log(2) + 5 * 0.1 - 2 / 3 + 3 * 0.1
    assert float(cost) == pytest.approx(expected, abs=1e-4)
    released = PointGuidedMatcher(point_weight=3.0, class_cost="prob").cost(
        logits, boxes, points, make_targets([BOX])
    )
    assert float(cost - released) == pytest.approx(math.log(2) + 0.5, abs=1e-5)


def test_the_point_decides_between_equal_boxes():
    logits, boxes = torch.zeros(1, 1, 2, 2), torch.tensor(BOX).expand(1, 1, 2, 4)
    points = torch.tensor([[[0.1, 0.1], [0.5, 0.5]]])
    matcher = PointGuidedMatcher(point_weight=2.0, class_cost="ce")
    assert matcher(logits, boxes, points, make_targets([BOX])).tolist() == [[[-1, 0]]]


def test_matcher_without_targets_and_with_too_many():
    matcher = PointGuidedMatcher(point_weight=2.0, class_cost="ce")
    logits, boxes = torch.zeros(2, 1, 2, 2), torch.rand(2, 1, 2, 4)
    points = torch.rand(1, 2, 2)
    assert (matcher(logits, boxes, points, make_targets([])) == -1).all()
    many = matcher(logits, boxes, points, make_targets([BOX, [0.1, 0.1, 0.1, 0.1], BOX]))
    assert (many >= 0).all() and all(len(set(row[0])) == 2 for row in many.tolist())


def make_criterion(**changes):
    options = dict(
        matcher=PointGuidedMatcher(point_weight=2.0, class_cost="ce"),
        loss_weight=1.0,
        class_weight=1.0,
        no_object_weight=0.1,
        aux_weights="ones",
        negative_weight=0.2,
        align_corners=False,
    )
    return GroundingCriterion(**{**options, **changes})


def test_criterion_weights_and_equation_6():
    boxes = torch.tensor([BOX, [0.1, 0.1, 0.1, 0.1]]).expand(2, 1, 2, 4).clone()
    boxes[..., 0, 0] += 0.1
    points = torch.tensor([[[0.5, 0.5], [0.1, 0.1]]])
    masks = torch.zeros(1, 2, 4, 4)
    losses = make_criterion()(torch.zeros(2, 1, 2, 2), boxes, points, masks, make_targets([BOX]))
    assert float(losses["loss_ce"]) == pytest.approx(math.log(2))
    assert float(losses["loss_bbox"]) == pytest.approx(5 * 0.1, abs=1e-5)
    assert float(losses["loss_bbox_0"]) == pytest.approx(0.1, abs=1e-5)
    assert float(losses["loss_giou"]) == pytest.approx(2 * 2 / 3, abs=1e-3)
    assert float(losses["loss_mask"]) == pytest.approx(math.log(2))
    assert float(losses["loss_mask_neg"]) == pytest.approx(0.2 * math.log(2))
    # Matched: 1 - (2 * 8 + 1) / (8 + 16 + 1); unmatched: 1 - 1 / (8 + 0 + 1).
    assert float(losses["loss_dice"]) == pytest.approx(1 - 17 / 25)
    assert float(losses["loss_dice_neg"]) == pytest.approx(0.2 * 8 / 9)


def test_criterion_without_targets_and_without_lambda_neg():
    criterion = make_criterion(negative_weight=0.0, deep_supervision=False)
    losses = criterion(
        torch.zeros(2, 1, 2, 2), torch.rand(2, 1, 2, 4), torch.rand(1, 2, 2),
        torch.zeros(1, 2, 4, 4), make_targets([]),
    )  # fmt: skip
    assert set(losses) == {"loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice"}
    assert float(losses["loss_bbox"]) == 0.0 and float(losses["loss_mask"]) == 0.0
    assert float(losses["loss_ce"]) == pytest.approx(math.log(2))


def test_positions_keep_their_grid_and_interpolate():
    table = torch.randn(1, 6, 4)
    assert interpolate_positions(table, (2, 3), (2, 3)) is table
    assert interpolate_positions(table, (2, 3), (4, 5)).shape == (1, 20, 4)
    constant = torch.ones(1, 6, 4)
    torch.testing.assert_close(
        interpolate_positions(constant, (2, 3), (5, 2)), torch.ones(1, 10, 4)
    )
