"""Answers to questions about images: one predictor, one result object."""

from .predictor import GroundingPredictor
from .result import GroundingResult

__all__ = ["GroundingPredictor", "GroundingResult"]
