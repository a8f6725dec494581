"""Muon: momentum with orthogonalised steps for weight matrices, Adam for everything else."""

from typing import Any, Dict, List

import torch
from detectron2.utils import comm

from igvg_d2.solver import OPTIMIZER_REGISTRY

# Coefficients of the quintic iteration (Jordan et al., "Muon", 2024).
_A, _B, _C = 3.4445, -4.7750, 2.0315


class MuonWithAdam(torch.optim.Optimizer):
    """Steps of equal size in all directions of a weight matrix, so that rare ones are learned too.

    PyTorch's ``torch.optim.Muon`` is newer than the PyTorch this project asks for, takes no
    convolution kernels, and needs a second optimizer beside it, which a Detectron2 trainer has no
    place for. Here a parameter group says with "orthogonal" which rule it follows.

    Args:
        params: parameter groups; "orthogonal" (default False) selects the rule. Kernels of
            convolutions are matrices of shape (out, in * height * width).
        lr: learning rate of groups without their own.
        betas, eps: of the Adam rule; the orthogonal rule uses ``momentum``.
        momentum: of the orthogonal rule (Nesterov).
        ns_steps: iterations of the orthogonalisation.
        weight_decay: decoupled, as AdamW's.
    """

    def __init__(
        self,
        params,
        lr: float,
        betas=(0.9, 0.999),
        eps: float = 1e-8,
        momentum: float = 0.95,
        ns_steps: int = 4,
        weight_decay: float = 0.0,
    ):
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "momentum": momentum,
            "ns_steps": ns_steps,
            "weight_decay": weight_decay,
            "orthogonal": False,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            if group["orthogonal"]:
                self._orthogonal_step(params, group)
            else:
                self._adam_step(params, group)
        return loss

    def _orthogonal_step(self, params: List[torch.Tensor], group: Dict[str, Any]) -> None:
        """Nesterov momentum, orthogonalised, scaled to the same size per element for tall ones."""
        buffers = self._states(params, "momentum_buffer")
        grads = [p.grad for p in params]
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        updates = torch._foreach_lerp(grads, buffers, group["momentum"])
        matrices = orthogonalise_all([update.flatten(1) for update in updates], group["ns_steps"])
        for p, update in zip(params, matrices):
            scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
            p.add_(update.reshape(p.shape), alpha=-group["lr"] * scale)

    def _adam_step(self, params: List[torch.Tensor], group: Dict[str, Any]) -> None:
        """Adam with bias correction."""
        averages = self._states(params, "exp_avg")
        squares = self._states(params, "exp_avg_sq")
        counts = [self.state[p] for p in params]
        for state in counts:
            state["step"] = state.get("step", 0) + 1
        beta1, beta2 = group["betas"]
        grads = [p.grad for p in params]
        torch._foreach_lerp_(averages, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        scales = torch._foreach_sqrt(squares)
        corrections = [(1 - beta2 ** state["step"]) ** 0.5 for state in counts]
        torch._foreach_div_(scales, corrections)
        torch._foreach_add_(scales, group["eps"])
        steps = [-group["lr"] / (1 - beta1 ** state["step"]) for state in counts]
        torch._foreach_addcdiv_(params, averages, scales, steps)

    def _states(self, params: List[torch.Tensor], name: str) -> List[torch.Tensor]:
        """The running averages called ``name``, zeros at first."""
        for p in params:
            if name not in self.state[p]:
                self.state[p][name] = torch.zeros_like(p)
        return [self.state[p][name] for p in params]


def orthogonalise(matrix: torch.Tensor, steps: int) -> torch.Tensor:
    """All singular values towards 1 by Newton-Schulz iterations, without a decomposition.

    Args:
        matrix: float (rows, columns).
        steps: iterations; after 4 to 5 the singular values lie roughly between 0.7 and 1.2.

    Returns:
        float (rows, columns).
    """
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    for _ in range(steps):
        gram = x @ x.T
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.T if tall else x


def orthogonalise_all(matrices: List[torch.Tensor], steps: int) -> List[torch.Tensor]:
    """:func:`orthogonalise` of several matrices; every process of a job does a share of them.

    Args:
        matrices: float (rows, columns) each, the same on all processes; all have to call this.
        steps: iterations.

    Returns:
        list of float (rows, columns), the same on all processes.
    """
    world_size, rank = comm.get_world_size(), comm.get_rank()
    if world_size == 1:
        return [orthogonalise(matrix, steps) for matrix in matrices]
    owners = share_out([m.numel() * min(m.shape) for m in matrices], world_size)
    flat = matrices[0].new_zeros(sum(m.numel() for m in matrices))
    parts = flat.split([m.numel() for m in matrices])
    for owner, matrix, part in zip(owners, matrices, parts):
        if owner == rank:
            part.copy_(orthogonalise(matrix, steps).flatten())
    # Every number has one owner and is 0 elsewhere, so the sum changes no bit.
    torch.distributed.all_reduce(flat)
    return [part.view_as(matrix) for part, matrix in zip(parts, matrices)]


def share_out(costs: List[int], num_shares: int) -> List[int]:
    """Give every item to the share with the least so far, the most expensive items first.

    Args:
        costs: of the items.
        num_shares: at least 1.

    Returns:
        index of the share of every item.
    """
    owners, totals = [0] * len(costs), [0] * num_shares
    for item in sorted(range(len(costs)), key=lambda item: -costs[item]):
        owners[item] = totals.index(min(totals))
        totals[owners[item]] += costs[item]
    return owners


def split_matrices(groups: List[Dict[str, Any]], model, lr: float, base_lr: float):
    """Split parameter groups into the weight matrices of layers and the rest.

    Tables (embeddings, positions), the first convolution and predictors with few outputs stay with
    Adam: their rows are used separately, so there is nothing to orthogonalise.

    Args:
        groups: as Detectron2's ``get_default_optimizer_params`` returns them.
        model: whose parameters they are.
        lr: learning rate of the matrices; a group's factor on ``base_lr`` applies to it too.
        base_lr: learning rate the groups were built with.

    Returns:
        list of parameter groups; those of matrices have "orthogonal" True.
    """
    layers = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)
    matrices = {
        id(layer.weight)
        for layer in model.modules()
        if isinstance(layer, layers) and min(layer.weight.shape[:2]) >= 16
    }
    result = []
    for group in groups:
        own = {True: [], False: []}
        for p in group["params"]:
            own[id(p) in matrices].append(p)
        if own[False]:
            result.append({**group, "params": own[False]})
        if own[True]:
            factor = group.get("lr", base_lr) / base_lr
            result.append({**group, "params": own[True], "lr": lr * factor, "orthogonal": True})
    return result


@OPTIMIZER_REGISTRY.register()
def Muon(cfg, model, params: List[Dict[str, Any]]) -> MuonWithAdam:
    """``SOLVER.MATRIX_LR`` for weight matrices, ``BASE_LR`` and ``BETAS`` for the rest."""
    solver = cfg.SOLVER
    groups = split_matrices(params, model, solver.MATRIX_LR, solver.BASE_LR)
    return MuonWithAdam(groups, lr=solver.BASE_LR, betas=tuple(solver.BETAS))
