"""Query generators: where to look, and with which query."""

from .build import QUERY_GENERATOR_REGISTRY, GroundingQueries, build_query_generator
from .learned import LearnedQueryGenerator
from .point_guided import PointGuidedQueryGenerator
from .selection import cell_centers, select_points, select_top_points
from .text_guided import TextGuidedQueryGenerator

__all__ = [
    "GroundingQueries",
    "LearnedQueryGenerator",
    "PointGuidedQueryGenerator",
    "QUERY_GENERATOR_REGISTRY",
    "TextGuidedQueryGenerator",
    "build_query_generator",
    "cell_centers",
    "select_points",
    "select_top_points",
]
