"""Point-prior multi-scale deformable decoder (Section 3.1; Table 7)."""

from typing import List

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import nn

from .build import TRANSFORMER_DECODER_REGISTRY
from .ms_deform_attn import MSDeformAttn


class FeedForward(nn.Module):
    """Post-norm feed-forward sub-layer with its residual."""

    def __init__(self, dim: int, ffn_dim: int, dropout: float):
        """
        Args:
            dim: D.
            ffn_dim: inner width.
            dropout: probability after both linear layers.
        """
        super().__init__()
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float (N, Q, D) -> float (N, Q, D)."""
        y = self.linear2(self.dropout(F.relu(self.linear1(x))))
        return self.norm(x + self.dropout(y))


class SelfAttention(nn.Module):
    """Post-norm self-attention among queries with its residual; positions enter query and key."""

    def __init__(self, dim: int, num_heads: int, dropout: float):
        """
        Args:
            dim: D.
            num_heads: M.
            dropout: of the attention weights and of the residual branch.

        Raises:
            ValueError: dim is not divisible by num_heads.
        """
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"HIDDEN_DIM = {dim} is not divisible by NHEADS = {num_heads}.")
        self.attn = nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor, pos: torch.Tensor) -> torch.Tensor:
        """float (N, Q, D) and its positions, same shape -> float (N, Q, D)."""
        q = x + pos
        y = self.attn(q, q, x, need_weights=False)[0]
        return self.norm(x + self.dropout(y))


class DeformableDecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention, feed-forward; post-norm."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float,
        num_levels: int,
        num_points: int,
    ):
        """
        Args:
            dim: D.
            num_heads, ffn_dim, dropout: as in DETR.
            num_levels, num_points: see :class:`MSDeformAttn`.
        """
        super().__init__()
        self.self_attn = SelfAttention(dim, num_heads, dropout)
        self.cross_attn = MSDeformAttn(dim, num_levels, num_heads, num_points)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim, dropout)

    def forward(self, x, pos, reference_points, memory, spatial_shapes) -> torch.Tensor:
        """
        Args:
            x, pos: float (N, Q, D), states and positions of the queries.
            reference_points, memory, spatial_shapes: see :meth:`MSDeformAttn.forward`.

        Returns:
            float (N, Q, D).
        """
        x = self.self_attn(x, pos)
        y = self.cross_attn(x + pos, reference_points, memory, spatial_shapes)
        return self.ffn(self.norm(x + self.dropout(y)))


@TRANSFORMER_DECODER_REGISTRY.register()
class DeformableDecoder(nn.Module):
    """Stack of deformable layers; every layer samples around the same reference points.

    The memory is the raw pyramid, without position or level embedding, and references are not
    refined between layers, as in the released model.
    """

    @configurable
    def __init__(
        self,
        *,
        dim: int,
        num_layers: int,
        num_heads: int,
        ffn_dim: int,
        dropout: float,
        num_levels: int,
        num_points: int = 4,
    ):
        """
        Args:
            dim: D.
            num_layers: decoder layers.
            num_heads, ffn_dim, dropout, num_levels, num_points: see DeformableDecoderLayer.
        """
        super().__init__()
        self.layers = nn.ModuleList(
            DeformableDecoderLayer(dim, num_heads, ffn_dim, dropout, num_levels, num_points)
            for _ in range(num_layers)
        )

    @classmethod
    def from_config(cls, cfg, input_shape):
        head = cfg.MODEL.GROUNDING_HEAD
        return {
            "dim": cfg.MODEL.IGVG.HIDDEN_DIM,
            "num_layers": head.DEC_LAYERS,
            "num_heads": head.NHEADS,
            "ffn_dim": head.DIM_FEEDFORWARD,
            "dropout": head.DROPOUT,
            "num_levels": len(input_shape),
        }

    def forward(
        self,
        query: torch.Tensor,
        query_pos: torch.Tensor,
        reference_points: torch.Tensor,
        features: List[torch.Tensor],
    ) -> torch.Tensor:
        """
        Args:
            query, query_pos: float (N, Q, D).
            reference_points: float (N, Q, 2), (x, y), normalised.
            features: levels, float (N, D, Hi, Wi).

        Returns:
            float (layers, N, Q, D).
        """
        spatial_shapes = [tuple(level.shape[-2:]) for level in features]
        memory = torch.cat([level.flatten(2).transpose(1, 2) for level in features], dim=1)
        states = []
        for layer in self.layers:
            query = layer(query, query_pos, reference_points, memory, spatial_shapes)
            states.append(query)
        return torch.stack(states)
