"""Optimizers with Detectron2's parameter groups and clipping by the total gradient norm."""

import math

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import nn

from .layer_decay import layer_decay_factors
from .muon import Muon, split_matrices
from .sparse import check_sparse_backend, step_sparse_rows


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build ``SOLVER.OPTIMIZER`` over all trainable parameters.

    Normalisation weights and biases have no weight decay (``SOLVER.WEIGHT_DECAY_NORM``,
    ``WEIGHT_DECAY_BIAS``); the encoder's learning rate is scaled by ``SOLVER.BACKBONE_MULTIPLIER``
    and, by depth, by ``SOLVER.LAYER_DECAY``. Tables with sparse gradients are updated row by row.

    Raises:
        ValueError: unknown optimizer, Detectron2's own clipping next to ours, or an option that
            does not fit the model or the processes.
    """
    solver = cfg.SOLVER
    if solver.CLIP_GRADIENTS.ENABLED:
        raise ValueError(
            "SOLVER.CLIP_GRADIENTS clips each parameter on its own; set SOLVER.CLIP_TOTAL_NORM and "
            "leave SOLVER.CLIP_GRADIENTS.ENABLED False."
        )
    depth_factor = layer_decay_factors(
        (name for name, _ in model.named_parameters()), solver.LAYER_DECAY
    )
    params = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=lambda name: (
            solver.BACKBONE_MULTIPLIER * depth_factor(name) if name.startswith("backbone.") else 1.0
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
    # Hooks run in this order: gradients are clipped before any row is updated.
    clip_total_norm(optimizer, solver.CLIP_TOTAL_NORM)
    if any(isinstance(m, nn.Embedding) and m.sparse for m in model.modules()):
        check_sparse_backend()
        step_sparse_rows(optimizer)
    return optimizer


def clip_total_norm(optimizer: torch.optim.Optimizer, max_norm: float) -> None:
    """Clip the norm over all parameters before each step, and log it as "grad_norm".

    Detectron2 knows clipping per parameter only. A pre-step hook comes after the gradient scaler of
    mixed precision has unscaled the gradients, a trainer hook would come before.

    Args:
        optimizer: gets the hook.
        max_norm: 0 only logs.
    """

    def clip(optimizer, args, kwargs):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = _clip_gradients(parameters, max_norm if max_norm > 0 else math.inf)
        if has_event_storage():
            get_event_storage().put_scalar("grad_norm", float(norm), smoothing_hint=False)

    optimizer.register_step_pre_hook(clip)


def _clip_gradients(parameters, max_norm: float) -> torch.Tensor:
    """``clip_grad_norm_`` that also takes sparse gradients; returns the norm before clipping."""
    sparse = [p for p in parameters if p.grad is not None and p.grad.is_sparse]
    if not sparse:
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    for p in sparse:
        # Repeated words are summed, so that the norm is that of the dense gradient.
        p.grad = p.grad.coalesce()
    grads = [p.grad for p in parameters if p.grad is not None]
    values = [grad.values() if grad.is_sparse else grad for grad in grads]
    norm = torch.stack([torch.linalg.vector_norm(value) for value in values]).norm()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(values, factor)
    return norm
