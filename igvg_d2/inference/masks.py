"""Masks of the original size straight to RLE, the same bits as dense ones."""

from typing import Sequence

import cv2
import numpy as np
import pycocotools.mask as mask_util
import torch

from igvg_d2.io.rle import RLE, mask_to_rle
from igvg_d2.modeling.postprocessing import RankedOutput


def encode_mask(ranked: RankedOutput, logits: torch.Tensor, size: Sequence[int]) -> RLE:
    """One mask as ``ranked.make_masks`` makes it.

    Args:
        ranked: of the sample.
        logits: float (Hm, Wm), of one of its masks.
        size: (height, width) of the mask.
    """
    return mask_to_rle(ranked.make_masks(logits[None], size)[0])


def decode_mask(rle: RLE) -> np.ndarray:
    """bool (height, width), row-major."""
    # OpenCV transposes in blocks, 5 times as fast as numpy.
    return cv2.transpose(mask_util.decode(rle).T).view(bool)
