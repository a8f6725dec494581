"""The models that put the components together."""

from .igvg import IGVG
from .inference import optimize_for_inference

__all__ = ["IGVG", "optimize_for_inference"]
