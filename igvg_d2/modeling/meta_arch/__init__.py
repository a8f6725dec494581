"""Meta-architectures."""

from .igvg import IGVG

__all__ = ["IGVG"]
