"""Flips and colour jitter of grounding samples, in plain numpy.

Detectron2's own augmentations are not used for two reasons. A default config flips the picture
under "the left man", and its generic path through ``AugInput`` costs more than reading a small
picture. What a flip needs beside the pixels, the exchange of direction words, is in
:mod:`igvg_d2.data.directions`. Colours keep their names: jitter scales all channels alike and
leaves the hue alone, so that "the red car" stays red; grey scale and other hues would change it.
"""

from typing import Tuple

import cv2
import numpy as np

from .directions import check_axis


def flip(
    image: np.ndarray, boxes: np.ndarray, masks: np.ndarray, axis: str
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mirrors a sample; "horizontal" exchanges left and right, "vertical" top and bottom.

    Args:
        image: uint8 (H, W, 3).
        boxes: float32 (T, 4) XYXY pixels of this image.
        masks: bool (T, H, W).
        axis: "horizontal" or "vertical".

    Returns:
        The same three, image and masks as views of the input.
    """
    check_axis(axis)
    height, width = image.shape[:2]
    boxes = boxes.copy()
    if axis == "horizontal":
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        return image[:, ::-1], boxes, masks[:, :, ::-1]
    boxes[:, [1, 3]] = height - boxes[:, [3, 1]]
    return image[::-1], boxes, masks[:, ::-1]


def jitter_color(image: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    """Scales brightness, and contrast around the mean intensity of the picture.

    Args:
        image: uint8 (H, W, 3), any channel order.
        brightness, contrast: factors; 1.0 changes nothing.

    Returns:
        uint8 (H, W, 3), a new array.
    """
    levels = np.arange(256) * contrast + (1.0 - contrast) * float(image.mean())
    table = np.clip(np.rint(levels * brightness), 0, 255).astype(np.uint8)
    return cv2.LUT(image, table)
