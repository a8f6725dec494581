"""The detection and instance part of PIPH: decoder, predictors and criterion (Section 3.1)."""

from typing import Dict, List, Optional, Tuple

import torch
from detectron2.config import configurable
from torch import nn

from ..query_generator.build import GroundingQueries
from ..targets import GroundingTargets
from ..transformer import build_transformer_decoder
from .build import GROUNDING_HEAD_REGISTRY
from .criterion import GroundingCriterion
from .predictors import ClassBoxPredictor, MaskPredictor, ReferencePredictor


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
