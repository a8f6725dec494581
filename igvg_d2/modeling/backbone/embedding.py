"""Token embeddings of BEiT-3: image patches, CLS and words, with learned positions."""

from typing import Tuple

import torch
import torch.nn.functional as F
from torch import nn

# Standard deviation of the truncated normal that initialises tables and linear layers.
INIT_STD = 0.02


class VisionEmbedding(nn.Module):
    """Patches and the CLS token, plus positions interpolated to the input's grid at run time."""

    def __init__(self, embed_dim: int, patch_size: int, pretrain_image_size: Tuple[int, int]):
        """
        Args:
            embed_dim: C.
            patch_size: side of a patch in pixels.
            pretrain_image_size: (height, width) in pixels the position table covers.
        """
        super().__init__()
        self.grid = tuple(side // patch_size for side in pretrain_image_size)
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.cls_position = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.positions = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], embed_dim))
        for table in (self.cls_token, self.cls_position, self.positions):
            nn.init.trunc_normal_(table, std=INIT_STD)

    def forward(self, images: torch.Tensor) -> Tuple[torch.Tensor, Tuple[int, int]]:
        """
        Args:
            images: float (N, 3, H, W).

        Returns:
            tokens float (N, 1 + Hi * Wi, C) with CLS first, and the grid (Hi, Wi).
        """
        x = self.proj(images)
        grid = (x.shape[2], x.shape[3])
        tokens = x.flatten(2).transpose(1, 2) + self.grid_positions(grid)
        cls = (self.cls_token + self.cls_position).expand(tokens.shape[0], -1, -1)
        return torch.cat([cls, tokens], dim=1), grid

    def grid_positions(self, grid: Tuple[int, int]) -> torch.Tensor:
        """Positions of a grid (Hi, Wi), float (1, Hi * Wi, C)."""
        return interpolate_positions(self.positions, self.grid, grid)


class TextEmbedding(nn.Module):
    """Word embeddings with learned positions; padded positions are zero (as in BEiT-3)."""

    def __init__(self, vocab_size: int, embed_dim: int, max_positions: int):
        """
        Args:
            vocab_size: rows of the token table.
            embed_dim: C.
            max_positions: longest text in tokens.
        """
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, embed_dim)
        self.positions = nn.Parameter(torch.zeros(1, max_positions, embed_dim))
        nn.init.trunc_normal_(self.tokens.weight, std=INIT_STD)
        nn.init.trunc_normal_(self.positions, std=INIT_STD)

    def forward(self, text_ids: torch.Tensor, text_padding_mask: torch.Tensor) -> torch.Tensor:
        """
        Args:
            text_ids: int64 (N, L).
            text_padding_mask: bool (N, L), True = padding.

        Returns:
            float (N, L, C).

        Raises:
            ValueError: L exceeds the position table.
        """
        length = text_ids.shape[1]
        if length > self.positions.shape[1]:
            raise ValueError(
                f"A text of {length} tokens exceeds MODEL.BEIT3.MAX_TEXT_POSITIONS = "
                f"{self.positions.shape[1]}; lower INPUT.TOKENIZER.MAX_TOKENS."
            )
        text = self.tokens(text_ids) + self.positions[:, :length]
        return text.masked_fill(text_padding_mask[..., None], 0.0)


def interpolate_positions(
    positions: torch.Tensor, source: Tuple[int, int], target: Tuple[int, int]
) -> torch.Tensor:
    """Resize a position table to another grid: bicubic in float32, no antialiasing.

    Args:
        positions: float (1, source[0] * source[1], C), row-major.
        source: (rows, columns) of the table.
        target: (rows, columns) wanted.

    Returns:
        float (1, target[0] * target[1], C); the input itself if the grids agree.
    """
    if source == target:
        return positions
    dim = positions.shape[-1]
    table = positions.float().reshape(1, *source, dim).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=target, mode="bicubic", align_corners=False)
    return table.permute(0, 2, 3, 1).reshape(1, -1, dim).to(positions.dtype)
