"""Masks of the original size straight to RLE, the same bits as dense ones."""

from typing import Optional, Sequence

import cv2
import numpy as np
import pycocotools.mask as mask_util
import torch

from igvg_d2.io.rle import RLE, decompress, runs_to_rle
from igvg_d2.modeling.mask_resize import (
    bilinear_taps,
    nearest_indices,
    resize_logits,
    smallest_logit,
)
from igvg_d2.modeling.postprocessing import RankedOutput

# Pixels of a strip of columns that is computed, and of one that is filled, at a time.
_STRIP, _FILLED_STRIP = 1 << 20, 1 << 21
# Rounding moves a value by less than this part of the largest logit.
_ROUNDING = 1e-5


def decode_mask(rle: RLE, out: Optional[np.ndarray] = None) -> np.ndarray:
    """Pixels of a mask; time and memory follow the box around those that are set.

    Args:
        rle: of the mask.
        out: bool (height, width), all False, to be filled; None makes one.

    Returns:
        bool (height, width), row-major.
    """
    height, width = rle["size"]
    # Pages of zeros take no memory before they are written.
    mask = np.zeros((height, width), dtype=bool) if out is None else out
    left, top, columns, rows = mask_util.toBbox(rle).astype(int).tolist()
    if not rows:
        return mask
    step, ends = max(1, _FILLED_STRIP // height), None
    if step < width:
        ends = np.cumsum(decompress(rle["counts"]))
    for first in range(left, left + columns, step):
        last = min(first + step, left + columns)
        if ends is None:
            part = mask_util.decode(rle)[:, first:last]
        else:
            part = mask_util.decode(_part(ends, height, first, last))
        # OpenCV transposes in blocks, 5 times as fast as numpy.
        strip = cv2.transpose(part.T[:, top : top + rows])
        mask[top : top + rows, first:last] = strip
    return mask


def _part(ends: np.ndarray, height: int, first: int, last: int) -> RLE:
    """RLE of columns ``first`` to ``last`` of a mask whose runs, background first, so end."""
    start, stop = first * height, last * height
    low, high = np.searchsorted(ends, start, "right"), np.searchsorted(ends, stop, "left")
    # A part that begins within an object has a background of no pixels first.
    bounds = [start] * (1 + low % 2) + ends[low:high].tolist() + [stop]
    return runs_to_rle((height, last - first), np.diff(bounds).tolist())


def encode_mask(ranked: RankedOutput, logits: torch.Tensor, size: Sequence[int]) -> RLE:
    """One mask as ``ranked.make_masks`` makes it, without its pixels.

    A mask of 12000 x 9000 pixels takes 5 MB and 0.1 s in place of 1 GB and seconds: between two
    rows of logits that agree about a column, nothing is computed.

    Args:
        ranked: of the sample.
        logits: float (Hm, Wm) on the host, of one of its masks.
        size: (height, width) of the mask.
    """
    height, width = size
    options, changes = ranked.options, []
    smallest = smallest_logit(options.mask_thresh)
    if options.mask_resize == "logits":
        rows = resize_logits(logits[None], (len(logits), width))[0].numpy()
        find_changes = _interpolated_changes
    else:
        rows = resize_logits(logits[None], ranked.content_size, options.align_corners)[0]
        rows = rows[:, nearest_indices(rows.shape[1], width)].numpy() >= smallest
        find_changes = _nearest_changes
    value, columns = False, max(1, _STRIP // height)
    for left in range(0, width, columns):
        strip = np.ascontiguousarray(rows[:, left : left + columns].T)
        positions, values = find_changes(strip, height, smallest)
        is_change = values != np.concatenate([[value], values[:-1]])
        changes.append(positions[is_change] + left * height)
        value = values[-1]
    runs = np.diff(np.concatenate([[0], *changes, [height * width]]))
    return runs_to_rle((height, width), runs.tolist())


def _nearest_changes(strip: np.ndarray, height: int, smallest: float):
    """Positions int64 and values bool of pixels, column by column, before which it may change.

    Args:
        strip: bool (columns, rows), of which each row fills several pixels, or none.
        height: of the mask.
    """
    rows, starts = np.unique(nearest_indices(strip.shape[1], height).numpy(), return_index=True)
    positions = np.arange(len(strip))[:, None] * height + starts
    return positions.ravel(), strip[:, rows].ravel()


def _interpolated_changes(strip: np.ndarray, height: int, smallest: float):
    """As :func:`_nearest_changes` of logits float32 (columns, rows) between the pixels' rows."""
    low, high, weight_low, weight_high = bilinear_taps(strip.shape[1], height)
    first_rows, starts = np.unique(low, return_index=True)
    lengths = np.diff(np.append(starts, height))
    above, below = strip[:, first_rows], strip[:, high[starts]]
    peak = np.abs(strip).max()
    # Compared with NaN, everything is unsure.
    margin = _ROUNDING * peak if np.isfinite(peak) else np.nan
    is_set = np.minimum(above, below) >= smallest + margin
    is_unsure = ~is_set & ~(np.maximum(above, below) < smallest - margin)
    # A part between two rows is one entry, or an entry per pixel if it is unsure.
    counts = np.where(is_unsure, lengths, 1).ravel()
    parts = np.repeat(np.arange(counts.size), counts)
    offsets = np.arange(parts.size) - np.repeat(np.cumsum(counts) - counts, counts)
    columns, segments = np.divmod(parts, len(starts))
    pixel_rows = starts[segments] + offsets
    values = is_set.ravel()[parts]
    unsure = np.flatnonzero(is_unsure.ravel()[parts])
    pixels, parts = pixel_rows[unsure], parts[unsure]
    exact = above.ravel()[parts] * weight_low[pixels]
    exact += below.ravel()[parts] * weight_high[pixels]
    values[unsure] = exact >= smallest
    return columns * height + pixel_rows, values
