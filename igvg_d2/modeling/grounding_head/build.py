"""Contract and registry of grounding heads."""

from typing import Optional

from detectron2.utils.registry import Registry
from torch import nn

GROUNDING_HEAD_REGISTRY = Registry("GROUNDING_HEAD")
GROUNDING_HEAD_REGISTRY.__doc__ = """
Registry of grounding heads, which turn queries into classes, boxes and instance masks.

A registered object is called as ``obj(cfg, input_shape, mask_dim)`` with the neck's
``output_shape()`` and the channels of the mask features. Its
``forward(queries: GroundingQueries, features: dict[str, Tensor], mask_features: Tensor,
targets: GroundingTargets | None)`` returns ``(outputs, losses)``:

* outputs: "pred_logits" float (N, Q, 2), class 0 = target, 1 = no object; "pred_boxes" float
  (N, Q, 4), (cx, cy, w, h) in [0, 1]; "pred_masks" float (N, Q, Hm, Wm) logits at the resolution of
  the mask features, or None; "pred_points" float (N, Q, 2), (x, y) in [0, 1].
* losses: weighted scalars with constant keys; empty without targets.
"""


def build_grounding_head(cfg, input_shape, mask_dim: int) -> Optional[nn.Module]:
    """Build ``MODEL.GROUNDING_HEAD.NAME``; None if the name is empty (global branch only)."""
    name = cfg.MODEL.GROUNDING_HEAD.NAME
    return GROUNDING_HEAD_REGISTRY.get(name)(cfg, input_shape, mask_dim) if name else None
