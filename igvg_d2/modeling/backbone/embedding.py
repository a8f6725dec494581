"""Token embeddings of BEiT-3: image patches, CLS and words, with learned positions."""

from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import nn

from .stem import WordStem

_TRAINING_MODES = ("dense", "frozen", "sparse")


class VisionEmbedding(nn.Module):
    """Patches and the CLS token, plus positions interpolated to the input's grid at run time."""

    def __init__(
        self,
        embed_dim: int,
        patch_size: int,
        pretrain_image_size: Tuple[int, int],
        stem: Optional[WordStem],
        init_std: float,
    ):
        """
        Args:
            embed_dim: C.
            patch_size: side of a patch in pixels.
            pretrain_image_size: (height, width) in pixels the position table covers.
            stem: makes the tokens; None for the plain patch projection.
            init_std: standard deviation of the tables' initial values.

        Raises:
            ValueError: the stem's stride is not the patch size.
        """
        super().__init__()
        if stem is not None and 2 ** len(stem.channels) != patch_size:
            raise ValueError(
                f"MODEL.BEIT3.STEM_CHANNELS has {len(stem.channels)} stride-2 stages, a stride of "
                f"{2 ** len(stem.channels)}, but MODEL.BEIT3.PATCH_SIZE is {patch_size}."
            )
        self.grid = tuple(side // patch_size for side in pretrain_image_size)
        self.stem = stem
        if stem is None:
            self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.cls_position = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.positions = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], embed_dim))
        for table in (self.cls_token, self.cls_position, self.positions):
            nn.init.trunc_normal_(table, std=init_std)

    def forward(self, images, words=None, text=None, text_padding_mask=None):
        """
        Args:
            images: float (N, 3, H, W).
            words, text, text_padding_mask: read by the stem only, see :meth:`WordStem.forward`.

        Returns:
            tokens float (N, 1 + Hi * Wi, C) with CLS first, the grid (Hi, Wi), the stem's features
            (empty without a stem) and objects (None without them).
        """
        objects, summary = None, 0.0
        if self.stem is None:
            x, stem_features = self.proj(images), {}
        else:
            x, stem_features, objects, summary = self.stem(images, words, text, text_padding_mask)
        grid = (x.shape[2], x.shape[3])
        tokens = x.flatten(2).transpose(1, 2) + interpolate_positions(
            self.positions, self.grid, grid
        )
        cls = (self.cls_token + self.cls_position).expand(len(tokens), -1, -1) + summary
        return torch.cat([cls, tokens], dim=1), grid, stem_features, objects


class TextEmbedding(nn.Module):
    """Word embeddings with learned positions; padded positions are zero (as in BEiT-3)."""

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        max_positions: int,
        init_std: float,
        training_mode: str = "dense",
    ):
        """
        Args:
            vocab_size: rows of the token table.
            embed_dim: C.
            max_positions: longest text in tokens.
            init_std: standard deviation of the tables' initial values.
            training_mode: "dense"; "frozen", the token table is not trained; or "sparse", its
                gradient has the rows of the batch's words only.

        Raises:
            ValueError: unknown training mode.
        """
        super().__init__()
        if training_mode not in _TRAINING_MODES:
            raise ValueError(
                f"MODEL.BEIT3.TEXT_EMBEDDING: expected one of {_TRAINING_MODES}, found "
                f"{training_mode!r}"
            )
        self.tokens = nn.Embedding(vocab_size, embed_dim, sparse=training_mode == "sparse")
        self.tokens.weight.requires_grad_(training_mode != "frozen")
        self.positions = nn.Parameter(torch.zeros(1, max_positions, embed_dim))
        nn.init.trunc_normal_(self.tokens.weight, std=init_std)
        nn.init.trunc_normal_(self.positions, std=init_std)

    def forward(
        self, text_ids: torch.Tensor, text_padding_mask: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            text_ids: int64 (N, L).
            text_padding_mask: bool (N, L), True = padding.

        Returns:
            the words alone and the words with positions, both float (N, L, C).

        Raises:
            ValueError: L exceeds the position table.
        """
        length = text_ids.shape[1]
        if length > self.positions.shape[1]:
            raise ValueError(
                f"A text of {length} tokens exceeds MODEL.BEIT3.MAX_TEXT_POSITIONS = "
                f"{self.positions.shape[1]}; lower INPUT.TOKENIZER.MAX_TOKENS."
            )
        words = self.tokens(text_ids)
        text = words + self.positions[:, :length]
        return words, text.masked_fill(text_padding_mask[..., None], 0.0)


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
