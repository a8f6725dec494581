"""Reasoning of an expression over objects: words take roles, roles select and relate objects."""

from dataclasses import replace
from typing import Tuple

import torch
from torch import nn
from torch.nn import functional as F

from .build import SceneObjects

# Numbers of objects that are told apart exactly: 0 to 4.
_COUNTS = 5
_POOL_HEADS = 4
# Steepness of comparisons of positions, which are fractions of the picture: the first is felt at a
# difference of about 1/10, the second separates 1/20.
_SIDE_SHARPNESS = 8.0
_ORDER_SHARPNESS = 20.0
# Features are selected by the text through products, which must be felt from the beginning.
_SELECTION_STD = 0.3
_MODULATION_STD = 0.1


class RoleReasoner(nn.Module):
    """Decides which objects an expression refers to, from the likeness of words and objects.

    Every word takes one of a few roles, or none: those of "the red star left of the ring" could be
    "what is wanted" (red, star) and "what it is related to" (ring), as in compositional modular
    networks (Hu et al., CVPR 2017). An object fits a role as well as it resembles its words. From
    that follow, for every object and role, facts that sentences are made of: how well it fits, how
    many do, on which side and how far it is from the one that does, how many of those are further
    left, right, up or down. The text selects among these facts, and a small network combines them.
    """

    def __init__(self, embed_dim: int, num_roles: int):
        """
        Args:
            embed_dim: C, width of words and objects.
            num_roles: H.
        """
        super().__init__()
        self.num_roles = num_roles
        num_facts = num_roles * (14 + 5 * _COUNTS)
        self.text_norm = nn.LayerNorm(embed_dim)
        self.role = nn.Linear(embed_dim, num_roles + 1)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.pool = nn.Linear(embed_dim, _POOL_HEADS)
        self.value = nn.Linear(embed_dim, embed_dim)
        self.pooled_norm = nn.LayerNorm(embed_dim)
        self.threshold = nn.Linear(embed_dim, num_roles)
        self.selection = nn.Linear(embed_dim, num_facts)
        self.input = nn.Linear(num_facts, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)
        self.hidden = nn.Linear(embed_dim, embed_dim)
        self.modulations = nn.ModuleList(nn.Linear(embed_dim, 2 * embed_dim) for _ in range(2))
        self.predictor = nn.Linear(embed_dim, 1)
        nn.init.normal_(self.selection.weight, std=_SELECTION_STD)
        for modulation in self.modulations:
            nn.init.normal_(modulation.weight, std=_MODULATION_STD)

    def forward(
        self,
        objects: SceneObjects,
        similarity: torch.Tensor,
        text: torch.Tensor,
        text_padding_mask: torch.Tensor,
    ) -> Tuple[SceneObjects, torch.Tensor]:
        """
        Args:
            objects: K slots of every picture.
            similarity: float (N, K, L), likeness of objects and words.
            text: float (N, L, C), words in their context.
            text_padding_mask: bool (N, L), True = padding.

        Returns:
            the objects with target_logits, and what was found about each of them, float (N, K, C).
        """
        text = self.text_norm(text)
        padding = text_padding_mask[..., None]
        # The last role is that of words that describe no object.
        roles = self.role(text).softmax(dim=-1)[..., :-1].masked_fill(padding, 0.0)
        weights = self.pool(text).masked_fill(padding, float("-inf")).softmax(dim=1)
        values = self.value(text).unflatten(-1, (_POOL_HEADS, -1))
        pooled = self.pooled_norm((weights[..., None] * values).sum(dim=1).flatten(1))
        fit = self.scale * (similarity @ roles) + self.threshold(pooled)[:, None]
        # Sides and orders are decided by small differences of positions.
        with torch.autocast(fit.device.type, enabled=False):
            facts = object_facts(fit.float(), objects.exists_logits, objects.positions)
        found = self.input(facts * (1 + self.selection(pooled)[:, None]))
        scales_shifts = [m(pooled)[:, None].chunk(2, dim=-1) for m in self.modulations]
        scale, shift = scales_shifts[0]
        found = F.gelu(found * (1 + scale) + shift)
        scale, shift = scales_shifts[1]
        found = found + F.gelu(self.hidden(self.norm(found)) * (1 + scale) + shift)
        return replace(objects, target_logits=self.predictor(found)[..., 0]), found


def object_facts(
    fit: torch.Tensor, exists_logits: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """What can be said of every object with respect to every role.

    Args:
        fit: float (N, K, H) logits, how well an object fits a role.
        exists_logits: float (N, K).
        positions: float (N, K, 2), (x, y) as fractions of the picture.

    Returns:
        float (N, K, F), F = H * (14 + 5 * 5). For each role: how well the object fits (a bounded
        logit and a probability), how many do, how far it is from the one that does; how much it is
        the outermost to the right, bottom, left and top of those that fit; whether it is right of
        and below the one that does; how many that fit are further right, down, left and up; and
        these four numbers and their total again, compared with 0 to 4.
    """
    exists = exists_logits.sigmoid()[..., None]
    log_exists = F.logsigmoid(exists_logits)[..., None]
    prob = fit.sigmoid() * exists
    directed = torch.cat([positions, -positions], dim=-1)
    anchor_weights = (fit + log_exists).softmax(dim=1)
    outermost = fit[:, :, None] + log_exists[..., None]
    outermost = outermost + 2 * _SIDE_SHARPNESS * directed[..., None]
    outermost = outermost.softmax(dim=1)
    anchors = anchor_weights.transpose(1, 2) @ positions
    shift = positions[:, :, None] - anchors[:, None]
    side = (_SIDE_SHARPNESS * shift).tanh()
    # The root's gradient is infinite at 0, where an object is its own anchor.
    distance = 4 * (shift.square().sum(-1) + 1e-4).sqrt()
    # (N, i, j, 4): whether j is further than i; no object is further than itself.
    further = (_ORDER_SHARPNESS * (directed[:, None] - directed[:, :, None])).sigmoid()
    others = 1 - torch.eye(fit.shape[1], dtype=fit.dtype, device=fit.device)
    number_further = torch.einsum("nijd,njh->nidh", further * others[..., None], prob).flatten(2)
    total = prob.sum(dim=1, keepdim=True).expand_as(prob)
    numbers = torch.arange(_COUNTS, dtype=fit.dtype, device=fit.device)
    counts = torch.cat([number_further, total], dim=-1)[..., None]
    is_number = torch.exp(-2 * (counts - numbers).square()).flatten(2)
    bounded_fit = 3 * (fit / 9).tanh()
    return torch.cat(
        [
            bounded_fit,
            prob,
            total,
            distance,
            outermost.flatten(2),
            side.flatten(2),
            number_further,
            is_number,
        ],
        dim=-1,
    )
