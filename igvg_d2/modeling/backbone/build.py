"""Contract of a vision-language backbone."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Dict, Optional

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import nn


@dataclass
class SceneObjects:
    """Up to K objects of every picture, best first; unused slots have low ``exists_logits``.

    Attributes:
        center_logits: float (N, h, w), whether a cell holds the centre of an object.
        foreground_logits: float (N, h, w), whether any object is seen in a cell.
        cell_middles: float (h * w, 2), (x, y) in cells, row by row.
        votes: float (N, h * w, 2), centre of the object that is seen in a cell, (x, y) in cells.
        positions: float (N, K, 2), centres (x, y) divided by the network input's (width, height).
        exists_logits: float (N, K).
        assignment: float (N, h * w, K), share of a cell that belongs to a slot; at most 1 in sum.
        features: float (N, K, C), mean of the features over a slot's cells.
        target_logits: float (N, K), whether the expression refers to an object; None before it was
            read.
    """

    center_logits: torch.Tensor
    foreground_logits: torch.Tensor
    cell_middles: torch.Tensor
    votes: torch.Tensor
    positions: torch.Tensor
    exists_logits: torch.Tensor
    assignment: torch.Tensor
    features: torch.Tensor
    target_logits: Optional[torch.Tensor] = None


@dataclass
class VLFeatures:
    """Fused features of a batch.

    Attributes:
        image: name -> float (N, C, Hi, Wi); "last_feat" is the token grid.
        text: float (N, L, C) for the text tokens, begin and end token included.
        text_padding_mask: bool (N, L), True = padding. Padding is always a suffix.
        pooled: float (N, C) summary of image and text (the CLS token).
        objects: objects that the backbone found on its way, or None; read by auxiliary losses only.
    """

    image: Dict[str, torch.Tensor]
    text: torch.Tensor
    text_padding_mask: torch.Tensor
    pooled: torch.Tensor
    objects: Optional[SceneObjects] = None


class VisionLanguageBackbone(Backbone):
    """Base class of backbones that see image and text together.

    A subclass registers itself (or a builder) in Detectron2's ``BACKBONE_REGISTRY``, is selected by
    ``MODEL.BACKBONE.NAME``, describes ``image`` in ``output_shape()`` and sets ``embed_dim`` (C).
    """

    embed_dim: int

    @abstractmethod
    def forward(
        self,
        images: torch.Tensor,
        text_ids: torch.Tensor,
        text_padding_mask: torch.Tensor,
        has_padding: bool = True,
    ) -> VLFeatures:
        """Encode a batch.

        Args:
            images: float (N, 3, H, W), normalised; H and W multiples of ``size_divisibility``.
            text_ids: int64 (N, L).
            text_padding_mask: bool (N, L), True = padding.
            has_padding: False promises that no token is padding, which saves the attention mask.

        Returns:
            VLFeatures
        """


def build_vl_backbone(cfg) -> VisionLanguageBackbone:
    """Build ``MODEL.BACKBONE.NAME`` and check that it is a :class:`VisionLanguageBackbone`.

    Raises:
        TypeError: the registered object builds something else.
    """
    input_shape = ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    backbone: nn.Module = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg, input_shape)
    if not isinstance(backbone, VisionLanguageBackbone):
        raise TypeError(
            f"MODEL.BACKBONE.NAME={cfg.MODEL.BACKBONE.NAME!r} builds a {type(backbone).__name__}; "
            "IGVG needs a subclass of igvg_d2.modeling.VisionLanguageBackbone, "
            "for instance 'BEiT3'."
        )
    return backbone
