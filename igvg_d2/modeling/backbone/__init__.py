"""Vision-language backbones."""

from .beit3 import BEiT3
from .build import VisionLanguageBackbone, VLFeatures, build_vl_backbone

__all__ = ["BEiT3", "VLFeatures", "VisionLanguageBackbone", "build_vl_backbone"]
