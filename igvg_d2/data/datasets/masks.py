"""Segmentations of COCO-style files as RLE masks in the original image frame, after a check.

What goes into pycocotools must be sound: it checks little, and a wrong run length or a huge
coordinate is a wrong mask or worse.
"""

from typing import Any, Dict, List, Tuple

import numpy as np
import pycocotools.mask as mask_util

from .fields import is_int, short

_MIN_POLYGON_COORDINATES = 6
# pycocotools' alphabet: 6 bits above "0"; 5 of them count, one says that more follow.
_RLE_ZERO, _RLE_SYMBOLS, _RLE_MORE, _RLE_SIGN, _RLE_VALUE = 48, 64, 0x20, 0x10, 0x1F
# 2^35 is more than any number of pixels.
_RLE_MAX_SYMBOLS = 7


def to_rle(segmentation: Any, height: int, width: int) -> Dict[str, Any]:
    """Converts any COCO segmentation to one compressed RLE, parts joined by union.

    Rasterisation is pycocotools' own, which is what the benchmarks' masks are defined by.

    Args:
        segmentation: list of polygons [x0, y0, x1, y1, ...] in pixels, an RLE dict (counts
            compressed or a list of run lengths), or a list of RLE dicts (RefClef). Compressed
            counts given as bytes are pycocotools' own and taken as they are.
        height, width: of the original image.

    Returns:
        ``{"size": [height, width], "counts": bytes}``.

    Raises:
        ValueError: nothing to rasterise, a coordinate that is not a number or far outside of the
            image, an RLE of another size or with wrong run lengths.
    """
    return to_rle_and_polygons(segmentation, height, width)[0]


def to_rle_and_polygons(
    segmentation: Any, height: int, width: int
) -> Tuple[Dict[str, Any], List[np.ndarray]]:
    """As :func:`to_rle`, with the polygons, float64 [x0, y0, ...]; none if it is an RLE.

    Polygons of fewer than three corners are left out: they have no area, and pycocotools would
    read four numbers as a box.
    """
    if isinstance(segmentation, dict):
        return _check_rle(segmentation, height, width), []
    if not isinstance(segmentation, (list, tuple)) or not segmentation:
        raise ValueError(f"expected polygons or RLE as segmentation, found {short(segmentation)}")
    if isinstance(segmentation[0], dict):
        parts = [_check_rle(part, height, width) for part in segmentation]
        return mask_util.merge(parts), []
    polygons = [_check_polygon(part, height, width) for part in segmentation]
    polygons = [part for part in polygons if len(part) >= _MIN_POLYGON_COORDINATES]
    if not polygons:
        found = short(segmentation)
        raise ValueError(f"expected a polygon with at least three corners, found {found}")
    parts = mask_util.frPyObjects(polygons, height, width)
    return parts[0] if len(parts) == 1 else mask_util.merge(parts), polygons


def _check_polygon(part: Any, height: int, width: int) -> np.ndarray:
    """One polygon as float64 (2 * corners,)."""
    try:
        polygon = np.asarray(part) if isinstance(part, (list, tuple, np.ndarray)) else None
    except ValueError:  # lists of different lengths
        polygon = None
    is_row = polygon is not None and polygon.ndim == 1 and len(polygon) % 2 == 0
    if not is_row or (len(polygon) and polygon.dtype.kind not in "iuf"):
        raise ValueError(f"expected a polygon [x0, y0, x1, y1, ...], found {short(part)}")
    polygon = polygon.astype(np.float64)
    # Rasterising takes memory by the length of the outline. A comparison with NaN is false.
    margin = max(height, width)
    if len(polygon) and not (polygon.min() >= -margin and polygon.max() <= 2 * margin):
        raise ValueError(
            f"expected polygon corners near the image of {width} x {height} pixels, found "
            f"coordinates from {polygon.min()} to {polygon.max()}"
        )
    return polygon


def _check_rle(rle: Any, height: int, width: int) -> Dict[str, Any]:
    """One RLE dict, compressed, after a check of its size and its run lengths."""
    size = rle.get("size") if isinstance(rle, dict) else None
    is_size = isinstance(size, (list, tuple)) and all(map(is_int, size))
    if not is_size or list(size) != [height, width] or "counts" not in rle:
        found = f"keys {short(sorted(map(str, rle)))}" if isinstance(rle, dict) else short(rle)
        raise ValueError(
            f"expected an RLE dict with 'counts' and size [{height}, {width}] of the image, "
            f"found {found} and size {short(size)}"
        )
    counts = rle["counts"]
    if isinstance(counts, bytes):
        return rle
    if isinstance(counts, list) and all(map(is_int, counts)):
        _check_runs(np.array(counts, dtype=object), height, width)
        return mask_util.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    if not isinstance(counts, str) or not counts.isascii():
        raise ValueError(f"expected run lengths or text as 'counts' of an RLE: {short(counts)}")
    _check_runs(_decode_runs(counts.encode("ascii")), height, width)
    return {"size": [height, width], "counts": counts.encode("ascii")}


def _check_runs(runs: np.ndarray, height: int, width: int) -> None:
    """Run lengths must cover the image exactly."""
    total = sum(runs.tolist())
    if not len(runs) or min(runs.tolist()) < 0 or total != height * width:
        raise ValueError(
            f"expected run lengths of {height} x {width} = {height * width} pixels in an RLE, "
            f"found {len(runs)} runs of {total}"
        )


def _decode_runs(counts: bytes) -> np.ndarray:
    """Run lengths int64 of compressed counts, by the rule of pycocotools' rleFrString."""
    symbols = np.frombuffer(counts, np.uint8).astype(np.int64) - _RLE_ZERO
    is_symbol = (symbols >= 0) & (symbols < _RLE_SYMBOLS)
    ends = np.flatnonzero((symbols & _RLE_MORE) == 0)
    if not is_symbol.all() or not len(ends) or ends[-1] != len(symbols) - 1:
        raise ValueError(f"expected compressed 'counts' of an RLE, found {short(counts)}")
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > _RLE_MAX_SYMBOLS:
        raise ValueError("expected run lengths of an image in an RLE, found far larger ones")
    shifts = 5 * (np.arange(len(symbols)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((symbols & _RLE_VALUE) << shifts, starts)
    runs -= np.where(symbols[ends] & _RLE_SIGN, 1 << (5 * lengths), 0)
    # From the fourth on, a run is stored as the difference to the run two before.
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
