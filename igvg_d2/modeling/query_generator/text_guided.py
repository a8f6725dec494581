"""Text-guided queries (TGQG), the query generation that AQG replaces (Table 5, third row)."""

from typing import Dict, Optional, Tuple

import torch
from detectron2.config import configurable
from torch import nn

from ..backbone.build import VLFeatures
from ..targets import GroundingTargets
from .build import QUERY_GENERATOR_REGISTRY, GroundingQueries


@QUERY_GENERATOR_REGISTRY.register()
class TextGuidedQueryGenerator(nn.Module):
    """Learned queries read the text by cross-attention; their points are predicted from it."""

    @configurable
    def __init__(self, *, dim: int, num_queries: int, num_heads: int, dropout: float):
        """
        Args:
            dim: D.
            num_queries: N_q.
            num_heads, dropout: of the attention to the text.
        """
        super().__init__()
        self.features = nn.Parameter(torch.randn(num_queries, dim) * 0.02)
        self.attn = nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)
        self.norm = nn.LayerNorm(dim)
        self.points = nn.Linear(dim, 2)

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.QUERY_GENERATOR
        return {
            "dim": cfg.MODEL.IGVG.HIDDEN_DIM,
            "num_queries": node.NUM_OBJECT_QUERIES,
            "num_heads": node.NHEADS,
            "dropout": node.DROPOUT,
        }

    def forward(
        self, vl_features: VLFeatures, targets: Optional[GroundingTargets] = None
    ) -> Tuple[GroundingQueries, Dict[str, torch.Tensor]]:
        """See ``QUERY_GENERATOR_REGISTRY``; there is no loss."""
        text = vl_features.text
        queries = self.features.expand(len(text), -1, -1)
        read = self.attn(
            queries,
            text,
            text,
            key_padding_mask=vl_features.text_padding_mask,
            need_weights=False,
        )[0]
        features = self.norm(queries + read)
        return GroundingQueries(features, self.points(features).float().sigmoid()), {}
