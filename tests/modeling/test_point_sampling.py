"""Mask losses at random points: dense ones in the mean, more points where masks are uncertain."""

import pytest
import torch
from detectron2.modeling import build_model
from torch._subclasses.fake_tensor import FakeTensorMode

from igvg_d2.modeling import GroundingTargets, losses
from igvg_d2.modeling.grounding_head import GroundingCriterion
from igvg_d2.modeling.losses import dice_loss, mask_bce_loss, resize_logits, sample_masks
from igvg_d2.modeling.targets import BatchTotals
from igvg_d2.testing import random_batch, tiny_cfg
from tests.modeling.test_criterion import LEFT, RIGHT, make_global_head, targets_of

POINTS = ["MODEL.IGVG.MASK_LOSS_RESOLUTION", "points"]
MASK_LOSSES = ("sem_seg", "sem_seg_dice", "mask", "dice", "mask_neg", "dice_neg")


def smooth_masks(seed=0):
    """Logits (2, 3, 8, 12), target masks (2, 2, 32, 48) and the target of each logit mask."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 3, 8, 12, generator=generator)
    masks = torch.zeros(2, 2, 32, 48)
    masks[0, 0, 4:20, 8:40] = masks[0, 1, :16] = masks[1, 0, :, 24:] = masks[1, 1, 6:9, 2:30] = 1
    return logits, masks, torch.tensor([[0, 1, 0], [1, 1, 0]])


@pytest.mark.parametrize("align_corners", [False, True])
def test_at_the_centers_of_pixels_values_are_those_of_the_dense_loss(align_corners, monkeypatch):
    logits, masks, index = smooth_masks()
    y, x = torch.meshgrid(
        (torch.arange(32) + 0.5) / 32, (torch.arange(48) + 0.5) / 48, indexing="ij"
    )
    centers = torch.stack([x, y], dim=-1).view(1, -1, 2).expand(6, -1, 2)
    monkeypatch.setattr(losses, "get_uncertain_point_coords_with_randomness", lambda *_: centers)
    found, targets = sample_masks(logits, masks, index, 32 * 48, align_corners)
    dense = resize_logits(logits, (32, 48), align_corners)
    torch.testing.assert_close(found.view_as(dense), dense, rtol=1e-4, atol=1e-4)
    expected = torch.stack([masks[i, chosen] for i, chosen in enumerate(index)])
    torch.testing.assert_close(targets.view_as(expected), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("align_corners", [False, True])
def test_uniform_points_have_the_dense_loss_in_the_mean(align_corners, monkeypatch):
    logits, masks, index = smooth_masks()
    monkeypatch.setattr(losses, "IMPORTANCE_SAMPLE_RATIO", 0.0)
    torch.manual_seed(0)
    found, targets = sample_masks(logits, masks, index, 100_000, align_corners)
    dense = resize_logits(logits, (32, 48), align_corners)
    expected = torch.stack([masks[i, chosen] for i, chosen in enumerate(index)])
    for loss in (mask_bce_loss, dice_loss):
        torch.testing.assert_close(loss(found, targets), loss(dense, expected), rtol=0.02, atol=0)


def test_three_quarters_of_the_points_are_the_least_certain():
    # Certain but for six columns of 16, where more than 0.75 P of the 3 P candidates lie.
    logits = torch.full((1, 1, 16, 16), 9.0)
    logits[..., :6] = 0.0
    torch.manual_seed(0)
    found, _ = sample_masks(
        logits, torch.zeros(1, 1, 64, 64), torch.zeros(1, 1).long(), 4096, False
    )
    # And of the uniform ones; from column to column, logits rise over the width of a cell.
    assert (found < 8.9).float().mean().item() == pytest.approx(0.75 + 0.25 * 6.5 / 16, abs=0.02)


def test_constant_masks_cost_exactly_what_they_cost_densely():
    """Of 56 x 56 pixels, as many as points: the add-one smoothing of Dice is then the same."""
    targets = targets_of([LEFT, RIGHT], [], size=56)
    targets.masks[0] = 1.0
    masks, assigned = torch.full((2, 3, 14, 14), 1.5), torch.tensor([[1, -1, 0], [-1, -1, -1]])
    found = []
    for opts, num_points in (([], 0), (POINTS, losses.NUM_POINTS)):
        terms = GroundingCriterion(tiny_cfg(opts)).mask_terms(masks, assigned, targets)
        outputs = {"sem_seg": masks[:, :1], "no_target_logits": torch.zeros(2, 2)}
        terms.update(make_global_head(num_points=num_points).losses(outputs, targets))
        found.append({key: float(value) for key, value in terms.items()})
    assert len(found[0]) == 7 and found[1] == pytest.approx(found[0], rel=1e-5)


def test_targets_without_a_mask_and_empty_batches_stay_out():
    valid, has_mask = torch.tensor([[True, True]]), torch.tensor([[True, False]])
    masks = torch.zeros(1, 2, 8, 8)
    masks[0, 0] = 1.0
    targets = GroundingTargets(torch.tensor([[LEFT, RIGHT]]), masks, valid, [2], has_mask=has_mask)
    criterion = GroundingCriterion(tiny_cfg(POINTS))
    logits = torch.full((1, 3, 4, 4), 20.0, requires_grad=True)
    terms = criterion.mask_terms(logits, torch.tensor([[0, 1, -1]]), targets)
    # The first query is right; nothing is known of the others.
    assert all(value.item() == pytest.approx(0, abs=1e-3) for value in terms.values())
    sum(terms.values()).backward()
    assert not logits.grad[0, 1:].any() and torch.isfinite(logits.grad).all()
    terms = criterion.mask_terms(logits[:, :2].detach(), torch.tensor([[-1, -1]]), targets_of([]))
    assert float(terms["mask"]) == 0 and float(terms["mask_neg"]) == pytest.approx(20)


def test_the_points_of_a_step_follow_the_seed():
    """As a resumed run needs it: StepSeedHook seeds each step."""
    logits, masks, index = smooth_masks()
    found = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        found.append(sample_masks(logits, masks, index, 64, False)[0])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    model = build_model(tiny_cfg(POINTS)).train()
    batch, found = random_batch([2, 0, 1]), []
    for _ in range(2):
        torch.manual_seed(5)
        found.append({key: value.item() for key, value in model(batch).items()})
    assert found[0] == found[1] and found[0].keys() >= {f"loss_{key}" for key in MASK_LOSSES}


def test_no_value_is_read_on_the_host():
    """Tensors without values refuse what would make a GPU's queue be waited for."""
    with FakeTensorMode():
        logits, masks = torch.rand(2, 3, 8, 12, requires_grad=True), torch.rand(2, 2, 32, 48)
        found, targets = sample_masks(logits, masks, torch.zeros(2, 3).long(), 64, True)
        found.sum().backward()
    assert found.shape == targets.shape == (2, 3, 64, 1) and logits.grad.shape == logits.shape


def test_micro_batches_add_up_within_the_randomness_of_points():
    logits, masks, index = smooth_masks()
    whole = GroundingTargets(
        torch.rand(2, 2, 4), masks, torch.ones(2, 2, dtype=torch.bool), num_targets=[2, 2]
    )
    criterion = GroundingCriterion(tiny_cfg(POINTS))
    assigned = torch.tensor([[0, 1, -1], [1, -1, 0]])
    torch.manual_seed(0)
    wanted = criterion.mask_terms(logits, assigned, whole)
    sums = dict.fromkeys(wanted, 0.0)
    for i in (0, 1):
        totals = BatchTotals(whole.totals.num_targets, parts=2)
        part = GroundingTargets(whole.boxes[[i]], masks[[i]], whole.valid[[i]], [2], totals)
        for key, value in criterion.mask_terms(logits[[i]], assigned[[i]], part).items():
            sums[key] += float(value) / 2
    assert sums == pytest.approx({key: float(value) for key, value in wanted.items()}, rel=0.03)
