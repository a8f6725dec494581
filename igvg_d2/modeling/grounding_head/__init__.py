"""Grounding heads: queries to classes, boxes and instance masks."""

from .build import GROUNDING_HEAD_REGISTRY, build_grounding_head
from .criterion import GroundingCriterion
from .matcher import PointGuidedMatcher
from .point_guided_head import (
    ClassBoxPredictor,
    MaskPredictor,
    PointGuidedGroundingHead,
    ReferencePredictor,
)

__all__ = [
    "ClassBoxPredictor",
    "GROUNDING_HEAD_REGISTRY",
    "GroundingCriterion",
    "MaskPredictor",
    "PointGuidedGroundingHead",
    "PointGuidedMatcher",
    "ReferencePredictor",
    "build_grounding_head",
]
