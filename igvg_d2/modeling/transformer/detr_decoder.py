"""Standard DETR decoder, the first row of Table 7 (Carion et al., ECCV 2020)."""

from typing import List

import torch
from detectron2.config import configurable
from torch import nn

from .build import TRANSFORMER_DECODER_REGISTRY
from .layers import FeedForward, PositionEmbeddingSine, SelfAttention


class DETRDecoderLayer(nn.Module):
    """Self-attention, global cross-attention, feed-forward; post-norm."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, dropout: float):
        """
        Args:
            dim: D.
            num_heads, ffn_dim, dropout: as in DETR.
        """
        super().__init__()
        self.self_attn = SelfAttention(dim, num_heads, dropout)
        self.cross_attn = nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim, dropout)

    def forward(self, x, pos, key, value) -> torch.Tensor:
        """
        Args:
            x, pos: float (N, Q, D), states and positions of the queries.
            key, value: float (N, H * W, D), memory with and without positions.

        Returns:
            float (N, Q, D).
        """
        x = self.self_attn(x, pos)
        y = self.cross_attn(x + pos, key, value, need_weights=False)[0]
        return self.ffn(self.norm(x + self.dropout(y)))


@TRANSFORMER_DECODER_REGISTRY.register()
class DETRDecoder(nn.Module):
    """Queries attend to every cell of one level; reference points are not used."""

    @configurable
    def __init__(self, *, dim: int, num_layers: int, num_heads: int, ffn_dim: int, dropout: float):
        """
        Args:
            dim: D.
            num_layers: decoder layers.
            num_heads, ffn_dim, dropout: as in DETR.
        """
        super().__init__()
        self.layers = nn.ModuleList(
            DETRDecoderLayer(dim, num_heads, ffn_dim, dropout) for _ in range(num_layers)
        )
        self.position = PositionEmbeddingSine(dim)

    @classmethod
    def from_config(cls, cfg, input_shape):
        if len(input_shape) != 1:
            raise ValueError(
                "DETRDecoder reads one level; set MODEL.GROUNDING_HEAD.IN_FEATURES to ['p4'], "
                f"found {list(input_shape)}."
            )
        head = cfg.MODEL.GROUNDING_HEAD
        return {
            "dim": cfg.MODEL.IGVG.HIDDEN_DIM,
            "num_layers": head.DEC_LAYERS,
            "num_heads": head.NHEADS,
            "ffn_dim": head.DIM_FEEDFORWARD,
            "dropout": head.DROPOUT,
        }

    def forward(
        self,
        query: torch.Tensor,
        query_pos: torch.Tensor,
        reference_points: torch.Tensor,
        features: List[torch.Tensor],
    ) -> torch.Tensor:
        """See :meth:`DeformableDecoder.forward`; ``reference_points`` is ignored."""
        (level,) = features
        memory = level.flatten(2).transpose(1, 2)
        key = memory + self.position(*level.shape[-2:])
        states = []
        for layer in self.layers:
            query = layer(query, query_pos, key, memory)
            states.append(query)
        return torch.stack(states)
