"""COCO segmentations that come from elsewhere: checked before pycocotools sees them.

pycocotools reads beyond the end of a damaged string, stops early at empty runs and takes memory by
the length of an outline; a file from elsewhere must be able to do none of it. Arithmetic on checked
masks is pycocotools' own.
"""

import reprlib
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import pycocotools.mask as mask_util

RLE = Dict[str, Any]
Size = Tuple[int, int]

# The largest side of an image, that of a JPEG.
MAX_SIDE = 65535
# No coordinate of a box is farther from the image, in pixels; areas are exact in float64.
FARTHEST = 1e6

# Of a compressed RLE: 6 bits each above "0"; 5 of them count, the highest says that more follow.
_ZERO, _SYMBOLS, _MORE, _SIGN, _VALUE = 48, 64, 0x20, 0x10, 0x1F
# Symbols of one number: 7 times 5 bits hold every run of an image.
_MAX_SYMBOLS = 7
_MIN_POLYGON_COORDINATES = 6
# Outlines of a segmentation, in sums of height and width; rasterising takes memory by their length.
_LONGEST_OUTLINE = 100


class RLEMasks:
    """Masks of the candidates of a sample as RLEs, for `Instances.pred_masks` without pixels."""

    def __init__(self, rles: Sequence[RLE]):
        """
        Args:
            rles: compressed RLE dicts, all of one size.
        """
        self.rles = list(rles)

    def __len__(self) -> int:
        return len(self.rles)

    def __getitem__(self, index: int) -> RLE:
        return self.rles[index]


def check_rle(rle: Any, size: Optional[Sequence[int]] = None) -> Tuple[Size, np.ndarray]:
    """Size and runs of a COCO RLE.

    Args:
        rle: {"size": [height, width], "counts": text, bytes or list of runs}.
        size: (height, width) that it must have; None accepts any.

    Returns:
        (height, width), and the lengths of the runs, int64 (K,), background first.

    Raises:
        ValueError: says what was expected and what was found.
    """
    found = rle.get("size") if isinstance(rle, dict) else None
    is_size = isinstance(found, (list, tuple)) and len(found) == 2
    is_size = is_size and all(type(value) is int and 0 < value <= MAX_SIDE for value in found)
    if not is_size or "counts" not in rle or (size is not None and list(found) != list(size)):
        wanted = "[height, width]" if size is None else f"{list(size)} of the image"
        what = f"keys {sorted(map(str, rle))}" if isinstance(rle, dict) else rle
        raise ValueError(
            f"expected an RLE dict with 'counts' and size {wanted}, found {reprlib.repr(what)} and "
            f"size {reprlib.repr(found)}"
        )
    (height, width), counts = found, rle["counts"]
    pixels = height * width
    if isinstance(counts, list):
        if not all(type(run) is int for run in counts):
            raise ValueError(
                f"expected run lengths or text as 'counts' of an RLE: {reprlib.repr(counts)}"
            )
        # Of Python integers: a sum of int64 would wrap around silently.
        runs, fills = counts, bool(counts) and min(counts) >= 0 and sum(counts) == pixels
    else:
        runs = decompress(counts)
        fills = runs.min() >= 0 and runs.max() <= pixels and runs.sum() == pixels
    if not fills:
        raise ValueError(
            f"expected run lengths of {height} x {width} = {pixels} pixels in an RLE, found "
            f"{len(runs)} runs of {sum(map(int, runs))}"
        )
    return (height, width), np.asarray(runs, dtype=np.int64)


def runs_to_mask(size: Size, runs: np.ndarray) -> np.ndarray:
    """bool (height, width), column-major, of checked runs."""
    values = np.repeat(np.arange(len(runs), dtype=np.int64) % 2 == 1, runs)
    return values.reshape(size, order="F")


def normalize_rle(rle: RLE, size: Size, runs: np.ndarray) -> RLE:
    """Compressed RLE, `counts` bytes, without empty runs after the first.

    Args:
        rle: from elsewhere.
        size, runs: what :func:`check_rle` says about it.
    """
    if (runs[1:] == 0).any():
        return mask_to_rle(runs_to_mask(size, runs))
    counts = rle["counts"]
    if isinstance(counts, list):
        return mask_util.frPyObjects({"size": list(size), "counts": counts}, *size)
    counts = counts.encode("ascii") if isinstance(counts, str) else counts
    return {"size": list(size), "counts": counts}


def to_rle(segmentation: Any, height: int, width: int) -> RLE:
    """Converts any COCO segmentation to one compressed RLE, parts joined by union.

    Rasterisation is pycocotools' own, which is what the benchmarks' masks are defined by.

    Args:
        segmentation: list of polygons [x0, y0, x1, y1, ...] in pixels, an RLE dict (counts
            compressed or a list of run lengths), or a list of RLE dicts (RefClef).
        height, width: of the original image.

    Returns:
        ``{"size": [height, width], "counts": bytes}``.

    Raises:
        ValueError: nothing to rasterise, a coordinate that is not a number or far outside of the
            image, outlines of absurd length, an RLE of another size or with wrong run lengths.
    """
    return to_rle_and_polygons(segmentation, height, width)[0]


