"""Queries at the cells that most likely hold the center of a target."""

from typing import Dict, Optional, Tuple

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from fvcore.nn import sigmoid_focal_loss
from torch import nn

from igvg_d2.modeling import (
    QUERY_GENERATOR_REGISTRY,
    GroundingQueries,
    GroundingTargets,
    VLFeatures,
)
from igvg_d2.modeling.query_generator import cell_centers, select_top_points


@QUERY_GENERATOR_REGISTRY.register()
class CenterQueryGenerator(nn.Module):
    """Scores every cell from the image and the mean of the words; the best cells become queries."""

    @configurable
    def __init__(self, *, dim: int, num_queries: int, loss_weight: float):
        """
        Args:
            dim: D.
            num_queries: N_q.
            loss_weight: weight of the focal loss.
        """
        super().__init__()
        self.num_queries = num_queries
        self.loss_weight = loss_weight
        self.text = nn.Linear(dim, dim)
        self.hidden = nn.Conv2d(dim, dim, kernel_size=3, padding=1)
        self.score = nn.Conv2d(dim, 1, kernel_size=1)

    @classmethod
    def from_config(cls, cfg):
        return {
            "dim": cfg.MODEL.IGVG.HIDDEN_DIM,
            "num_queries": cfg.MODEL.QUERY_GENERATOR.NUM_OBJECT_QUERIES,
            "loss_weight": cfg.MODEL.CENTER_QUERIES.LOSS_WEIGHT,
        }

    def forward(
        self, vl_features: VLFeatures, targets: Optional[GroundingTargets] = None
    ) -> Tuple[GroundingQueries, Dict[str, torch.Tensor]]:
        """See ``QUERY_GENERATOR_REGISTRY``. The loss key is ``loss_center``."""
        valid = (~vl_features.text_padding_mask)[..., None].float()
        sentence = (vl_features.text * valid).sum(dim=1) / valid.sum(dim=1)
        text = self.text(sentence)[..., None, None]
        hidden = F.relu(self.hidden(vl_features.image["last_feat"] + text))
        logits = self.score(hidden)[:, 0]
        height, width = logits.shape[-2:]
        indices = select_top_points(logits, self.num_queries)
        cells = hidden.flatten(2).transpose(1, 2)
        queries = GroundingQueries(
            features=cells.gather(1, indices[..., None].expand(-1, -1, cells.shape[-1])),
            reference_points=cell_centers(indices, height, width),
            attention_map=logits.sigmoid(),
        )
        if targets is None:
            return queries, {}
        return queries, {"loss_center": self.loss_weight * center_loss(logits, targets)}


def center_loss(logits: torch.Tensor, targets: GroundingTargets) -> torch.Tensor:
    """Focal loss of the cells that hold a target's center against the others, per target.

    Args:
        logits: float (N, Hi, Wi).
        targets: N samples; a sample without target has no positive cell.

    Returns:
        float scalar, finite also when no sample has a target.
    """
    height, width = logits.shape[-2:]
    column = (targets.boxes[..., 0] * width).long().clamp(0, width - 1)
    row = (targets.boxes[..., 1] * height).long().clamp(0, height - 1)
    truth = torch.zeros_like(logits.flatten(1), dtype=torch.float32)
    truth = truth.scatter_add(1, row * width + column, targets.valid.float()).clamp(max=1.0)
    loss = sigmoid_focal_loss(logits.flatten(1).float(), truth, alpha=0.25, reduction="sum")
    return loss / targets.num_boxes()
