"""Token embeddings of BEiT-3: image patches, CLS and words, with learned positions."""

from typing import Dict, List, Sequence, Tuple

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, get_norm
from torch import nn


class ConvStem(nn.Module):
    """A few convolutions before the encoder instead of one large patch projection.

    Small encoders trained from scratch learn much faster with it (Xiao et al., NeurIPS 2021), and
    faster again when the words already modulate it (Perez et al., FiLM, AAAI 2018). Not part of
    BEiT-3; off unless ``MODEL.BEIT3.STEM_CHANNELS`` is set.
    """

    def __init__(self, channels: Sequence[int], embed_dim: int):
        """
        Args:
            channels: width after each stride-2 stage; 2 to their number is the patch size.
            embed_dim: C, width of the tokens.
        """
        super().__init__()
        widths = [3, *channels]
        self.stages = nn.ModuleList(
            _conv(widths[i], widths[i + 1], stride=2) for i in range(len(channels))
        )
        # The first stage is the largest map and only finds edges; the others get a second layer.
        self.refine = nn.ModuleList(_conv(width, width, stride=1) for width in channels[1:])
        self.text_norm = nn.LayerNorm(embed_dim)
        self.film = nn.ModuleList(nn.Linear(embed_dim, 2 * width) for width in channels[1:])
        for layer in self.film:
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.proj = nn.Conv2d(channels[-1], embed_dim, kernel_size=1)

    def forward(
        self, images: torch.Tensor, text: torch.Tensor
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
        """
        Args:
            images: float (N, 3, H, W).
            text: float (N, C), mean of the word embeddings.

        Returns:
            float (N, C, H / patch, W / patch) and {"stem_2": stride 2, "stem_4": stride 4, ...}.
        """
        text = self.text_norm(text)
        features = {}
        x = images
        for level, stage in enumerate(self.stages):
            x = stage(x)
            if level > 0:
                scale, shift = self.film[level - 1](text)[..., None, None].chunk(2, dim=1)
                x = x + self.refine[level - 1](x * (1 + scale) + shift)
            features[f"stem_{2 ** (level + 1)}"] = x
        return self.proj(x), features


def _conv(in_channels: int, out_channels: int, stride: int) -> Conv2d:
    """3x3 convolution, batch normalisation, GELU."""
    return Conv2d(
        in_channels,
        out_channels,
        kernel_size=3,
        stride=stride,
        padding=1,
        bias=False,
        norm=get_norm("BN", out_channels),
        activation=F.gelu,
    )


class VisionEmbedding(nn.Module):
    """Patches and the CLS token, plus positions interpolated to the input's grid at run time."""

    def __init__(
        self,
        embed_dim: int,
        patch_size: int,
        pretrain_image_size: Tuple[int, int],
        stem_channels: List[int],
        init_std: float,
    ):
        """
        Args:
            embed_dim: C.
            patch_size: side of a patch in pixels.
            pretrain_image_size: (height, width) in pixels the position table covers.
            stem_channels: see :class:`ConvStem`; empty for the plain patch projection.
            init_std: standard deviation of the tables' initial values.

        Raises:
            ValueError: the stem's stride is not the patch size.
        """
        super().__init__()
        if stem_channels and 2 ** len(stem_channels) != patch_size:
            raise ValueError(
                f"MODEL.BEIT3.STEM_CHANNELS has {len(stem_channels)} stride-2 stages, a stride of "
                f"{2 ** len(stem_channels)}, but MODEL.BEIT3.PATCH_SIZE is {patch_size}."
            )
        self.grid = tuple(side // patch_size for side in pretrain_image_size)
        self.stem = ConvStem(stem_channels, embed_dim) if stem_channels else None
        if self.stem is None:
            self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.cls_position = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.positions = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], embed_dim))
        for table in (self.cls_token, self.cls_position, self.positions):
            nn.init.trunc_normal_(table, std=init_std)

    def forward(self, images: torch.Tensor, text: torch.Tensor):
        """
        Args:
            images: float (N, 3, H, W).
            text: float (N, C), mean of the word embeddings; read by the stem only.

        Returns:
            tokens float (N, 1 + Hi * Wi, C) with CLS first, the grid (Hi, Wi), and the stem's
            features (empty without a stem).
        """
        if self.stem is None:
            x, stem_features = self.proj(images), {}
        else:
            x, stem_features = self.stem(images, text)
        grid = (x.shape[2], x.shape[3])
        tokens = x.flatten(2).transpose(1, 2) + interpolate_positions(
            self.positions, self.grid, grid
        )
        cls = (self.cls_token + self.cls_position).expand(len(tokens), -1, -1)
        return torch.cat([cls, tokens], dim=1), grid, stem_features


class TextEmbedding(nn.Module):
    """Word embeddings with learned positions; padded positions are zero (as in BEiT-3)."""

    def __init__(self, vocab_size: int, embed_dim: int, max_positions: int, init_std: float):
        """
        Args:
            vocab_size: rows of the token table.
            embed_dim: C.
            max_positions: longest text in tokens.
            init_std: standard deviation of the tables' initial values.
        """
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, embed_dim)
        self.positions = nn.Parameter(torch.zeros(1, max_positions, embed_dim))
        nn.init.trunc_normal_(self.tokens.weight, std=init_std)
        nn.init.trunc_normal_(self.positions, std=init_std)

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
        x = self.tokens(text_ids) + self.positions[:, :length]
        return x.masked_fill(text_padding_mask[..., None], 0.0)


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
