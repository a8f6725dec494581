"""Sine position embedding of a grid (Carion et al., DETR, ECCV 2020)."""

import math

import torch
from torch import nn


class PositionEmbeddingSine(nn.Module):
    """Half of the channels encode the row, half the column; no learned parameter."""

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
