"""Adam on the rows of an embedding table that a batch has touched."""

from typing import Any, Dict

import torch
from detectron2.utils import comm


def step_sparse_rows(optimizer: torch.optim.Optimizer) -> None:
    """Let an Adam-like optimizer also update parameters with sparse gradients.

    A batch names some hundred of the 64,010 words of BEiT-3; a dense step reads and writes all rows
    of the table and of its three running averages. Here only the touched rows are read and written.
    As in ``torch.optim.SparseAdam``, averages of the other rows rest (in dense Adam they decay, and
    keep moving the row), the step count is that of the table, and weight decay, decoupled, applies
    to touched rows. State lies in the optimizer under the names Adam uses.

    Args:
        optimizer: its groups have "lr", "betas", "eps", "weight_decay" and maybe "amsgrad".
    """

    def step(optimizer, args, kwargs):
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.grad.is_sparse:
                    _step_rows(p, optimizer.state[p], group)
                    # Nothing is left to do for the dense step that follows.
                    p.grad = None

    optimizer.register_step_pre_hook(step)


@torch.no_grad()
def _step_rows(p: torch.Tensor, state: Dict[str, Any], group: Dict[str, Any]) -> None:
    """One step on the touched rows of a table (rows, width)."""
    grad = p.grad.coalesce()
    rows, values = grad.indices()[0], grad.values()
    amsgrad = group.get("amsgrad", False)
    if not state:
        state["step"] = torch.zeros(())
        for name in ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else [])):
            state[name] = torch.zeros_like(p)
    state["step"] += 1
    count = float(state["step"])
    beta1, beta2 = group["betas"]
    average = torch.lerp(state["exp_avg"][rows], values, 1 - beta1)
    square = torch.lerp(state["exp_avg_sq"][rows], values.square(), 1 - beta2)
    state["exp_avg"][rows] = average
    state["exp_avg_sq"][rows] = square
    if amsgrad:
        square = torch.maximum(state["max_exp_avg_sq"][rows], square)
        state["max_exp_avg_sq"][rows] = square
    scale = square.div(1 - beta2**count).sqrt_().add_(group["eps"])
    update = average / (1 - beta1**count) / scale
    p[rows] = p[rows] * (1 - group["lr"] * group["weight_decay"]) - group["lr"] * update


def check_sparse_backend() -> None:
    """Refuse what PyTorch cannot do: average sparse gradients by NCCL.

    Raises:
        ValueError: several processes that talk through NCCL.
    """
    if comm.get_world_size() > 1 and torch.distributed.get_backend() == "nccl":
        raise ValueError(
            "MODEL.BEIT3.TEXT_EMBEDDING 'sparse' works in one process, or in several on the CPU: "
            "NCCL does not average sparse gradients. Use 'frozen' or 'dense'."
        )
