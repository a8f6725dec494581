"""Training, evaluation and prediction: the only place that joins data, models and evaluation."""

from .config_checks import check_config
from .launch import launch
from .predictor import GroundingPredictor
from .setup import resolve_epochs, setup_config
from .trainer import GroundingTrainer

__all__ = [
    "GroundingPredictor",
    "GroundingTrainer",
    "check_config",
    "launch",
    "resolve_epochs",
    "setup_config",
]
