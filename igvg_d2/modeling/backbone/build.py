"""Contract of a vision-language backbone."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Dict, List, Optional

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import nn


@dataclass
class VLFeatures:
    """Fused features of a batch.

    Attributes:
        image: name -> float (N, C, Hi, Wi); "last_feat" is the token grid.
        text: float (N, L, C) for the text tokens, begin and end token included.
        text_padding_mask: bool (N, L), True = padding. Padding is always a suffix.
        pooled: float (N, C) summary of image and text (the CLS token). Heads may leave it unread,
            so no parameter may serve it alone.
    """

    image: Dict[str, torch.Tensor]
    text: torch.Tensor
    text_padding_mask: torch.Tensor
    pooled: torch.Tensor


class VisionLanguageBackbone(Backbone):
    """Base class of backbones that see image and text together.

    A subclass registers itself (or a builder) in Detectron2's ``BACKBONE_REGISTRY``, is selected by
    ``MODEL.BACKBONE.NAME``, describes ``image`` in ``output_shape()``, and sets ``embed_dim`` (C)
    and ``vocab_size`` (every token id is below it).
    """

    embed_dim: int
    vocab_size: int

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
            text_ids: int64 (N, L); of padding, any.
            text_padding_mask: bool (N, L), True = padding.
            has_padding: False promises that no token is padding, which saves the attention mask.

        Returns:
            VLFeatures
        """

    def losses(
        self, vl_features: VLFeatures, batched_inputs: List[Dict[str, Any]], targets: Any
    ) -> Dict[str, torch.Tensor]:
        """Losses of the backbone's own, called once per training batch after ``forward``.

        Args:
            vl_features: what ``forward`` returned for the batch.
            batched_inputs: the batch, see ``IGVG.forward``; a mapper of an outside project may have
                put more into it.
            targets: ``GroundingTargets`` of the batch.

        Returns:
            weighted scalars named "loss_*", the same keys for every batch; none by default.
        """
        return {}

    def convert_weights(
        self, tensors: Dict[str, torch.Tensor]
    ) -> Optional[Dict[str, torch.Tensor]]:
        """Take a file of the encoder's own authors as ``MODEL.WEIGHTS``; the heads start anew.

        Args:
            tensors: all that the file holds, by its names.

        Returns:
            tensors of this backbone by its own names, every one of them; None, as by default, if
            it is another file.
        """
        return None


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
