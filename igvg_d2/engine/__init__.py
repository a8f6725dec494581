"""Training and evaluation: the only place that joins data, models and evaluation."""

from .config_checks import check_config
from .launch import launch
from .setup import resolve_epochs, setup_config
from .trainer import GroundingTrainer

__all__ = [
    "GroundingTrainer",
    "check_config",
    "launch",
    "resolve_epochs",
    "setup_config",
]


def __getattr__(name: str):
    """``GroundingPredictor`` of older code, which lives above this room now."""
    if name == "GroundingPredictor":
        from igvg_d2.inference import GroundingPredictor

        return GroundingPredictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
