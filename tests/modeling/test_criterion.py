"""Matching and losses of whole batches: padding of targets, auxiliary layers, normalisation."""

import math

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances

from igvg_d2.modeling import GroundingTargets
from igvg_d2.modeling.global_head import GlobalHead
from igvg_d2.modeling.grounding_head import GroundingCriterion, PointGuidedMatcher
from igvg_d2.testing import random_targets, tiny_cfg

HEAD = "MODEL.GROUNDING_HEAD."
LEFT, RIGHT = [0.25, 0.5, 0.2, 0.2], [0.75, 0.5, 0.2, 0.2]


def targets_of(*samples, size=4):
    """Samples as lists of boxes; the mask of target t is full on row t."""
    longest = max(1, max(len(boxes) for boxes in samples))
    boxes, valid = torch.zeros(len(samples), longest, 4), torch.zeros(len(samples), longest) > 0
    masks = torch.zeros(len(samples), longest, size, size)
    for i, sample in enumerate(samples):
        for t, box in enumerate(sample):
            boxes[i, t], valid[i, t], masks[i, t, t] = torch.tensor(box), True, 1.0
    return GroundingTargets(boxes, masks, valid, [len(x) for x in samples])


def test_targets_from_instances_by_hand():
    instances = Instances((4, 8))
    instances.gt_boxes = Boxes([[2.0, 1.0, 6.0, 3.0], [0.0, 0.0, 8.0, 4.0]])
    masks = torch.zeros(2, 4, 8, dtype=torch.bool)
    masks[0, 1:3, 2:6], masks[1, :, 0] = True, True
    instances.gt_masks = BitMasks(masks)
    empty = Instances((4, 8))
    empty.gt_boxes, empty.gt_masks = Boxes(torch.zeros(0, 4)), BitMasks(torch.zeros(0, 4, 8) > 0)
    targets = GroundingTargets.from_instances([instances, empty], torch.device("cpu"))
    # Height and width differ, so swapped axes would show.
    assert targets.boxes[0].tolist() == [[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]
    assert targets.valid.tolist() == [[True, True], [False, False]]
    assert targets.no_target.tolist() == [False, True]
    assert targets.num_targets == [2, 0] and float(targets.num_boxes()) == 2.0
    assert torch.equal(targets.union_masks[0, 0].bool(), masks.any(dim=0))
    assert not targets.union_masks[1].any()
    # Cells of 2 x 4 pixels: the box covers 1 of 2 rows and 2 of 4 columns of each.
    small = targets.resize_masks((2, 2))
    assert small.masks[0, 0].tolist() == [[0.25, 0.25], [0.25, 0.25]]
    assert small.masks[0, 1].tolist() == [[0.25, 0.0], [0.25, 0.0]]


def test_no_target_at_all_still_counts_one_box():
    targets = random_targets([0, 0])
    assert tuple(targets.boxes.shape) == (2, 1, 4) and not targets.valid.any()
    assert float(targets.num_boxes()) == 1.0


def test_matcher_on_two_queries_and_two_targets_by_hand():
    logits = torch.tensor([[[[0.0, 0.0], [math.log(3), 0.0]]]])
    boxes = torch.tensor([[[LEFT, RIGHT]]])
    points = torch.tensor([[[0.25, 0.5], [0.75, 0.25]]])
    targets = targets_of([LEFT, RIGHT])
    matcher = PointGuidedMatcher(point_weight=2.0, class_cost="ce")
    # Disjoint: union 0.08, hull 0.7 x 0.2 = 0.14, GIoU = -0.06 / 0.14.
    giou, point = 2 * 0.06 / 0.14, 2 * 0.5
    query_0 = [math.log(2) - 2, math.log(2) + 5 * 0.5 + giou + point]
    query_1 = [math.log(4 / 3) + 2.5 + giou + point + 0.5, math.log(4 / 3) - 2 + 0.5]
    cost = matcher.cost(logits, boxes, points, targets)
    torch.testing.assert_close(cost[0, 0], torch.tensor([query_0, query_1]), atol=1e-3, rtol=0)
    assert matcher(logits, boxes, points, targets).tolist() == [[[0, 1]]]
    released = PointGuidedMatcher(point_weight=2.0, class_cost="prob").cost(
        logits, boxes, points, targets
    )
    assert float(cost[0, 0, 1, 0] - released[0, 0, 1, 0]) == pytest.approx(
        math.log(4 / 3) + 0.75, abs=1e-4
    )


def test_matcher_weighs_the_point_against_the_box():
    # Query 0 has the better box, query 1 the better point: 5 * 0.05 against 2 * 0.4.
    boxes = torch.tensor([[[LEFT, [0.3, 0.5, 0.2, 0.2]]]])
    points, logits = torch.tensor([[[0.65, 0.5], [0.25, 0.5]]]), torch.zeros(1, 1, 2, 2)
    targets = targets_of([LEFT])
    with_point = PointGuidedMatcher(point_weight=2.0, class_cost="ce", giou_weight=0.0)
    without = PointGuidedMatcher(point_weight=0.0, class_cost="ce", giou_weight=0.0)
    assert with_point(logits, boxes, points, targets).tolist() == [[[-1, 0]]]
    assert without(logits, boxes, points, targets).tolist() == [[[0, -1]]]


def test_samples_and_layers_are_matched_on_their_own():
    boxes = torch.tensor([[[LEFT, RIGHT]] * 3, [[RIGHT, LEFT]] * 3])
    points = torch.full((3, 2, 2), 0.5)
    targets = targets_of([LEFT], [], [RIGHT, LEFT])
    assigned = PointGuidedMatcher(point_weight=2.0, class_cost="ce")(
        torch.zeros(2, 3, 2, 2), boxes, points, targets
    )
    assert assigned[0].tolist() == [[0, -1], [-1, -1], [1, 0]]
    assert assigned[1].tolist() == [[-1, 0], [-1, -1], [0, 1]]


def run_criterion(opts=(), masks=True, targets=None, layers=2, **weights):
    """Losses of two samples with boxes 0.1 right of their targets, all logits zero."""
    targets = targets_of([LEFT, RIGHT], []) if targets is None else targets
    shifted = torch.tensor([LEFT, RIGHT]) + torch.tensor([0.1, 0.0, 0.0, 0.0])
    n = len(targets.num_targets)
    return GroundingCriterion(tiny_cfg(opts), **weights)(
        torch.zeros(layers, n, 2, 2),
        shifted.expand(layers, n, 2, 4),
        shifted[:, :2].expand(n, 2, 2),
        torch.zeros(n, 2, 2, 2) if masks else None,
        targets,
    )


def test_losses_follow_equation_5_with_the_weights_of_the_config():
    losses = run_criterion([HEAD + "LOSS_WEIGHT", 0.1, HEAD + "AUX_WEIGHTS", "same"])
    # Two boxes are each 0.1 off; the sum is divided by two boxes. GIoU 1/3 as 0.1 x 0.2 overlap.
    assert float(losses["loss_bbox"]) == pytest.approx(0.1 * 5 * 0.1, abs=1e-6)
    assert float(losses["loss_giou"]) == pytest.approx(0.1 * 2 * 2 / 3, abs=1e-4)
    assert float(losses["loss_ce"]) == pytest.approx(0.1 * math.log(2))
    for name in ("bbox", "giou", "ce"):
        assert float(losses[f"loss_{name}_0"]) == pytest.approx(float(losses[f"loss_{name}"]))


def test_released_auxiliary_layers_have_unit_weights():
    losses = run_criterion([HEAD + "LOSS_WEIGHT", 0.1, HEAD + "AUX_WEIGHTS", "ones"], layers=3)
    for layer in ("_0", "_1"):
        assert float(losses["loss_bbox" + layer]) == pytest.approx(0.1 * 0.1, abs=1e-6)
        assert float(losses["loss_giou" + layer]) == pytest.approx(0.1 * 2 / 3, abs=1e-4)
    assert float(losses["loss_bbox"]) == pytest.approx(0.1 * 5 * 0.1, abs=1e-6)


def test_instance_masks_follow_equation_6():
    opts = [HEAD + "NEGATIVE_WEIGHT", 0.25]
    losses = run_criterion(opts, instance_weight=2.0, mask_weight=3.0)
    # Logits 0: BCE log 2 everywhere. Dice, 4 of 16 pixels: 1 - (2 * 2 + 1) / (8 + 4 + 1).
    assert float(losses["loss_mask"]) == pytest.approx(2 * 3 * math.log(2))
    assert float(losses["loss_dice"]) == pytest.approx(2 * (1 - 5 / 13))
    # The two queries of the no-target sample are the unmatched ones: 1 - 1 / (8 + 1).
    assert float(losses["loss_mask_neg"]) == pytest.approx(0.25 * 2 * 3 * math.log(2))
    assert float(losses["loss_dice_neg"]) == pytest.approx(0.25 * 2 * 8 / 9)


def test_matched_and_unmatched_masks_are_averaged_on_their_own():
    targets = targets_of([RIGHT], size=2)
    targets.masks[0, 0] = 1.0
    # Three queries of which the second is matched; probabilities 0.5, 0.9, 0.2 everywhere.
    boxes = torch.tensor([LEFT, RIGHT, LEFT])[None]
    masks = torch.logit(torch.tensor([0.5, 0.9, 0.2]))[None, :, None, None].expand(1, 3, 2, 2)
    criterion = GroundingCriterion(tiny_cfg([HEAD + "NEGATIVE_WEIGHT", 1.0]))
    losses = criterion(torch.zeros(1, 1, 3, 2), boxes[None], boxes[..., :2], masks, targets)
    assert float(losses["loss_mask"]) == pytest.approx(-math.log(0.9), abs=1e-5)
    expected = -(math.log(0.5) + math.log(0.8)) / 2
    assert float(losses["loss_mask_neg"]) == pytest.approx(expected, abs=1e-5)
    assert float(losses["loss_dice"]) == pytest.approx(1 - 8.2 / 8.6, abs=1e-5)
    # Four pixels: 1 - 1 / (4 p + 1).
    expected = ((1 - 1 / 3.0) + (1 - 1 / 1.8)) / 2
    assert float(losses["loss_dice_neg"]) == pytest.approx(expected, abs=1e-5)


def test_matched_queries_are_of_class_target_and_the_rest_of_no_object():
    boxes = torch.tensor([RIGHT, LEFT])[None, None]
    logits = torch.tensor([[[[0.0, 0.0], [math.log(3), 0.0]]]])
    opts = [HEAD + "NO_OBJECT_WEIGHT", 0.2, HEAD + "LOSS_WEIGHT", 1.0, HEAD + "MASK_ON", False]
    losses = GroundingCriterion(tiny_cfg(opts))(
        logits, boxes, boxes[0, ..., :2], None, targets_of([LEFT])
    )
    # Query 1 is matched: -log 3/4, weight 1; query 0 is not: -log 1/2, weight 0.2.
    expected = (math.log(4 / 3) + 0.2 * math.log(2)) / 1.2
    assert float(losses["loss_ce"]) == pytest.approx(expected, abs=1e-6)


def test_keys_follow_the_config_only():
    detection = {"loss_ce", "loss_bbox", "loss_giou"}
    auxiliary = {key + "_0" for key in detection}
    masks, negative = {"loss_mask", "loss_dice"}, {"loss_mask_neg", "loss_dice_neg"}
    empty = targets_of([], [])
    for opts, with_masks, deep, expected in (
        ([], True, True, detection | auxiliary | masks | negative),
        ([HEAD + "NEGATIVE_WEIGHT", 0.0], True, True, detection | auxiliary | masks),
        ([], True, False, detection | masks | negative),
        ([HEAD + "MASK_ON", False], False, True, detection | auxiliary),
    ):
        for targets in (None, empty):
            losses = run_criterion(opts, with_masks, targets, deep_supervision=deep)
            assert set(losses) == expected


def test_batch_without_targets_costs_only_classes_and_negative_masks():
    losses = run_criterion(targets=targets_of([], []))
    for key in ("loss_bbox", "loss_giou", "loss_mask", "loss_dice", "loss_bbox_0"):
        assert float(losses[key]) == 0.0
    assert float(losses["loss_ce"]) > 0 and float(losses["loss_mask_neg"]) > 0


def make_global_head(**changes):
    options = dict(
        mask_dim=4, pooled_dim=6, mask_on=True, loss_weight=1.0, dice_weight=2.0,
        no_target_weight=0.2, no_target_class_weights=(1.0, 3.0), no_target_input="pixels",
        align_corners=False,
    )  # fmt: skip
    return GlobalHead(**{**options, **changes})


def test_global_losses_by_hand():
    head = make_global_head()
    outputs = {
        "sem_seg": torch.zeros(2, 1, 2, 2),
        "no_target_logits": torch.tensor([[math.log(3), 0.0], [math.log(7), 0.0]]),
    }
    losses = head.losses(outputs, targets_of([LEFT, RIGHT], []))
    # Probability 3/4 of a target is right for the first sample (weight 1), 7/8 is wrong for the
    # second (weight 3).
    expected = (1 * math.log(4 / 3) + 3 * math.log(8)) / 4
    assert float(losses["loss_no_target"]) == pytest.approx(0.2 * expected)
    assert float(losses["loss_sem_seg"]) == pytest.approx(math.log(2))
    # Union of two rows of 16 pixels: 1 - 9 / (8 + 8 + 1); nothing: 1 - 1 / 9.
    assert float(losses["loss_sem_seg_dice"]) == pytest.approx(2 * (8 / 17 + 8 / 9) / 2)


@pytest.mark.parametrize("no_target_input", ["pixels", "pixels+pooled"])
def test_averaging_before_the_last_layer_is_averaging_the_logits(no_target_input):
    torch.manual_seed(0)
    head = make_global_head(no_target_input=no_target_input)
    features, pooled = torch.randn(2, 4, 3, 5), torch.randn(2, 6)
    outputs, losses = head(features, pooled)
    expected = head.no_target(features.permute(0, 2, 3, 1)).mean(dim=(1, 2))
    if no_target_input == "pixels+pooled":
        expected = expected + head.no_target_pooled(pooled)
    torch.testing.assert_close(outputs["no_target_logits"], expected)
    assert losses == {} and tuple(outputs["sem_seg"].shape) == (2, 1, 3, 5)


def test_global_head_without_mask_and_with_an_unknown_input():
    head = make_global_head(mask_on=False)
    outputs, losses = head(torch.randn(2, 4, 2, 2), torch.randn(2, 6), targets_of([LEFT], []))
    assert outputs["sem_seg"] is None and set(losses) == {"loss_no_target"}
    with pytest.raises(ValueError, match="NO_TARGET_INPUT"):
        make_global_head(no_target_input="x")
