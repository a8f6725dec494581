"""The detection and instance part of PIPH: decoder, predictors and criterion (Section 3.1)."""

from typing import Dict, List, Optional, Tuple

import torch
from detectron2.config import configurable
from torch import nn

from ..query_generator.build import GroundingQueries
from ..targets import GroundingTargets
from ..transformer import MLP, build_transformer_decoder
from .build import GROUNDING_HEAD_REGISTRY
from .criterion import GroundingCriterion

# |logit| of a reference coordinate stays below log(1 / 1e-3) = 6.91.
LOGIT_EPS = 1e-3


class ClassBoxPredictor(nn.Module):
    """Class logits and boxes relative to the reference point, shared by all decoder layers."""

    def __init__(self, dim: int):
        """
        Args:
            dim: D.
        """
        super().__init__()
        self.class_embed = nn.Linear(dim, 2)
        self.box_embed = MLP(dim, dim, 4, num_layers=3)
        # Boxes start small: sigmoid(-2) = 0.12 of the image side.
        nn.init.zeros_(self.box_embed.layers[-1].weight)
        with torch.no_grad():
            self.box_embed.layers[-1].bias.copy_(torch.tensor([0.0, 0.0, -2.0, -2.0]))

    def forward(
        self, states: torch.Tensor, reference_points: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            states: float (..., N, Q, D).
            reference_points: float (N, Q, 2), (x, y), normalised.

        Returns:
            logits float (..., N, Q, 2), class 0 = target; boxes float (..., N, Q, 4) as
            (cx, cy, w, h) in [0, 1].
        """
        offset = self.box_embed(states).float()
        inside = reference_points.float().clamp(0, 1)
        # Both sides are clamped on their own, as in the release: torch.logit(eps) gives log(999).
        center = (inside.clamp(min=LOGIT_EPS) / (1 - inside).clamp(min=LOGIT_EPS)).log()
        boxes = torch.cat([offset[..., :2] + center, offset[..., 2:]], dim=-1).sigmoid()
        return self.class_embed(states), boxes


class MaskPredictor(nn.Module):
    """Instance masks as dot products of queries and mask features (Q_d x S_global)."""

    def __init__(self, dim: int, mask_dim: int):
        """
        Args:
            dim: D, width of the query states.
            mask_dim: width of the mask features; a projection bridges a difference, none otherwise.
        """
        super().__init__()
        self.mask_embed = nn.Identity() if dim == mask_dim else nn.Linear(dim, mask_dim)

    def forward(self, states: torch.Tensor, mask_features: torch.Tensor) -> torch.Tensor:
        """
        Args:
            states: float (N, Q, D).
            mask_features: float (N, mask_dim, Hm, Wm).

        Returns:
            logits, float (N, Q, Hm, Wm).
        """
        return torch.einsum("nqc,nchw->nqhw", self.mask_embed(states), mask_features)


class ReferencePredictor(nn.Module):
    """Reference point of a query from its position (Table 7)."""

    def __init__(self, dim: int, mode: str):
        """
        Args:
            dim: D.
            mode: "point" keeps the selected point, "shifted" adds a learned shift in (0, 1),
                "learned" ignores the point's value but for its embedding.

        Raises:
            ValueError: unknown mode.
        """
        super().__init__()
        if mode not in ("point", "shifted", "learned"):
            raise ValueError(
                "MODEL.GROUNDING_HEAD.REFERENCE must be 'point', 'shifted' or 'learned', "
                f"got {mode!r}."
            )
        self.mode = mode
        self.shift: Optional[nn.Linear] = None
        if mode != "point":
            self.shift = nn.Linear(dim, 2)
            nn.init.xavier_normal_(self.shift.weight)
            # sigmoid(-4) = 0.02: a shift that starts near zero; references past 1 would saturate.
            nn.init.constant_(self.shift.bias, -4.0 if mode == "shifted" else 0.0)

    def forward(self, points: torch.Tensor, query_pos: torch.Tensor) -> torch.Tensor:
        """
        Args:
            points: float (N, Q, 2), selected points, (x, y) in [0, 1].
            query_pos: float (N, Q, D).

        Returns:
            float (N, Q, 2); "shifted" may exceed 1.
        """
        if self.shift is None:
            return points
        shift = self.shift(query_pos).float().sigmoid()
        return points + shift if self.mode == "shifted" else shift


@GROUNDING_HEAD_REGISTRY.register()
class PointGuidedGroundingHead(nn.Module):
    """Queries read the pyramid around their reference points and predict class, box and mask."""

    @configurable
    def __init__(
        self,
        *,
        dim: int,
        in_features: List[str],
        decoder: nn.Module,
        reference: str,
        mask_predictor: Optional[MaskPredictor],
        criterion: GroundingCriterion,
    ):
        """
        Args:
            dim: D.
            in_features: neck levels for the decoder, fine to coarse.
            decoder: from ``TRANSFORMER_DECODER_REGISTRY``.
            reference: mode of :class:`ReferencePredictor`.
            mask_predictor: None for a head without instance masks.
            criterion: matcher and losses.
        """
        super().__init__()
        self.in_features = list(in_features)
        self.query_pos = nn.Linear(2, dim)
        self.reference = ReferencePredictor(dim, reference)
        self.decoder = decoder
        self.predictor = ClassBoxPredictor(dim)
        self.mask_predictor = mask_predictor
        self.criterion = criterion

    @classmethod
    def from_config(cls, cfg, input_shape, mask_dim: int):
        head = cfg.MODEL.GROUNDING_HEAD
        dim = cfg.MODEL.IGVG.HIDDEN_DIM
        return {
            "dim": dim,
            "in_features": head.IN_FEATURES,
            "decoder": build_transformer_decoder(cfg, input_shape),
            "reference": head.REFERENCE,
            "mask_predictor": MaskPredictor(dim, mask_dim) if head.MASK_ON else None,
            "criterion": GroundingCriterion(cfg),
        }

    def forward(
        self,
        queries: GroundingQueries,
        features: Dict[str, torch.Tensor],
        mask_features: torch.Tensor,
        targets: Optional[GroundingTargets] = None,
    ) -> Tuple[Dict[str, torch.Tensor], Dict[str, torch.Tensor]]:
        """See ``GROUNDING_HEAD_REGISTRY``; the losses are those of :class:`GroundingCriterion`."""
        points = queries.reference_points
        query_pos = self.query_pos(points)
        reference_points = self.reference(points, query_pos)
        levels = [features[name] for name in self.in_features]
        states = self.decoder(queries.features, query_pos, reference_points, levels)
        if targets is None:
            states = states[-1:]
        logits, boxes = self.predictor(states, reference_points)
        masks = None
        if self.mask_predictor is not None:
            masks = self.mask_predictor(states[-1], mask_features)
        losses = {}
        if targets is not None:
            losses = self.criterion(logits, boxes, points, masks, targets)
        outputs = {
            "pred_logits": logits[-1],
            "pred_boxes": boxes[-1],
            "pred_masks": masks,
            "pred_points": points,
        }
        return outputs, losses
