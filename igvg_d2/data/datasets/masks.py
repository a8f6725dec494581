"""Segmentations of COCO-style files as RLE masks in the original image frame, after a check.

What goes into pycocotools must be sound: it checks little, and a wrong run length or a huge
coordinate is a wrong mask or worse.
"""

from typing import Any, Dict, List, Tuple

import numpy as np
import pycocotools.mask as mask_util

from igvg_d2.io.rle import check_rle, normalize_rle

from .fields import short

_MIN_POLYGON_COORDINATES = 6


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
        return _compress(segmentation, height, width), []
    if not isinstance(segmentation, (list, tuple)) or not segmentation:
        raise ValueError(f"expected polygons or RLE as segmentation, found {short(segmentation)}")
    if isinstance(segmentation[0], dict):
        parts = [_compress(part, height, width) for part in segmentation]
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


def _compress(rle: Any, height: int, width: int) -> Dict[str, Any]:
    """One RLE dict, compressed, after a check of its size and its run lengths."""
    if isinstance(rle, dict) and rle.get("size") == [height, width]:
        if isinstance(rle.get("counts"), bytes):
            return rle
    size, runs = check_rle(rle, (height, width))
    return normalize_rle(rle, size, runs)
