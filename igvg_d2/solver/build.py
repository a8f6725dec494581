"""Optimizers with Detectron2's parameter groups and clipping by the total gradient norm."""

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import nn

from .muon import Muon, split_matrices


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build ``SOLVER.OPTIMIZER`` over all trainable parameters.

    Normalisation weights and biases have no weight decay (``SOLVER.WEIGHT_DECAY_NORM``,
    ``WEIGHT_DECAY_BIAS``); the encoder's learning rate is scaled by ``SOLVER.BACKBONE_MULTIPLIER``.

    Raises:
        ValueError: unknown optimizer, or Detectron2's own clipping next to ours.
    """
    solver = cfg.SOLVER
    if solver.CLIP_GRADIENTS.ENABLED:
        raise ValueError(
            "SOLVER.CLIP_GRADIENTS clips each parameter on its own; set SOLVER.CLIP_TOTAL_NORM and "
            "leave SOLVER.CLIP_GRADIENTS.ENABLED False."
        )
    params = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=lambda name: (
            solver.BACKBONE_MULTIPLIER if name.startswith("backbone.") else 1.0
        ),
    )
    kwargs = {"lr": solver.BASE_LR, "betas": tuple(solver.BETAS), "eps": solver.EPS}
    if solver.OPTIMIZER == "AdamW":
        optimizer = torch.optim.AdamW(params, amsgrad=solver.AMSGRAD, **kwargs)
    elif solver.OPTIMIZER == "Adam":
        optimizer = torch.optim.Adam(params, amsgrad=solver.AMSGRAD, **kwargs)
    elif solver.OPTIMIZER == "Muon":
        groups = split_matrices(params, model, solver.MUON_LR, solver.BASE_LR)
        optimizer = Muon(groups, **kwargs)
    else:
        raise ValueError(
            f"SOLVER.OPTIMIZER must be 'AdamW', 'Adam' or 'Muon', got {solver.OPTIMIZER!r}."
        )
    if solver.CLIP_TOTAL_NORM > 0:
        clip_total_norm(optimizer, solver.CLIP_TOTAL_NORM)
    return optimizer


def clip_total_norm(optimizer: torch.optim.Optimizer, max_norm: float) -> None:
    """Clip the norm over all parameters before each step, and log it as "grad_norm".

    Detectron2 knows clipping per parameter only. A pre-step hook comes after the gradient scaler of
    mixed precision has unscaled the gradients, a trainer hook would come before.
    """

    def clip(optimizer, args, kwargs):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        if has_event_storage():
            storage = get_event_storage()
            if storage.iter % 20 == 0:
                storage.put_scalar("grad_norm", float(norm), smoothing_hint=False)

    optimizer.register_step_pre_hook(clip)
