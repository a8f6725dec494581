"""Flips and colour jitter of grounding samples, in plain numpy.

Detectron2's own augmentations are not used for two reasons. A default config flips the image under
"the left man", and its generic path through ``AugInput`` costs more than reading a small image.
What a flip needs beside the pixels, the exchange of direction words, is in
:mod:`igvg_d2.data.directions`. Colours keep their names: jitter scales all channels alike and
leaves the hue alone, so that "the red car" stays red.
"""

from typing import Sequence, Tuple

import cv2
import numpy as np

from igvg_d2.io.image import RGBImage

from .directions import check_axis
from .resize import SquashResize


class GeometricTransform:
    """What happens to the geometry of one sample: a resize, then flips.

    A subclass of the mapper applies it to maps of its own, see
    :meth:`igvg_d2.data.GroundingDatasetMapper.add_targets`.

    Args:
        resize: to the network's input size.
        original_size: (height, width) of the original image.
        flips: axes along which the resized sample is mirrored: "horizontal" (left and right),
            "vertical" (top and bottom).
    """

    def __init__(
        self, resize: SquashResize, original_size: Tuple[int, int], flips: Sequence[str] = ()
    ):
        for axis in flips:
            check_axis(axis)
        self.resize = resize
        self.original_size = original_size
        self.flips = tuple(flips)

    @property
    def content_size(self) -> Tuple[int, int]:
        """(rows, columns) of the network input that the image fills."""
        return self.resize.content_size(self.original_size)

    def apply_image(self, image: RGBImage) -> np.ndarray:
        """Image or uint8 (height, width, 3), original frame -> uint8 (H, W, 3), network frame."""
        return self._flip(self.resize.resize_image(image))

    def apply_segmentation(self, numbers: np.ndarray) -> np.ndarray:
        """A map of labels or indices, uint8 (height, width) -> uint8 (H, W); padding becomes 0."""
        return self._flip(self.resize.resize_numbers(numbers))

    def apply_masks(self, masks: np.ndarray) -> np.ndarray:
        """uint8 (height, width, T), column-major, original frame -> bool (T, H, W), network frame.

        Unlike :meth:`apply_segmentation`, it follows ``INPUT.RESIZE``.
        """
        if not masks.shape[2]:
            return np.zeros((0, *self.resize.image_size), bool)
        return np.moveaxis(self._flip(np.moveaxis(self.resize.resize_masks(masks), 0, 2)), 2, 0)

    def apply_box(self, boxes: np.ndarray) -> np.ndarray:
        """float (T, 4) XYXY pixels, original frame -> float32 (T, 4), network frame, clipped."""
        boxes = self.resize.resize_boxes(boxes, self.original_size)
        for axis in self.flips:
            column, side = (0, 1) if axis == "horizontal" else (1, 0)
            size = self.resize.image_size[side]
            boxes[:, [column, column + 2]] = size - boxes[:, [column + 2, column]]
        return boxes

    def _flip(self, array: np.ndarray) -> np.ndarray:
        """A view of (H, W, ...), mirrored."""
        for axis in self.flips:
            array = np.flip(array, axis=1 if axis == "horizontal" else 0)
        return array


def jitter_color(image: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    """Scales brightness, and contrast around the mean intensity of the image.

    Args:
        image: uint8 (H, W, 3), any channel order.
        brightness, contrast: factors; 1.0 changes nothing.

    Returns:
        uint8 (H, W, 3), a new array.
    """
    levels = np.arange(256) * contrast + (1.0 - contrast) * float(image.mean())
    table = np.clip(np.rint(levels * brightness), 0, 255).astype(np.uint8)
    return cv2.LUT(image, table)
