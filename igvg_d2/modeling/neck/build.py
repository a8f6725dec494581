"""Registry of necks."""

from detectron2.utils.registry import Registry
from torch import nn

NECK_REGISTRY = Registry("NECK")
NECK_REGISTRY.__doc__ = """
Registry of necks, which turn the backbone's token grid into a feature pyramid.

A registered object is called as ``obj(cfg, input_shape)`` with the shapes of the features, a
dict[str, ShapeSpec], after the image projection, so "last_feat" has ``MODEL.IGVG.HIDDEN_DIM``
channels. Its ``forward(features: dict[str, Tensor]) -> dict[str, Tensor]`` and
``output_shape() -> dict[str, ShapeSpec]`` use the names p2, p3, p4, p5 from fine to coarse.
"""


def build_neck(cfg, input_shape) -> nn.Module:
    """Build ``MODEL.NECK.NAME``."""
    return NECK_REGISTRY.get(cfg.MODEL.NECK.NAME)(cfg, input_shape)
