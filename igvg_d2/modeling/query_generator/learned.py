"""Learned queries, the baseline of Tables 5 and 7."""

from typing import Dict, Optional, Tuple

import torch
from detectron2.config import configurable
from torch import nn

from ..backbone.build import VLFeatures
from ..targets import GroundingTargets
from .build import QUERY_GENERATOR_REGISTRY, GroundingQueries


@QUERY_GENERATOR_REGISTRY.register()
class LearnedQueryGenerator(nn.Module):
    """The same learned queries and points for every sample (DETR)."""

    @configurable
    def __init__(self, *, dim: int, num_queries: int):
        """
        Args:
            dim: D.
            num_queries: N_q.
        """
        super().__init__()
        self.features = nn.Parameter(torch.randn(num_queries, dim) * 0.02)
        # Points start spread over the image, not in its center.
        self.points = nn.Parameter(torch.logit(torch.rand(num_queries, 2), eps=0.05))

    @classmethod
    def from_config(cls, cfg):
        return {
            "dim": cfg.MODEL.IGVG.HIDDEN_DIM,
            "num_queries": cfg.MODEL.QUERY_GENERATOR.NUM_OBJECT_QUERIES,
        }

    def forward(
        self, vl_features: VLFeatures, targets: Optional[GroundingTargets] = None
    ) -> Tuple[GroundingQueries, Dict[str, torch.Tensor]]:
        """See ``QUERY_GENERATOR_REGISTRY``; there is no loss."""
        n = len(vl_features.text)
        # The text is not read, and DDP wants the parameters it comes from in the graph.
        features = self.features + 0.0 * vl_features.text.float().sum()
        queries = GroundingQueries(
            features=features.expand(n, -1, -1),
            reference_points=self.points.sigmoid().expand(n, -1, -1),
        )
        return queries, {}
