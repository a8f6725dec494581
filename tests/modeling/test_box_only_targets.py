"""Targets with a box and no mask: they are learned as boxes, and no mask loss sees them."""

import pytest
import torch
from detectron2.modeling import build_model

from igvg_d2.modeling import GroundingTargets
from igvg_d2.modeling.grounding_head import GroundingCriterion
from igvg_d2.modeling.targets import BatchTotals
from igvg_d2.testing import random_batch, tiny_cfg

LEFT, RIGHT = [0.25, 0.5, 0.2, 0.2], [0.75, 0.5, 0.2, 0.2]
MASK_LOSSES = {"loss_sem_seg", "loss_sem_seg_dice", "loss_minimap", "loss_mask", "loss_dice"}
MASK_LOSSES |= {"loss_mask_neg", "loss_dice_neg"}


def box_only(batch, *places):
    """The batch with box-only targets at (sample, target); their masks are full, to show up."""
    for sample, target in places:
        batch[sample]["instances"].gt_has_mask[target] = False
        batch[sample]["instances"].gt_masks.tensor[target] = True
    return batch


def targets_of(batch):
    """As the model makes them."""
    instances = [sample["instances"] for sample in batch]
    return GroundingTargets.from_instances(instances, torch.device("cpu"))


def test_totals_count_masks_and_whole_samples():
    batch = box_only(random_batch([2, 1, 0]), (0, 1), (1, 0))
    targets = targets_of(batch)
    totals = BatchTotals.count([batch[:2], batch[2:]], torch.device("cpu"))
    assert targets.has_mask.tolist() == [[True, False], [False, False], [False, False]]
    assert targets.whole.tolist() == [False, False, True]
    for found in (targets.totals, totals):
        assert found.num_targets.tolist() == [2, 1, 0] and found.num_masks.tolist() == [1, 0, 0]
        assert float(found.whole_samples()) == 1.0
        # Of four queries: one match has a mask, and only the last sample's negatives count.
        assert found.mask_queries(4).tolist() == [1.0, 4.0]
        assert found.queries(4).tolist() == [3.0, 9.0]


def test_mask_terms_by_hand():
    masks = torch.zeros(1, 2, 4, 4)
    masks[0, 0, 0] = 1.0
    valid = torch.ones(1, 2, dtype=torch.bool)
    has_mask = torch.tensor([[True, False]])
    targets = GroundingTargets(torch.tensor([[LEFT, RIGHT]]), masks, valid, [2], has_mask=has_mask)
    criterion = GroundingCriterion(tiny_cfg())
    logits = torch.full((1, 3, 4, 4), 20.0)
    terms = criterion.mask_terms(logits, torch.tensor([[0, 1, -1]]), targets)
    # Of the first query 12 of 16 pixels are wrong by 20; nothing is known of the others.
    assert float(terms["mask"]) == pytest.approx(12 / 16 * 20, rel=1e-5)
    assert float(terms["mask_neg"]) == 0.0 and float(terms["dice_neg"]) == 0.0


@pytest.mark.parametrize("counts, places", [((2, 1), [(1, 0)]), ((1, 1), [(0, 0), (1, 0)])])
def test_what_is_no_mask_changes_no_loss(counts, places):
    model = build_model(tiny_cfg())
    model.train()
    found = []
    for fill in (True, False):
        batch = box_only(random_batch(counts), *places)
        for sample, target in places:
            batch[sample]["instances"].gt_masks.tensor[target] = fill
        torch.manual_seed(0)
        found.append(model(batch))
    assert found[0].keys() == model(random_batch(counts)).keys()
    for key, loss in found[0].items():
        assert torch.isfinite(loss) and torch.equal(loss, found[1][key]), key
    masks = [loss.item() for key, loss in found[0].items() if key in MASK_LOSSES]
    if len(places) == sum(counts):
        assert masks and not any(masks)
        assert found[0]["loss_bbox"].item() > 0 and found[0]["loss_no_target"].item() > 0
    sum(found[0].values()).backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_micro_batches_add_up_to_the_batch():
    criterion = GroundingCriterion(tiny_cfg())
    batch = box_only(random_batch([2, 1, 0, 1]), (0, 0), (1, 0))
    whole = targets_of(batch)
    logits = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assigned = torch.tensor([[0, 1, -1], [-1, 0, -1], [-1, -1, -1], [0, -1, -1]])
    wanted = criterion.mask_terms(logits, assigned, whole)
    totals = BatchTotals.count([batch[:2], batch[2:]], torch.device("cpu"))
    sums = dict.fromkeys(wanted, 0.0)
    for part in (slice(0, 2), slice(2, 4)):
        targets = targets_of(batch[part])
        targets.totals = totals
        for key, value in criterion.mask_terms(logits[part], assigned[part], targets).items():
            sums[key] += float(value) / 2
    assert sums == pytest.approx({key: float(value) for key, value in wanted.items()}, rel=1e-5)
