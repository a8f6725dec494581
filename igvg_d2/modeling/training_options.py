"""Frozen parameters, and BatchNorm over all processes."""

from typing import List, Sequence

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from fvcore.nn.distributed import differentiable_all_reduce
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class SyncBatchNorm(_BatchNorm):
    """BatchNorm over the batches of all processes, on GPUs and, unlike PyTorch's, on the CPU.

    Mean and variance are those of all samples of all processes, in float32 and in two passes; the
    gradient flows through both. Parameters and buffers are those of BatchNorm. ``nn.SyncBatchNorm``
    is refused by DistributedDataParallel on the CPU; Detectron2's ``NaiveSyncBatchNorm`` keeps
    biased running variances, and computes E[x^2] - E[x]^2 of bfloat16 inputs in bfloat16.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float (N, C, ...) -> the same shape, normalised over all axes but C."""
        if not self.training or comm.get_world_size() == 1:
            return F.batch_norm(
                *(x, self.running_mean, self.running_var, self.weight, self.bias, self.training),
                self.momentum,
                self.eps,
            )
        values = x.float()
        axes = [axis for axis in range(x.dim()) if axis != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        local_count = values.new_full((1,), x.numel() / x.shape[1])
        totals = differentiable_all_reduce(torch.cat([values.sum(axes), local_count]))
        count = totals[-1].detach()
        mean = totals[:-1] / count
        centered = values - mean.view(shape)
        variance = differentiable_all_reduce(centered.square().sum(axes)) / count
        self._update(mean.detach(), variance.detach() * count / (count - 1))
        normalised = centered * (variance + self.eps).rsqrt().view(shape)
        return (normalised * self.weight.view(shape) + self.bias.view(shape)).to(x.dtype)

    @torch.no_grad()
    def _update(self, mean: torch.Tensor, unbiased_variance: torch.Tensor) -> None:
        """Moves the running statistics as BatchNorm does."""
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased_variance.to(self.running_var.dtype), self.momentum)


def replace_sync_batch_norm(module: nn.Module) -> nn.Module:
    """Replace what ``get_norm("SyncBN")`` makes by :class:`SyncBatchNorm`, in place.

    Returns:
        the module, or what takes its place, with the same parameters and buffers.
    """
    if isinstance(module, nn.SyncBatchNorm):
        new = SyncBatchNorm(module.num_features, module.eps, module.momentum)
        new.weight, new.bias = module.weight, module.bias
        for name, buffer in module.named_buffers():
            setattr(new, name, buffer)
        new.train(module.training)
        return new
    for name, child in module.named_children():
        setattr(module, name, replace_sync_batch_norm(child))
    return module


def freeze_parameters(model: nn.Module, prefixes: Sequence[str]) -> List[nn.Module]:
    """Exclude parameters from training.

    Args:
        model: its parameters lose ``requires_grad``.
        prefixes: beginnings of parameter names.

    Returns:
        BatchNorm layers below the prefixes; the caller keeps them in evaluation mode.

    Raises:
        ValueError: a prefix matches no parameter.
    """
    names = dict(model.named_parameters())
    for prefix in prefixes:
        matching = [p for name, p in names.items() if name.startswith(prefix)]
        if not matching:
            parts = sorted({name.split(".")[0] for name in names})
            raise ValueError(
                f"MODEL.FREEZE: no parameter begins with {prefix!r}; the parts of the model are "
                f"{parts}"
            )
        for p in matching:
            p.requires_grad_(False)
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and f"{name}.weight".startswith(tuple(prefixes))
    ]
