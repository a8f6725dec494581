"""Contract and registry of query generators."""

from dataclasses import dataclass
from typing import Optional

import torch
from detectron2.utils.registry import Registry
from torch import nn

QUERY_GENERATOR_REGISTRY = Registry("QUERY_GENERATOR")
QUERY_GENERATOR_REGISTRY.__doc__ = """
Registry of query generators, which propose N_q queries with a reference point each.

A registered object is called as ``obj(cfg)``. Its ``forward(vl_features, targets=None)`` takes
:class:`VLFeatures` after the projections (D channels in "last_feat" and ``text``) and returns
``(GroundingQueries, losses)``; losses is a dict of weighted scalars, empty without targets, whose
keys never depend on the data. A generator that does not read the text adds ``0.0 * text.sum()`` to
its features: in several processes every parameter needs a gradient, those of the text too.
"""


@dataclass
class GroundingQueries:
    """Initial queries of a batch.

    Attributes:
        features: float (N, Q, D), Q_init of the paper.
        reference_points: float (N, Q, 2), (x, y) in [0, 1] of the image, P_r of the paper.
        attention_map: float (N, Hi, Wi) in [0, 1], the map the points were chosen from, or None for
            generators without one.
    """

    features: torch.Tensor
    reference_points: torch.Tensor
    attention_map: Optional[torch.Tensor] = None


def build_query_generator(cfg) -> Optional[nn.Module]:
    """Build ``MODEL.QUERY_GENERATOR.NAME``; None if the name is empty (global branch only)."""
    name = cfg.MODEL.QUERY_GENERATOR.NAME
    return QUERY_GENERATOR_REGISTRY.get(name)(cfg) if name else None
