"""Training, evaluation and prediction: the only place that joins data, models and evaluation."""

from .predictor import GroundingPredictor
from .schedule import resolve_epochs
from .setup import setup_config
from .trainer import GroundingTrainer, check_config
from .visualization import render_result_pictures

__all__ = [
    "GroundingPredictor",
    "GroundingTrainer",
    "check_config",
    "render_result_pictures",
    "resolve_epochs",
    "setup_config",
]
