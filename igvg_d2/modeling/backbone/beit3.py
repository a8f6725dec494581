"""BEiT-3 as a Detectron2 backbone (Wang et al., "Image as a Foreign Language", CVPR 2023)."""

from typing import Dict, Tuple

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY

from .build import VisionLanguageBackbone, VLFeatures
from .embedding import TextEmbedding, VisionEmbedding
from .multiway import MultiwayEncoder


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
