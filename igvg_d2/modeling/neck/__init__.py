"""Necks: token grid to feature pyramid."""

from .build import NECK_REGISTRY, build_neck
from .simple_fpn import SimFPN

__all__ = ["NECK_REGISTRY", "SimFPN", "build_neck"]
