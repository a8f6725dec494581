"""Optimizers with Detectron2's parameter groups and clipping by the total gradient norm."""

import math
from typing import Any, Dict, List, Type

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params
from detectron2.utils.events import get_event_storage, has_event_storage
from detectron2.utils.registry import Registry
from torch import nn
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from .layer_decay import layer_decay_factors

OPTIMIZER_REGISTRY = Registry("OPTIMIZER")
OPTIMIZER_REGISTRY.__doc__ = """
Registry of optimizers, selected by ``SOLVER.OPTIMIZER``.

A registered object is called as ``obj(cfg, model, params)``: the config, the model (which tells a
weight matrix from a table), and the parameter groups, a list of dicts with "params" and, where it
differs from the default, "lr" and "weight_decay". It returns a ``torch.optim.Optimizer`` over all
of these parameters, in one or more groups each with "lr", which the schedule multiplies.
"""


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build ``SOLVER.OPTIMIZER`` over all trainable parameters.

    Normalisation weights and biases have no weight decay (``SOLVER.WEIGHT_DECAY_NORM``,
    ``WEIGHT_DECAY_BIAS``); the encoder's learning rate is scaled by ``SOLVER.BACKBONE_MULTIPLIER``
    and, by depth, by ``SOLVER.LAYER_DECAY``.

    Raises:
        ValueError: unknown optimizer, Detectron2's own clipping next to ours, or a layer decay
            that does not fit the model.
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
    if solver.OPTIMIZER not in OPTIMIZER_REGISTRY:
        known = [name for name, _ in OPTIMIZER_REGISTRY]
        raise ValueError(f"SOLVER.OPTIMIZER must be one of {known}, got {solver.OPTIMIZER!r}.")
    optimizer = OPTIMIZER_REGISTRY.get(solver.OPTIMIZER)(cfg, model, params)
    clip_total_norm(optimizer, solver.CLIP_TOTAL_NORM)
    return optimizer


@OPTIMIZER_REGISTRY.register()
def AdamW(cfg: CfgNode, model: nn.Module, params: List[Dict[str, Any]]):
    """AdamW with ``SOLVER.BETAS``, ``EPS`` and ``AMSGRAD``."""
    return _build_adam(torch.optim.AdamW, cfg, params)


@OPTIMIZER_REGISTRY.register()
def Adam(cfg: CfgNode, model: nn.Module, params: List[Dict[str, Any]]):
    """Adam with the options of :func:`AdamW`; weight decay is added to the gradient."""
    return _build_adam(torch.optim.Adam, cfg, params)


def _build_adam(kind: Type[torch.optim.Adam], cfg: CfgNode, params: List[Dict[str, Any]]):
    solver = cfg.SOLVER
    betas = tuple(solver.BETAS)
    options = {"betas": betas, "eps": solver.EPS, "amsgrad": solver.AMSGRAD}
    # One pass over the memory and no copy of the largest table; a resumed run keeps the kernel
    # that it began with, which its checkpoint names.
    kinds = {p.device.type for group in params for p in group["params"]}
    options["fused"] = kinds <= set(_get_fused_kernels_supported_devices())
    optimizer = kind(params, lr=solver.BASE_LR, **options)
    # Else a gradient scaler would leave its work to the kernel: after the hooks, which clip.
    optimizer._step_supports_amp_scaling = False
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
        norm = nn.utils.clip_grad_norm_(parameters, max_norm if max_norm > 0 else math.inf)
        if hasattr(optimizer, "grad_norm"):
            # Whoever set it logs it along with the losses, in one copy from the device.
            optimizer.grad_norm = norm
        elif has_event_storage():
            get_event_storage().put_scalar("grad_norm", float(norm), smoothing_hint=False)

    optimizer.register_step_pre_hook(clip)
