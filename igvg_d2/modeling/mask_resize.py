"""Masks of any size from small logits: the same bits alone, among others, in parts, on any device.

``F.interpolate`` rounds differently with the number of masks and the size of the output, so that
the mask of one query, or a strip of it, differs from that among all queries in single pixels. Here
a value is ``weight_low * low + weight_high * high`` in float32, along rows, then along columns.
"""

from functools import lru_cache
from typing import NamedTuple, Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F

from .transfer import to_device

# Beyond it float32 has no other sigmoid than 0 and 1.
_LARGEST_LOGIT = 128.0


class Taps(NamedTuple):
    """Where the values of a resized line come from.

    Attributes:
        low, high: int64 (target,), indices of the two neighbours.
        weight_low, weight_high: float32 (target,), their weights.
    """

    low: np.ndarray
    high: np.ndarray
    weight_low: np.ndarray
    weight_high: np.ndarray


@lru_cache(maxsize=64)
def bilinear_taps(source: int, target: int, align_corners: bool = False) -> Taps:
    """Neighbours and weights of ``F.interpolate``'s bilinear mode along one side.

    Args:
        source, target: lengths of the side before and after.
        align_corners: whether the centers of the outer pixels stay where they are.
    """
    positions = np.arange(target, dtype=np.float64)
    if align_corners:
        scale = np.float32(source - 1) / np.float32(max(target - 1, 1))
        positions = positions.astype(np.float32) * scale
    else:
        scale = np.float32(source) / np.float32(target)
        # In float64 and rounded once, as by the fused instruction that F.interpolate uses.
        positions = (np.float64(scale) * (positions + 0.5) - 0.5).astype(np.float32)
        positions = np.maximum(positions, 0)
    low = np.minimum(positions.astype(np.int64), source - 1)
    weight_high = np.clip(positions - low.astype(np.float32), 0, 1)
    return Taps(low, np.minimum(low + 1, source - 1), np.float32(1) - weight_high, weight_high)


@lru_cache(maxsize=256)
def _taps_on(device: torch.device, source: int, target: int, align_corners: bool):
    """The taps as tensors there; a data set has images of some hundred sizes."""
    taps = bilinear_taps(source, target, align_corners)
    return tuple(to_device(torch.from_numpy(values), device) for values in taps)


@lru_cache(maxsize=64)
def nearest_indices(source: int, target: int) -> torch.Tensor:
    """int64 (target,): the pixels that ``F.interpolate``'s nearest mode takes along one side."""
    positions = torch.arange(source, dtype=torch.float32)[None, None]
    return F.interpolate(positions, size=target, mode="nearest")[0, 0].long()


@lru_cache(maxsize=64)
def smallest_logit(probability: float) -> float:
    """The least float32 number whose sigmoid reaches a probability; compared with it, logits need
    no sigmoid of every pixel."""
    if probability <= 0:
        return -float("inf")

    def number(order: int) -> float:
        value = float(np.array(abs(order), np.int32).view(np.float32))
        return -value if order < 0 else value

    # Bit patterns of positive float32 numbers are in the order of the numbers.
    high = int(np.array(_LARGEST_LOGIT, np.float32).view(np.int32))
    low = -high
    while high - low > 1:
        middle = (low + high) // 2
        if torch.sigmoid(torch.tensor(number(middle))) >= probability:
            high = middle
        else:
            low = middle
    return number(high)


def resize_logits(
    logits: torch.Tensor, size: Sequence[int], align_corners: bool = False
) -> torch.Tensor:
    """float (M, Hm, Wm) -> float32 (M, height, width), bilinear."""
    logits = logits.float()
    # Whole rows are copied faster than single columns, so the first pass is of the transpose.
    for target in (size[1], size[0]):
        logits = logits.transpose(1, 2).contiguous()
        if logits.shape[1] == target:
            continue
        taps = _taps_on(logits.device, logits.shape[1], target, align_corners)
        low, high, weight_low, weight_high = taps
        first = logits.index_select(1, low).mul_(weight_low[:, None])
        logits = first.add_(logits.index_select(1, high).mul_(weight_high[:, None]))
    return logits


def resize_nearest(masks: torch.Tensor, size: Tuple[int, int]) -> torch.Tensor:
    """bool (M, rows, columns) -> bool (M, height, width), nearest neighbours."""
    for dim in (1, 2):
        indices = nearest_indices(masks.shape[dim], size[dim - 1])
        masks = masks.index_select(dim, to_device(indices, masks.device))
    return masks
