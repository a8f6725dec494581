"""BEiT-3 as a Detectron2 backbone (Wang et al., "Image as a Foreign Language", CVPR 2023)."""

from typing import Dict, Tuple

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import nn

from .build import VisionLanguageBackbone, VLFeatures
from .multiway import INIT_STD, MultiwayEncoder


@BACKBONE_REGISTRY.register()
class BEiT3(VisionLanguageBackbone):
    """Fused vision-language encoder: the paper's MME (Section 3)."""

    @configurable
    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        ffn_dim: int,
        patch_size: int,
        pretrain_image_size: Tuple[int, int],
        vocab_size: int,
        max_text_positions: int,
        drop_path: float = 0.0,
        checkpointing: bool = False,
    ):
        """
        Args:
            embed_dim: C, width of the tokens.
            depth, num_heads, ffn_dim: size of the encoder.
            patch_size: side of a patch in pixels.
            pretrain_image_size: (height, width) in pixels of the stored position table.
            vocab_size: rows of the token embedding.
            max_text_positions: longest text in tokens.
            drop_path: stochastic depth at the last layer.
            checkpointing: recompute activations in the backward pass.
        """
        super().__init__()
        self.embed_dim = embed_dim
        self.patch_size = patch_size
        self.vocab_size = vocab_size
        self.vision_embed = VisionEmbedding(embed_dim, patch_size, tuple(pretrain_image_size))
        self.text_embed = TextEmbedding(vocab_size, embed_dim, max_text_positions)
        self.encoder = MultiwayEncoder(
            embed_dim, depth, num_heads, ffn_dim, drop_path, checkpointing
        )

    @classmethod
    def from_config(cls, cfg, input_shape=None):
        beit3 = cfg.MODEL.BEIT3
        return {
            "embed_dim": beit3.EMBED_DIM,
            "depth": beit3.DEPTH,
            "num_heads": beit3.NUM_HEADS,
            "ffn_dim": beit3.FFN_DIM,
            "patch_size": beit3.PATCH_SIZE,
            "pretrain_image_size": beit3.PRETRAIN_IMAGE_SIZE,
            "vocab_size": beit3.VOCAB_SIZE,
            "max_text_positions": beit3.MAX_TEXT_POSITIONS,
            "drop_path": beit3.DROP_PATH,
            "checkpointing": beit3.CHECKPOINTING,
        }

    @property
    def size_divisibility(self) -> int:
        """Image sides must be multiples of the patch size (pixels)."""
        return self.patch_size

    def output_shape(self) -> Dict[str, ShapeSpec]:
        """Channels and strides of the entries of ``VLFeatures.image``."""
        return {"last_feat": ShapeSpec(channels=self.embed_dim, stride=self.patch_size)}

    def forward(
        self,
        images: torch.Tensor,
        text_ids: torch.Tensor,
        text_padding_mask: torch.Tensor,
        has_padding: bool = True,
    ) -> VLFeatures:
        """See :meth:`VisionLanguageBackbone.forward`."""
        image, grid = self.vision_embed(images)
        text = self.text_embed(text_ids, text_padding_mask)
        attn_mask = None
        if has_padding:
            visible = text_padding_mask.new_ones(image.shape[:2])
            attn_mask = torch.cat([visible, ~text_padding_mask], dim=1)[:, None, None]
        image, text = self.encoder(image, text, attn_mask)
        grid_tokens = image[:, 1:].transpose(1, 2).unflatten(2, grid)
        return VLFeatures(
            image={"last_feat": grid_tokens},
            text=text,
            text_padding_mask=text_padding_mask,
            pooled=image[:, 0],
        )


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
