"""Transformer parts shared by the query generators and heads."""

from .build import TRANSFORMER_DECODER_REGISTRY, build_transformer_decoder
from .deformable_decoder import DeformableDecoder
from .detr_decoder import DETRDecoder
from .mlp import MLP
from .ms_deform_attn import MSDeformAttn, ms_deform_attn_core
from .position_encoding import PositionEmbeddingSine

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
