"""Transformer parts shared by the query generators and heads."""

from .build import TRANSFORMER_DECODER_REGISTRY, build_transformer_decoder
from .deformable_decoder import DeformableDecoder, MSDeformAttn, ms_deform_attn_core
from .detr_decoder import DETRDecoder
from .layers import MLP, PositionEmbeddingSine

__all__ = [
    "DETRDecoder",
    "DeformableDecoder",
    "MLP",
    "MSDeformAttn",
    "PositionEmbeddingSine",
    "TRANSFORMER_DECODER_REGISTRY",
    "build_transformer_decoder",
    "ms_deform_attn_core",
]