def to_rle_and_polygons(segmentation: Any, height: int, width: int) -> Tuple[RLE, List[np.ndarray]]:
    """As :func:`to_rle`, with the polygons, float64 [x0, y0, ...]; none if it is an RLE.

    Polygons of fewer than three corners are left out: they have no area, and pycocotools would
    read four numbers as a box.
    """
    if isinstance(segmentation, dict):
        return _compress(segmentation, height, width), []
    if not isinstance(segmentation, (list, tuple)) or not segmentation:
        raise ValueError(
            f"expected polygons or RLE as segmentation, found {reprlib.repr(segmentation)}"
        )
    if isinstance(segmentation[0], dict):
        parts = [_compress(part, height, width) for part in segmentation]
        return mask_util.merge(parts), []
    polygons = [_check_polygon(part, height, width) for part in segmentation]
    polygons = [part for part in polygons if len(part) >= _MIN_POLYGON_COORDINATES]
    if not polygons:
        found = reprlib.repr(segmentation)
        raise ValueError(f"expected a polygon with at least three corners, found {found}")
    length = sum(map(_outline_length, polygons))
    if length > _LONGEST_OUTLINE * (height + width):
        raise ValueError(
            f"expected outlines of at most {_LONGEST_OUTLINE} times height + width of the image of "
            f"{width} x {height} pixels, found {length:.0f} pixels; write the mask as RLE"
        )
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
        raise ValueError(f"expected a polygon [x0, y0, x1, y1, ...], found {reprlib.repr(part)}")
    polygon = polygon.astype(np.float64)
    # A comparison with NaN is false.
    margin = max(height, width)
    if len(polygon) and not (polygon.min() >= -margin and polygon.max() <= 2 * margin):
        raise ValueError(
            f"expected polygon corners near the image of {width} x {height} pixels, found "
            f"coordinates from {polygon.min()} to {polygon.max()}"
        )
    return polygon


def _outline_length(polygon: np.ndarray) -> float:
    """Pixels that pycocotools walks along: the longer of both distances of every edge."""
    corners = polygon.reshape(-1, 2)
    return float(np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum())


def _compress(rle: Any, height: int, width: int) -> RLE:
    """One RLE dict, compressed, after a check of its size and its run lengths."""
    size, runs = check_rle(rle, (height, width))
    return normalize_rle(rle, size, runs)


def runs_to_rle(size: Size, runs: Sequence[int]) -> RLE:
    """Compressed RLE of runs of our own, which fill an image of ``size``, background first."""
    return mask_util.frPyObjects({"size": list(size), "counts": list(runs)}, *size)


def empty_rle(size: Sequence[int]) -> RLE:
    """Compressed RLE of no pixel of (height, width)."""
    return runs_to_rle(size, [size[0] * size[1]])


def mask_to_rle(mask: Any) -> RLE:
    """Compressed RLE, `counts` bytes, of a tensor or array bool (height, width)."""
    if not isinstance(mask, np.ndarray):
        mask = mask.detach().cpu().numpy()
    return mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))


def to_json(rle: RLE) -> RLE:
    """The RLE as JSON can hold it."""
    counts = rle["counts"]
    counts = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [int(value) for value in rle["size"]], "counts": counts}


def decompress(counts: Any) -> np.ndarray:
    """Run lengths int64 of compressed counts, by the rule of pycocotools' rleFrString."""
    if isinstance(counts, str) and counts.isascii():
        counts = counts.encode("ascii")
    if not isinstance(counts, bytes):
        raise ValueError(
            f"expected run lengths or text as 'counts' of an RLE: {reprlib.repr(counts)}"
        )
    symbols = np.frombuffer(counts, np.uint8).astype(np.int64) - _ZERO
    is_symbol = (symbols >= 0) & (symbols < _SYMBOLS)
    ends = np.flatnonzero((symbols & _MORE) == 0)
    if not is_symbol.all() or not len(ends) or ends[-1] != len(symbols) - 1:
        raise ValueError(f"expected compressed 'counts' of an RLE, found {reprlib.repr(counts)}")
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > _MAX_SYMBOLS:
        raise ValueError("expected run lengths of an image in an RLE, found far larger ones")
    shifts = 5 * (np.arange(len(symbols)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((symbols & _VALUE) << shifts, starts)
    runs -= np.where(symbols[ends] & _SIGN, 1 << (5 * lengths), 0)
    # From the fourth on, a run is stored as the difference to the run two before.
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
