"""Optimizers and learning rate schedules."""

from .build import build_optimizer
from .lr_scheduler import build_lr_scheduler

__all__ = ["build_lr_scheduler", "build_optimizer"]
