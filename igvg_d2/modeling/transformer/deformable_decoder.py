"""Point-prior multi-scale deformable decoder (Section 3.1; Table 7).

Its attention is plain PyTorch (Zhu et al., Deformable DETR, ICLR 2021).
"""

import math
from typing import List, Tuple

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import nn

from ..transfer import to_device
from .build import TRANSFORMER_DECODER_REGISTRY
from .layers import FeedForward, SelfAttention


def ms_deform_attn_core(
    value: torch.Tensor,
    spatial_shapes: List[Tuple[int, int]],
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
) -> torch.Tensor:
    """Weighted sum of bilinear samples from every level; zero outside a map.

    Args:
        value: float (N, sum(Hi * Wi), M, D / M), levels one after the other, row-major.
        spatial_shapes: (Hi, Wi) of each of the S levels, Python ints.
        sampling_locations: float (N, Q, M, S, P, 2), (x, y); [0, 1] covers a map edge to edge.
        attention_weights: float (N, Q, M, S, P), summing to 1 over (S, P).

    Returns:
        float (N, Q, D).
    """
    n, _, heads, dim = value.shape
    num_queries, num_points = sampling_locations.shape[1], sampling_locations.shape[4]
    grids = (2 * sampling_locations - 1).transpose(1, 2).flatten(0, 1)  # (N * M, Q, S, P, 2)
    maps = value.permute(0, 2, 3, 1).flatten(0, 1)  # (N * M, D / M, sum(Hi * Wi))
    samples = []
    lengths = [height * width for height, width in spatial_shapes]
    for level, level_map in enumerate(maps.split(lengths, dim=-1)):
        level_map = level_map.reshape(n * heads, dim, *spatial_shapes[level])
        samples.append(
            F.grid_sample(
                level_map,
                grids[:, :, level],
                mode="bilinear",
                padding_mode="zeros",
                align_corners=False,
            )
        )
    weights = attention_weights.transpose(1, 2).reshape(n * heads, 1, num_queries, -1)
    stacked = torch.stack(samples, dim=-2).flatten(-2)  # (N * M, D / M, Q, S * P)
    assert stacked.shape[-1] == len(spatial_shapes) * num_points
    out = (stacked * weights).sum(-1)
    return out.view(n, heads * dim, num_queries).transpose(1, 2)


class MSDeformAttn(nn.Module):
    """Deformable cross-attention from queries with reference points to a feature pyramid."""

    def __init__(self, dim: int, num_levels: int, num_heads: int, num_points: int):
        """
        Args:
            dim: D, a multiple of num_heads.
            num_levels: S.
            num_heads: M.
            num_points: P, samples per head and level.

        Raises:
            ValueError: dim is not divisible by num_heads.
        """
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"HIDDEN_DIM = {dim} is not divisible by NHEADS = {num_heads}.")
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.sampling_offsets = nn.Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """Heads start looking in different directions, points at growing distances."""
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        distances = torch.arange(1, self.num_points + 1)
        offsets = directions[:, None, None] * distances[:, None]
        offsets = offsets.expand(-1, self.num_levels, -1, -1)
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        query: torch.Tensor,
        reference_points: torch.Tensor,
        memory: torch.Tensor,
        spatial_shapes: List[Tuple[int, int]],
    ) -> torch.Tensor:
        """
        Args:
            query: float (N, Q, D), position already added.
            reference_points: float (N, Q, 2), (x, y), normalised; may lie outside [0, 1].
            memory: float (N, sum(Hi * Wi), D).
            spatial_shapes: (Hi, Wi) of each level, Python ints.

        Returns:
            float (N, Q, D).
        """
        # Sampling is in float32: half precision places points of an 80-cell map 0.2 cells off, and
        # grid_sample wants maps and points of one type.
        offsets, weights = self.offsets_and_weights(query)
        dtype = offsets.dtype
        value = self.value_proj(memory).to(dtype).unflatten(-1, (self.num_heads, -1))
        # Offsets are in cells of their level.
        cells = torch.tensor([shape[::-1] for shape in spatial_shapes], dtype=dtype)
        cells = to_device(cells, offsets.device)
        locations = reference_points.to(dtype)[:, :, None, None, None] + offsets / cells[:, None]
        out = ms_deform_attn_core(value, spatial_shapes, locations, weights)
        return self.output_proj(out.to(query.dtype))

    def offsets_and_weights(self, query: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Offsets (N, Q, M, S, P, 2) in cells, and weights (N, Q, M, S, P), in float32 or more."""
        layout = (*query.shape[:2], self.num_heads, self.num_levels, self.num_points)
        dtype = torch.promote_types(query.dtype, torch.float32)
        offsets = self.sampling_offsets(query).to(dtype).view(*layout, 2)
        weights = self.attention_weights(query).to(dtype).view(*layout[:3], -1).softmax(-1)
        return offsets, weights.view(layout)


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
