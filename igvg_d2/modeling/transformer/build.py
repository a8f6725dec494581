"""Registry of query decoders."""

from typing import Dict

from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import nn

TRANSFORMER_DECODER_REGISTRY = Registry("TRANSFORMER_DECODER")
TRANSFORMER_DECODER_REGISTRY.__doc__ = """
Registry of decoders that let queries read the image (Table 7 of the paper).

A registered object is called as ``obj(cfg, input_shape)`` with the shapes of the levels in
``MODEL.GROUNDING_HEAD.IN_FEATURES``. Its ``forward(query, query_pos, reference_points, features)``
takes float (N, Q, D), (N, Q, D), (N, Q, 2) and a list of (N, D, Hi, Wi), and returns the query
states of every layer, float (layers, N, Q, D).
"""


def build_transformer_decoder(cfg, input_shape: Dict[str, ShapeSpec]) -> nn.Module:
    """Build ``MODEL.GROUNDING_HEAD.DECODER`` for the configured levels.

    Raises:
        ValueError: a level does not exist or does not have ``MODEL.IGVG.HIDDEN_DIM`` channels.
    """
    head = cfg.MODEL.GROUNDING_HEAD
    levels = {}
    for name in head.IN_FEATURES:
        channels = input_shape[name].channels if name in input_shape else None
        if channels != cfg.MODEL.IGVG.HIDDEN_DIM:
            raise ValueError(
                f"MODEL.GROUNDING_HEAD.IN_FEATURES: level {name!r} has {channels} channels, the "
                f"decoder needs MODEL.IGVG.HIDDEN_DIM = {cfg.MODEL.IGVG.HIDDEN_DIM}; the neck "
                f"offers { {k: v.channels for k, v in input_shape.items()} }."
            )
        levels[name] = input_shape[name]
    return TRANSFORMER_DECODER_REGISTRY.get(head.DECODER)(cfg, levels)
