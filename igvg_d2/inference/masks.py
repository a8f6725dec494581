"""Masks of the original size straight to RLE, the same bits as dense ones."""

from typing import Sequence

import cv2
import numpy as np
import pycocotools.mask as mask_util
import torch

from igvg_d2.io.rle import RLE, check_rle, runs_to_rle
from igvg_d2.modeling.mask_resize import (
    bilinear_taps,
    nearest_indices,
    resize_logits,
    smallest_logit,
)
from igvg_d2.modeling.postprocessing import RankedOutput

# Pixels of a strip of columns.
_STRIP = 1 << 20
# Rounding moves a value by less than this part of the largest logit.
_ROUNDING = 1e-5


def decode_mask(rle: RLE) -> np.ndarray:
    """bool (height, width), row-major."""
    height, width = rle["size"]
    # OpenCV transposes in blocks, 5 times as fast as numpy.
    if height * width <= _STRIP:
        return cv2.transpose(mask_util.decode(rle).T).view(bool)
    # In strips of columns, as no second mask of a large photo should be in memory.
    runs = check_rle(rle)[1]
    ends, columns = np.cumsum(runs), max(1, _STRIP // height)
    mask = np.empty((height, width), dtype=bool)
    for left in range(0, width, columns):
        start, stop = left * height, min(left + columns, width) * height
        # Runs of the first and the last pixel.
        first, last = np.searchsorted(ends, [start, stop - 1], side="right")
        lengths = np.diff(np.minimum(ends[first : last + 1], stop), prepend=start)
        strip = np.repeat(np.arange(first, last + 1) % 2 == 1, lengths).reshape(-1, height)
        mask[:, left : left + columns] = cv2.transpose(strip.view(np.uint8)).view(bool)
    return mask


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
