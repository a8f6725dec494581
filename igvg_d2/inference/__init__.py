"""Answers to questions about images: one predictor, one result object."""

from .predictor import GroundingPredictor

__all__ = ["GroundingPredictor"]
