"""How objects lie to each other, told by every patch: where others are, and which one in a row."""

from typing import Dict, Tuple

import torch
import torch.nn.functional as F
from torch import nn

from igvg_d2.data.synthetic.expressions import POSITION_MARGIN
from igvg_d2.data.synthetic.render import SHAPES
from igvg_d2.data.synthetic.scene import COLORS

DIRECTIONS = 4  # left, right, above, below
# Groups in which objects are counted off: of one shape, of one colour, of both.
GROUPS = 3
# Ranks that are told apart: first, second, third, later.
RANKS = 4
KINDS = len(SHAPES) + len(COLORS)


def neighbor_targets(
    centers: torch.Tensor, attributes: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    """What is true of every object.

    Args:
        centers: float (N, K, 2), (x, y) over the image's sides.
        attributes: int64 (N, K, 3), shape, colour and size; -1 where there is no object.

    Returns:
        float (N, K, DIRECTIONS, KINDS), 1 if an object of that shape or colour lies there, by more
        than the margin that expressions keep; int64 (N, K, DIRECTIONS, GROUPS), objects of the same
        group that lie further that way, at most ``RANKS - 1``.
    """
    there = attributes[..., 0] >= 0
    other = there[:, None, :] & ~torch.eye(there.shape[1], dtype=torch.bool, device=there.device)
    # (N, K, K, 2): from an object to another one.
    way = centers[:, None, :, :] - centers[:, :, None, :]
    sides = torch.stack([-way[..., 0], way[..., 0], -way[..., 1], way[..., 1]], dim=2)
    beyond = (sides > POSITION_MARGIN) & other[:, :, None, :]  # (N, K, DIRECTIONS, K)
    shape, color, _ = attributes.clamp(min=0).unbind(dim=2)
    kinds = torch.cat([F.one_hot(shape, len(SHAPES)), F.one_hot(color, len(COLORS))], dim=2)
    present = (beyond.float() @ kinds.float()[:, None]) > 0
    same_shape = shape[:, :, None] == shape[:, None, :]
    same_color = color[:, :, None] == color[:, None, :]
    groups = torch.stack([same_shape, same_color, same_shape & same_color], dim=3)  # (N, K, K, G)
    further = ((sides > 0) & other[:, :, None, :]).float() @ groups.float()
    return present.float(), further.long().clamp(max=RANKS - 1)


class NeighborHead(nn.Module):
    """Predicts :func:`neighbor_targets` of the object that a patch shows."""

    def __init__(self, dim: int):
        super().__init__()
        self.present = nn.Linear(dim, DIRECTIONS * KINDS)
        self.rank = nn.Linear(dim, DIRECTIONS * GROUPS * RANKS)

    def losses(
        self,
        patches: torch.Tensor,
        owner: torch.Tensor,
        weight: torch.Tensor,
        centers: torch.Tensor,
        attributes: torch.Tensor,
    ) -> Dict[str, torch.Tensor]:
        """
        Args:
            patches: float (N, S, C).
            owner: int64 (N, S), object that most of a patch shows.
            weight: float (N, S), of the patches; 0 for those that show none.
            centers, attributes: as in :func:`neighbor_targets`.
        """
        present, further = neighbor_targets(centers, attributes)
        rows = torch.arange(len(owner), device=owner.device)[:, None]
        total = weight.sum().clamp(min=1)
        error = F.binary_cross_entropy_with_logits(
            self.present(patches), present[rows, owner].flatten(2), reduction="none"
        )
        logits = self.rank(patches).view(*owner.shape, DIRECTIONS, GROUPS, RANKS)
        ranks = F.cross_entropy(
            logits.permute(0, 4, 1, 2, 3), further[rows, owner], reduction="none"
        )
        return {
            "loss_directions": (error.mean(dim=2) * weight).sum() / total,
            "loss_ranks": (ranks.flatten(2).mean(dim=2) * weight).sum() / total,
        }
