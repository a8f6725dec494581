"""Layers that decoders, query generators and heads share."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int):
        """
        Args:
            in_dim, hidden_dim, out_dim: channels of input, inner layers and output.
            num_layers: linear layers, at least 1.
        """
        super().__init__()
        dims = [in_dim] + [hidden_dim] * (num_layers - 1) + [out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(dims, dims[1:]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float (..., in_dim) -> float (..., out_dim)."""
        return self.layers[-1](self.hidden(x))

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        """Everything before the last linear layer: float (..., in_dim) -> (..., hidden_dim)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return x


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


class PositionEmbeddingSine(nn.Module):
    """Sine position embedding of a grid (Carion et al., DETR, ECCV 2020).

    Half of the channels encode the row, half the column; no learned parameter.
    """

    def __init__(self, dim: int, temperature: float = 10000.0):
        """
        Args:
            dim: channels of the embedding, a multiple of 4.
            temperature: longest wavelength.

        Raises:
            ValueError: dim is not a multiple of 4.
        """
        super().__init__()
        if dim % 4:
            raise ValueError(f"A sine position embedding needs dim % 4 == 0, got {dim}.")
        steps = torch.arange(dim // 2, dtype=torch.float32)
        wavelength = temperature ** (2 * torch.div(steps, 2, rounding_mode="floor") / (dim // 2))
        self.register_buffer("wavelength", wavelength, persistent=False)

    def forward(self, height: int, width: int) -> torch.Tensor:
        """
        Args:
            height, width: size of the grid in cells.

        Returns:
            float (height * width, dim), row-major. Rows and columns count 1..n, divided by n and
            scaled to 2 pi.
        """
        rows = self._encode(height)[:, None].expand(-1, width, -1)
        columns = self._encode(width)[None].expand(height, -1, -1)
        return torch.cat([rows, columns], dim=-1).flatten(0, 1)

    def _encode(self, length: int) -> torch.Tensor:
        """float (length, dim / 2): sine and cosine interleaved."""
        position = torch.arange(1, length + 1, device=self.wavelength.device)
        angle = position[:, None] / (length + 1e-6) * 2 * math.pi / self.wavelength
        return torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=-1).flatten(1)
