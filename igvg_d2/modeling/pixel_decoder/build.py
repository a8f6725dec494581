"""Registry of pixel decoders."""

from detectron2.utils.registry import Registry
from torch import nn

PIXEL_DECODER_REGISTRY = Registry("PIXEL_DECODER")
PIXEL_DECODER_REGISTRY.__doc__ = """
Registry of pixel decoders, which fuse the pyramid into one map of mask features (S_global).

A registered object is called as ``obj(cfg, input_shape)`` with the neck's ``output_shape()``. Its
``forward(features: dict[str, Tensor]) -> Tensor (N, mask_dim, H / s, W / s)`` has the resolution of
p2, and ``output_shape() -> ShapeSpec`` gives mask_dim and s.
"""


def build_pixel_decoder(cfg, input_shape) -> nn.Module:
    """Build ``MODEL.PIXEL_DECODER.NAME``."""
    return PIXEL_DECODER_REGISTRY.get(cfg.MODEL.PIXEL_DECODER.NAME)(cfg, input_shape)
