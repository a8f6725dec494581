"""ViLT of ``transformers`` as an encoder of IGVG; importing registers it and its tokenizer."""

import os
from typing import Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.utils.file_io import PathManager
from tokenizers import BertWordPieceTokenizer
from transformers import ViltConfig, ViltModel

from igvg_d2.data import TOKENIZER_REGISTRY, add_special_ids
from igvg_d2.modeling import VisionLanguageBackbone, VLFeatures


def add_vilt_config(cfg: CfgNode) -> None:
    """Add ``MODEL.VILT``, in place: options of ``ViltConfig``, by default those of ViLT-B/32."""
    encoder = {"HIDDEN_SIZE": 768, "NUM_HIDDEN_LAYERS": 12, "NUM_ATTENTION_HEADS": 12}
    image = {"INTERMEDIATE_SIZE": 3072, "PATCH_SIZE": 32, "IMAGE_SIZE": 384}
    text = {"VOCAB_SIZE": 30522, "MAX_POSITION_EMBEDDINGS": 40}
    cfg.MODEL.VILT = CfgNode({**encoder, **image, **text})


@BACKBONE_REGISTRY.register()
class ViLT(VisionLanguageBackbone):
    """One transformer over words and patches alike (Kim et al., "ViLT", ICML 2021)."""

    @configurable
    def __init__(self, *, config: ViltConfig):
        """Build the encoder with random weights, of the sizes in ``config``."""
        super().__init__()
        self.embed_dim, self.vocab_size = config.hidden_size, config.vocab_size
        # Its pooler would serve ``VLFeatures.pooled`` alone, which heads may leave unread.
        self.vilt = ViltModel(config, add_pooling_layer=False)

    @classmethod
    def from_config(cls, cfg, input_shape=None):
        options, longest = cfg.MODEL.VILT, cfg.INPUT.TOKENIZER.MAX_TOKENS
        if longest > options.MAX_POSITION_EMBEDDINGS:
            raise ValueError(
                f"INPUT.TOKENIZER.MAX_TOKENS {longest} exceeds MODEL.VILT.MAX_POSITION_EMBEDDINGS "
                f"{options.MAX_POSITION_EMBEDDINGS}; lower it"
            )
        return {"config": ViltConfig(**{key.lower(): options[key] for key in options})}

    @property
    def size_divisibility(self) -> int:
        """Side of a patch in pixels."""
        return self.vilt.config.patch_size

    def output_shape(self) -> Dict[str, ShapeSpec]:
        """Of the grid of patches."""
        return {"last_feat": ShapeSpec(channels=self.embed_dim, stride=self.size_divisibility)}

    def forward(
        self,
        images: torch.Tensor,
        text_ids: torch.Tensor,
        text_padding_mask: torch.Tensor,
        has_padding: bool = True,
    ) -> VLFeatures:
        """See :meth:`VisionLanguageBackbone.forward`."""
        patches, grid = self._embed(images)
        hidden = self.vilt(
            input_ids=text_ids,
            attention_mask=(~text_padding_mask).long(),
            image_embeds=patches,
            pixel_mask=text_ids.new_ones(patches.shape[:2]),
        ).last_hidden_state
        text, _, cells = hidden.split([text_ids.shape[1], 1, grid[0] * grid[1]], dim=1)
        last_feat = cells.transpose(1, 2).unflatten(2, grid)
        return VLFeatures({"last_feat": last_feat}, text, text_padding_mask, pooled=text[:, 0])

    def _embed(self, images: torch.Tensor) -> Tuple[torch.Tensor, Tuple[int, int]]:
        """CLS and patches in row-major order, float (N, 1 + Hi * Wi, C), and (Hi, Wi).

        ``ViltModel`` given images would draw the order of the patches at random, and not tell it.
        """
        embeddings, config = self.vilt.embeddings, self.vilt.config
        patches = embeddings.patch_embeddings(images)
        grid, side = tuple(patches.shape[-2:]), config.image_size // config.patch_size
        cls_position, positions = embeddings.position_embeddings.split([1, side * side], dim=1)
        positions = positions.transpose(1, 2).unflatten(2, (side, side))
        positions = F.interpolate(positions, size=grid, mode="bilinear", align_corners=True)
        cells = (patches + positions).flatten(2).transpose(1, 2)
        cls = (embeddings.cls_token + cls_position).expand(cells.shape[0], -1, -1)
        return embeddings.dropout(torch.cat([cls, cells], dim=1)), grid

    def convert_weights(self, tensors: Dict[str, torch.Tensor]) -> Optional[Dict]:
        """Take files of ``transformers``' models around a ViLT, whose heads are left out."""
        if "vilt.embeddings.cls_token" not in tensors:
            return None
        own = self.state_dict()
        return {name: tensor for name, tensor in tensors.items() if name in own}


@TOKENIZER_REGISTRY.register()
class WordPieceTokenizer:
    """BERT's lower-case word pieces, numbered by the lines of a ``vocab.txt``."""

    @configurable
    def __init__(self, *, file: str, max_tokens: int):
        """Read ``file``, a path or address (``hf://``); no text has more than ``max_tokens``."""
        self.path = PathManager.get_local_path(file or os.devnull)
        with open(self.path, "r", encoding="utf-8") as lines:
            ids = {line.rstrip("\n"): index for index, line in enumerate(lines)}
        if not ids.keys() >= {"[CLS]", "[SEP]", "[UNK]"}:
            raise ValueError(f"INPUT.TOKENIZER.FILE: '{file}' lacks a line [CLS], [SEP] or [UNK]")
        self._pieces = BertWordPieceTokenizer(ids)
        self._special = ids["[CLS]"], ids["[SEP]"]
        self.max_tokens, self.unk_id = max_tokens, ids["[UNK]"]
        # Of a word that occurs twice, the last line counts.
        self.vocab_size = max(ids.values()) + 1

    @classmethod
    def from_config(cls, cfg):
        return {"file": cfg.INPUT.TOKENIZER.FILE, "max_tokens": cfg.INPUT.TOKENIZER.MAX_TOKENS}

    def __call__(self, expression: str) -> List[int]:
        """Ids of an expression, [CLS] first and [SEP] last."""
        return add_special_ids(self._ids_of, expression, self.max_tokens, *self._special)

    def _ids_of(self, text: str) -> List[int]:
        return self._pieces.encode(text, add_special_tokens=False).ids
