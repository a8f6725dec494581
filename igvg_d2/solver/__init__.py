"""Optimizers and learning rate schedules."""

from .build import OPTIMIZER_REGISTRY, build_optimizer
from .lr_scheduler import build_lr_scheduler

__all__ = ["OPTIMIZER_REGISTRY", "build_lr_scheduler", "build_optimizer"]
