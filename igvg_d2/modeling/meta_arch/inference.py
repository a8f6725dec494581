"""Faster ways to the same answers on a CPU, for a model that only answers.

:func:`optimize_for_inference` gives modules of a model another class, as PyTorch's own
``torch.nn.utils.parametrize`` does: parameters, buffers, hooks and the state dict stay what they
are. Where a gradient is wanted, in training mode, in another type or on another device, under
autocast, and while a model is exported or compiled, each computes exactly as before.
"""

from functools import partial
from typing import Tuple

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..backbone.beit3 import VisionEmbedding
from ..backbone.multiway import ModalityExpert
from ..transformer.deformable_decoder import MSDeformAttn

# Below so many cells, Winograd's transforms cost as much as they save.
_SMALLEST_MAP = 400
_is_autocast = torch.is_autocast_cpu_enabled
if hasattr(torch.amp, "is_autocast_available"):  # PyTorch 2.4
    _is_autocast = partial(torch.is_autocast_enabled, "cpu")


def optimize_for_inference(model: nn.Module) -> nn.Module:
    """Let a model answer faster on a CPU in float32, in place.

    * linear layers are oneDNN's, with bias and GELU in the product (on an EPYC 0.85 of MKL's time);
    * 3 x 3 convolutions of maps from 20 x 20 cells on are Winograd's, by NNPACK, in 0.4 of the time
      (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016), with
      BatchNorm folded into the weights;
    * deformable attention projects what its queries have sampled, not all cells;
    * the interpolated position table is kept.

    Outputs differ by rounding, about 1e-5 of the largest. Threads may share the model; it may be
    saved, loaded, copied and trained as before.

    Args:
        model: of this library or with its layers; others stay as they are.

    Returns:
        the same object.
    """
    # The question initialises NNPACK, too.
    missing = [] if torch._nnpack_available() else [Conv2d]
    missing += [] if torch.backends.mkldnn.is_available() else [nn.Linear, ModalityExpert]
    for module in model.modules():
        if type(module) in _CLASSES and type(module) not in missing:
            module.__class__ = _CLASSES[type(module)]
    return model


def _is_fast(module: nn.Module, x: torch.Tensor) -> bool:
    """Whether nothing but the answer is wanted."""
    return not (
        module.training
        or torch.is_grad_enabled()
        or x.device.type != "cpu"
        or x.dtype != torch.float32
        or _is_autocast()
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
    )


class _Linear(nn.Linear):
    """Product, bias and activation in one pass."""

    def forward(self, x: torch.Tensor, activation: str = "none") -> torch.Tensor:
        """float (..., in) -> float (..., out); "gelu" comes after if it is named."""
        if not _is_fast(self, x):
            return super().forward(x)
        args = (x, self.weight, self.bias, activation, [], "none")
        return torch.ops.mkldnn._linear_pointwise(*args)


class _VisionEmbedding(VisionEmbedding):
    """With the last interpolated table, which takes 0.4 % of a pass of ViT-B."""

    _kept = None

    def grid_positions(self, grid: Tuple[int, int]) -> torch.Tensor:
        """See :class:`VisionEmbedding`."""
        if not _is_fast(self, self.positions):
            return super().grid_positions(grid)
        # Compared by value: a checkpoint or an optimizer may have changed the table.
        kept = self._kept
        if kept is None or kept[0] != grid or not torch.equal(kept[1], self.positions):
            with torch.inference_mode(False), torch.no_grad():
                kept = grid, self.positions.clone(), super().grid_positions(grid)
            self._kept = kept
        return kept[2]


class _Expert(ModalityExpert):
    """With the GELU inside of the product."""

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """See :class:`ModalityExpert`."""
        if not _is_fast(self, x):
            return super().feed_forward(x)
        return self.fc2(self.ffn_inner_norm(self.fc1(self.ffn_norm(x), "gelu")))


class _Conv2d(Conv2d):
    """3 x 3 by Winograd's algorithm, with the BatchNorm that follows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float (N, C, H, W) -> float (N, C', H', W')."""
        if not _is_fast(self, x):
            return super().forward(x)
        weight, bias, norm = self.weight, self.bias, self.norm
        is_fixed = isinstance(norm, _BatchNorm) and norm.track_running_stats and not norm.training
        if is_fixed and norm.affine:
            # Anew in each pass, which takes less than the BatchNorm of one map.
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            offset = norm.running_mean if bias is None else norm.running_mean - bias
            weight, bias, norm = weight * scale.view(-1, 1, 1, 1), norm.bias - offset * scale, None
        if self._is_winograd(x):
            # One by one: NNPACK takes 1.9 times as long for a batch of 8.
            samples = (sample.contiguous() for sample in x.split(1))
            x = torch.cat([torch._nnpack_spatial_convolution(s, weight, bias, 1) for s in samples])
        else:
            x = self._conv_forward(x, weight, bias)
        x = x if norm is None else norm(x)
        return x if self.activation is None else self.activation(x)

    def _is_winograd(self, x: torch.Tensor) -> bool:
        layout = (self.kernel_size, self.stride, self.padding, self.dilation, self.groups)
        is_plain = layout == ((3, 3), (1, 1), (1, 1), (1, 1), 1) and self.padding_mode == "zeros"
        return is_plain and x.shape[-2] * x.shape[-1] >= _SMALLEST_MAP


class _MSDeformAttn(MSDeformAttn):
    """The projection of values commutes with their weighted sum, of which there are fewer."""

    def forward(self, query, reference_points, memory, spatial_shapes) -> torch.Tensor:
        """See :class:`MSDeformAttn`."""
        if not _is_fast(self, memory):
            return super().forward(query, reference_points, memory, spatial_shapes)
        n, cells, dim = memory.shape
        offsets, attention = self.offsets_and_weights(query)
        sizes = torch.tensor([shape[::-1] for shape in spatial_shapes])
        starts = (sizes.prod(1).cumsum(0) - sizes.prod(1))[:, None, None]
        # Of the four cells around a sample: (N, Q, M, S, P, 4, 2), in cells of its level.
        points = reference_points[:, :, None, None, None] * sizes[:, None] + offsets - 0.5
        shares = points - points.floor()
        corners = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]])
        where = points.floor().long()[..., None, :] + corners
        last = sizes[:, None, None] - 1
        weights = torch.where(corners > 0, shares[..., None, :], 1 - shares[..., None, :]).prod(-1)
        weights = weights * ((where >= 0) & (where <= last)).all(-1) * attention[..., None]
        where = where.clamp(min=0).minimum(last)
        rows = starts + where[..., 1] * sizes[:, :1, None] + where[..., 0]
        rows = rows + cells * torch.arange(n).view(-1, 1, 1, 1, 1, 1)
        weights = weights.flatten(0, 2).flatten(1)
        bags = rows.flatten(0, 2).flatten(1), memory.reshape(-1, dim)
        sums = F.embedding_bag(*bags, per_sample_weights=weights, mode="sum")
        sums = sums.view(n, -1, self.num_heads, dim)
        # What is outside of a map counts as 0, without the bias.
        covered = weights.sum(1).view(n, -1, self.num_heads, 1)
        weight = self.value_proj.weight.view(self.num_heads, -1, dim)
        out = torch.einsum("nqmc,mdc->nqmd", sums, weight)
        out = out + covered * self.value_proj.bias.view(self.num_heads, -1)
        return self.output_proj(out.flatten(2))


_CLASSES = {
    nn.Linear: _Linear,
    Conv2d: _Conv2d,
    ModalityExpert: _Expert,
    VisionEmbedding: _VisionEmbedding,
    MSDeformAttn: _MSDeformAttn,
}
