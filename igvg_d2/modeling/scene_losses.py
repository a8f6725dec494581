"""Losses on the objects that a stem finds; every sample weighs the same."""

import torch
import torch.nn.functional as F

from .backbone.build import SceneObjects
from .targets import GroundingTargets, SceneTargets

# Spread, in cells, of the wanted centre score around the centre; and how much more a centre weighs
# than a cell without one, of which there are many more.
_CENTER_SPREAD = 0.6
_CENTER_EMPHASIS = 8.0


def center_loss(objects: SceneObjects, scene: SceneTargets) -> torch.Tensor:
    """Centres, votes for them, and foreground, for all objects of the pictures.

    Binary cross-entropy against a score that falls off around the centre of every visible box, L1
    distance of the votes of the objects' cells in cells, binary cross-entropy against the share of
    objects in a cell.

    Args:
        objects: N pictures with a grid of h * w cells.
        scene: the same pictures, network frame.

    Returns:
        float scalar, mean over the pictures.
    """
    height, width = objects.center_logits.shape[-2:]
    shares = scene.object_shares((height, width))
    centers, present = scene.object_centers()
    centers = centers * centers.new_tensor([width, height])
    squared = (centers[:, None] - objects.cell_middles[:, None]).square().sum(-1)
    closeness = (-squared / (2 * _CENTER_SPREAD**2)).exp() * present[:, None]
    wanted = closeness.amax(dim=2)
    weights = 1 + _CENTER_EMPHASIS * wanted
    score_loss = F.binary_cross_entropy_with_logits(
        objects.center_logits.float().flatten(1), wanted, reduction="none"
    )
    score_loss = (score_loss * weights).sum(dim=1) / weights.sum(dim=1)
    miss = (objects.votes.float()[:, :, None] - centers[:, None]).abs().sum(-1)
    vote_loss = (miss * shares).sum(dim=(1, 2)) / (shares.sum(dim=(1, 2)) + 1)
    foreground_loss = F.binary_cross_entropy_with_logits(
        objects.foreground_logits.float().flatten(1),
        shares.sum(dim=2).clamp(max=1),
        reduction="none",
    ).mean(dim=1)
    return (score_loss + vote_loss + foreground_loss).mean()


def object_loss(objects: SceneObjects, targets: GroundingTargets) -> torch.Tensor:
    """Binary cross-entropy of "this object is a target", over the objects that were found.

    An object counts as a target if most of its foreground is.

    Args:
        objects: N pictures, with target_logits.
        targets: masks in the network frame.

    Returns:
        float scalar, mean over the samples.
    """
    size = objects.center_logits.shape[-2:]
    union = F.interpolate(targets.union_masks, size=size, mode="area").flatten(1)
    assignment = objects.assignment.detach().float()
    inside = (assignment * union[..., None]).sum(dim=1)
    wanted = (inside > 0.5 * assignment.sum(dim=1)).float()
    exists = objects.exists_logits.detach().float().sigmoid()
    loss = F.binary_cross_entropy_with_logits(
        objects.target_logits.float(), wanted, reduction="none"
    )
    return ((loss * exists).sum(dim=1) / (exists.sum(dim=1) + 1e-3)).mean()
