"""Learning rate schedules: Detectron2's, and a warm-up that rises once per epoch."""

import torch
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier
from detectron2.solver import build_lr_scheduler as build_detectron2_lr_scheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer):
    """Build ``SOLVER.LR_SCHEDULER_NAME`` with ``SOLVER.WARMUP_METHOD``.

    "linear" and "constant" are Detectron2's. "staircase" is the paper's recipe as released: in
    epoch e (from 0) of w warm-up epochs the factor on the learning rate is (e + 1) / (w + 1).

    Args:
        cfg: with the iterations filled in, see :func:`igvg_d2.engine.resolve_epochs`.
        optimizer: whose learning rates are scheduled, by the same factor in all groups.

    Returns:
        a torch scheduler, stepped every iteration.

    Raises:
        ValueError: "staircase" without warm-up epochs, or with another schedule than steps.
    """
    solver = cfg.SOLVER
    if solver.WARMUP_METHOD != "staircase":
        return build_detectron2_lr_scheduler(cfg, optimizer)
    if solver.LR_SCHEDULER_NAME != "WarmupMultiStepLR" or solver.WARMUP_EPOCHS < 1:
        raise ValueError(
            "SOLVER.WARMUP_METHOD 'staircase' goes with SOLVER.LR_SCHEDULER_NAME "
            f"'WarmupMultiStepLR' and SOLVER.WARMUP_EPOCHS of 1 or more, found "
            f"{solver.LR_SCHEDULER_NAME!r} and {solver.WARMUP_EPOCHS}; use 'linear' or 'constant'."
        )
    stairs = solver.WARMUP_EPOCHS
    per_epoch = solver.WARMUP_ITERS // stairs
    values = [(epoch + 1) / (stairs + 1) for epoch in range(stairs)]
    values += [solver.GAMMA**k for k in range(len(solver.STEPS) + 1)]
    milestones = [per_epoch * (epoch + 1) for epoch in range(stairs)] + list(solver.STEPS)
    # A trial may be shorter than the schedule.
    milestones = [milestone for milestone in milestones if milestone < solver.MAX_ITER]
    values = values[: len(milestones) + 1]
    multiplier = MultiStepParamScheduler(
        values=values, milestones=milestones, num_updates=solver.MAX_ITER
    )
    return LRMultiplier(optimizer, multiplier=multiplier, max_iter=solver.MAX_ITER)
