"""COCO run-length masks that come from elsewhere: checked before pycocotools sees them.

pycocotools reads beyond the end of a damaged string and stops early at empty runs; a file from
elsewhere must be able to do neither.
"""

from typing import Any, Dict, Sequence, Tuple

import numpy as np
import pycocotools.mask as mask_util
import torch

RLE = Dict[str, Any]

# Of a compressed RLE: 6 bits each, the highest one says that the number goes on.
_CHARACTERS = bytes(range(48, 112))
# Characters of one number in a compressed RLE: 7 times 5 bits hold every run of an image.
_MAX_CHARACTERS = 7


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


def check_rle(rle: Any) -> Tuple[Tuple[int, int], np.ndarray]:
    """Size and runs of a COCO RLE.

    Args:
        rle: {"size": [height, width], "counts": text, bytes or list of runs}.

    Returns:
        (height, width), and the lengths of the runs, int64 (K,), background first.

    Raises:
        ValueError: says what is wrong.
    """
    size = rle.get("size") if isinstance(rle, dict) else None
    is_size = isinstance(size, (list, tuple)) and len(size) == 2
    if not is_size or any(type(value) is not int or value <= 0 for value in size):
        raise ValueError(f"expected a COCO RLE with 'size' [height, width], found {_short(rle)}")
    counts = rle.get("counts")
    if isinstance(counts, list):
        if any(type(run) is not int for run in counts):
            raise ValueError("'counts' must hold whole numbers")
        # As Python integers first: int64 would wrap around silently.
        if any(not 0 <= run <= size[0] * size[1] for run in counts):
            raise ValueError("'counts' holds a run that is negative or longer than the image")
        runs = np.array(counts, dtype=np.int64)
    else:
        runs = _decompress(counts)
    if (runs < 0).any() or runs.sum() != size[0] * size[1]:
        raise ValueError(f"its runs cover {runs.sum()} of {size[0] * size[1]} pixels")
    return (size[0], size[1]), runs


def runs_to_mask(size: Tuple[int, int], runs: np.ndarray) -> np.ndarray:
    """bool (height, width), column-major, of checked runs."""
    values = np.repeat(np.arange(len(runs), dtype=np.int64) % 2 == 1, runs)
    return values.reshape(size, order="F")


def normalize_rle(rle: RLE, size: Tuple[int, int], runs: np.ndarray) -> RLE:
    """Compressed RLE without empty runs after the first.

    Args:
        rle: from elsewhere.
        size, runs: what :func:`check_rle` says about it.
    """
    if (runs[1:] == 0).any():
        return mask_to_rle(runs_to_mask(size, runs))
    if not isinstance(rle["counts"], list):
        return {"size": list(size), "counts": rle["counts"]}
    return mask_util.frPyObjects({"size": list(size), "counts": runs.tolist()}, *size)


def mask_to_rle(mask: Any) -> RLE:
    """Compressed RLE, `counts` bytes, of a tensor or array bool (height, width)."""
    if isinstance(mask, torch.Tensor):
        mask = mask.detach().cpu().numpy()
    return mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))


def to_json(rle: RLE) -> RLE:
    """The RLE as JSON can hold it."""
    counts = rle["counts"]
    counts = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [int(value) for value in rle["size"]], "counts": counts}


def _decompress(counts: Any) -> np.ndarray:
    """Runs of COCO's compressed text: 5 bits per character, from the third on as differences."""
    if isinstance(counts, str):
        try:
            counts = counts.encode("ascii")
        except UnicodeEncodeError as error:
            raise ValueError(f"'counts' has a character that is not ASCII: {error}") from error
    if not isinstance(counts, bytes):
        raise ValueError(f"'counts' is {type(counts).__name__}, expected text or a list of runs")
    wrong = counts.translate(None, _CHARACTERS)
    if wrong:
        raise ValueError(f"'counts' has the character {chr(wrong[0])!r}")
    bits = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - _CHARACTERS[0]
    ends = (bits < 32).nonzero()[0]
    if not len(ends) or ends[-1] != len(bits) - 1:
        raise ValueError("'counts' ends inside a number")
    starts = np.zeros_like(ends)
    starts[1:] = ends[:-1] + 1
    lengths = ends - starts + 1
    if lengths.max() > _MAX_CHARACTERS:
        raise ValueError("'counts' holds a number that is too long")
    places = np.arange(len(bits)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((bits & 31) << (5 * places), starts)
    runs -= ((bits[ends] & 16) > 0) * (np.int64(1) << (5 * lengths))
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _short(value: Any) -> str:
    """The beginning of a value's text."""
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."
