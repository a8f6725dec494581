"""Pretraining of a tiny BEiT-3 on Shapes scenes, outside of the library."""

from . import model, muon, scenes
from .config import add_pretraining_config
from .export import beit3_state
from .model import BEiT3Pretraining
from .scenes import PretrainingScenes

__all__ = [
    "BEiT3Pretraining",
    "PretrainingScenes",
    "add_pretraining_config",
    "beit3_state",
    "model",
    "muon",
    "scenes",
]
