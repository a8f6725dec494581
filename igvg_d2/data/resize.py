"""Resizes of an image with its masks and boxes to the network's input size.

A resize squashes or letterboxes, by one of three rules. "pil" filters before it samples
(Detectron2's ``ResizeTransform`` for images, area coverage for masks); "fast" does almost the same
in less time. "cv2" is the rule of the released model, which samples without filtering.
"""

import math
from typing import Optional, Sequence, Tuple, Type

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from PIL import Image

from igvg_d2.io.image import LARGE, RGBImage

# Value of a set pixel in area resizing; even, so that "at least half covered" is exact.
_FULL_COVERAGE = 254
# Original over new sides where torch's weights, of 14 bits to PIL's 22, give PIL's bytes: they are
# exact there, or their sums never near where rounding changes (proof in test_loading_speed.py).
_EXACT_SCALES = (1 / 2, 3 / 4, 1.0, 7 / 6, 3 / 2, 5 / 3, 2.0, 3.0)


class SquashResize:
    """Resizes a sample to a fixed size without keeping the aspect ratio; base of the rules.

    Args:
        image_size: network input (H, W).

    Attributes:
        large: a JPEG of more pixels than these may be decoded smaller, to :attr:`least_side`.
    """

    large = LARGE

    def __init__(self, *, image_size: Tuple[int, int]):
        if len(image_size) != 2 or min(image_size) <= 0:
            raise ValueError(f"INPUT.IMAGE_SIZE: expected positive (H, W), found {image_size}")
        self.image_size = (int(image_size[0]), int(image_size[1]))

    @property
    def least_side(self) -> Optional[int]:
        """Pixels that both sides of a decoded image need at least; None for all it has."""
        return None

    def resize_image(self, image: RGBImage) -> np.ndarray:
        """Image or uint8 (height, width, 3), original frame -> uint8 (H, W, 3), network frame."""
        raise NotImplementedError

    def resize_mask(self, mask: np.ndarray, size: Tuple[int, int]) -> np.ndarray:
        """uint8 (rows, columns) of 0 and 1 -> bool of ``size``, the wanted (rows, columns)."""
        raise NotImplementedError

    def resize_masks(self, masks: np.ndarray) -> np.ndarray:
        """All masks of a sample.

        Args:
            masks: uint8 (height, width, T) of 0 and 1, column-major as pycocotools decodes them.

        Returns:
            bool (T, H, W), network frame.
        """
        height, width = self.image_size
        resized = np.zeros((masks.shape[2], height, width), dtype=bool)
        shrinks = masks.shape[0] >= height and masks.shape[1] >= width
        # Column-major masks are contiguous when transposed: resized that way, none is copied first.
        for target, mask in zip(resized, masks.T):
            if shrinks:
                # Most of an image is not its target. Enlarging would look beyond the part's edge.
                (x, new_x), (y, new_y) = _part(mask.max(1), width), _part(mask.max(0), height)
                mask, target = mask[x, y], target[new_y, new_x]
            target[...] = self.resize_mask(mask, target.shape[::-1]).T
        return resized

    def resize_boxes(self, boxes: np.ndarray, original_size: Tuple[int, int]) -> np.ndarray:
        """Scales boxes with the image and clips them to it.

        Args:
            boxes: float (T, 4) XYXY pixels, original frame.
            original_size: (height, width).

        Returns:
            float32 (T, 4) XYXY pixels, network frame.
        """
        (height, width), (original_height, original_width) = self.image_size, original_size
        scale = [width / original_width, height / original_height] * 2
        scaled = np.minimum(np.maximum(boxes * scale, 0.0), [width, height] * 2)
        return scaled.astype(np.float32)

    def resize_numbers(self, numbers: np.ndarray) -> np.ndarray:
        """Nearest neighbours of a map of numbers, uint8 (height, width) -> uint8 (H, W)."""
        height, width = self.image_size
        return cv2.resize(numbers, (width, height), interpolation=cv2.INTER_NEAREST)

    def content_size(self, original_size: Tuple[int, int]) -> Tuple[int, int]:
        """(rows, columns) of the network input, from its top left corner, that the image fills."""
        return self.image_size

    def __repr__(self) -> str:
        return f"{type(self).__name__}(image_size={self.image_size})"


class AntialiasedResize(SquashResize):
    """Images by PIL's bilinear filter; a mask pixel is set when at least half of it is covered.

    Resized back, area masks agree better with the original than nearest ones (mean IoU on 206 COCO
    objects: 0.955 against 0.930 at 320 x 320, 0.83 against 0.71 at 80 x 80). A target too small to
    cover half of any pixel keeps every pixel it touches, because a target without a mask would be
    taught as "nothing there".
    """

    @property
    def least_side(self) -> Optional[int]:
        """See :class:`SquashResize`; the filter takes the mean of 4 pixels or more anyway.

        Of photographs of 48 million pixels, the network's input moves by 0.15 of 255 in the mean.
        """
        return 4 * max(self.image_size)

    def resize_image(self, image: RGBImage) -> np.ndarray:
        """See :meth:`SquashResize.resize_image`."""
        size = _size(image)
        if size == self.image_size:
            return np.asarray(image)
        if self._takes_torch(size):
            # A copy, because torch warns about memory that it must not write.
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
            resized = F.interpolate(pixels, self.image_size, mode="bilinear", antialias=True)
            return resized[0].permute(1, 2, 0).numpy()
        image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        return np.asarray(image.resize(self.image_size[::-1], Image.BILINEAR))

    def _takes_torch(self, size: Tuple[int, int]) -> bool:
        """Whether torch, 4 times as fast, gives the bytes that PIL does: of 640 x 480, say."""
        return all(side / new in _EXACT_SCALES for side, new in zip(size, self.image_size))

    def resize_mask(self, mask: np.ndarray, size: Tuple[int, int]) -> np.ndarray:
        """See :meth:`SquashResize.resize_mask`."""
        (rows, columns), (new_rows, new_columns) = mask.shape, size
        shrinks = rows >= new_rows and columns >= new_columns
        interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        coverage = cv2.resize(
            mask * np.uint8(_FULL_COVERAGE), (new_columns, new_rows), interpolation=interpolation
        )
        resized = coverage >= _FULL_COVERAGE // 2
        if not resized.any():
            touched_rows, touched_columns = np.nonzero(mask)
            resized[touched_rows * new_rows // rows, touched_columns * new_columns // columns] = (
                True
            )
        return resized


class FastResize(AntialiasedResize):
    """As :class:`AntialiasedResize` within 1 of 255, by torch; and a JPEG may be decoded smaller.

    It is decoded at a half to an eighth of its sides where they keep twice the network's input,
    which moves that input, of 100 photographs of COCO at 96 x 96, by 0.7 of 255 in the mean and by
    2.4 in that of the worst one.
    """

    large = 0

    @property
    def least_side(self) -> Optional[int]:
        """See :class:`SquashResize`."""
        return 2 * max(self.image_size)

    def _takes_torch(self, size: Tuple[int, int]) -> bool:
        return True


class ReleasedResize(SquashResize):
    """OpenCV bilinear without antialiasing; masks by OpenCV's nearest, index floor(i * scale).

    For parity with the released checkpoints. A small target may lose its mask (its box stays).
    """

    def resize_image(self, image: RGBImage) -> np.ndarray:
        """See :meth:`SquashResize.resize_image`."""
        pixels = np.ascontiguousarray(image)
        return cv2.resize(pixels, self.image_size[::-1], interpolation=cv2.INTER_LINEAR)

    def resize_mask(self, mask: np.ndarray, size: Tuple[int, int]) -> np.ndarray:
        """See :meth:`SquashResize.resize_mask`."""
        rows, columns = size
        return cv2.resize(mask, (columns, rows), interpolation=cv2.INTER_NEAREST) > 0

    def resize_boxes(self, boxes: np.ndarray, original_size: Tuple[int, int]) -> np.ndarray:
        """See :meth:`SquashResize.resize_boxes`; the release clips to [0, width - 1] first."""
        height, width = original_size
        clipped = np.minimum(np.maximum(boxes, 0.0), [width - 1, height - 1] * 2)
        return super().resize_boxes(clipped, original_size)


class LetterboxResize(SquashResize):
    """Keeps the aspect ratio: the image fills the input from the top left, the rest is padding.

    Padding has the colour of the mean, which is 0 after normalisation, and is never part of a mask.

    Args:
        image_size: network input (H, W).
        rule: resizes the image to the part it fills.
        fill: colour of the padding, in the order of the image's channels.
    """

    def __init__(
        self,
        *,
        image_size: Tuple[int, int],
        rule: Type[SquashResize] = AntialiasedResize,
        fill: Sequence[float] = (0, 0, 0),
    ):
        super().__init__(image_size=image_size)
        self.rule = rule
        self.fill = np.array([round(value) for value in fill], np.uint8)

    def content_size(self, original_size: Tuple[int, int]) -> Tuple[int, int]:
        """See :meth:`SquashResize.content_size`."""
        scale = min(side / original for side, original in zip(self.image_size, original_size))
        rows, columns = (
            min(side, max(1, round(original * scale)))
            for side, original in zip(self.image_size, original_size)
        )
        return rows, columns

    def _inner(self, original_size: Tuple[int, int]) -> SquashResize:
        """The rule for the part of the input that the image fills."""
        return self.rule(image_size=self.content_size(original_size))

    def resize_image(self, image: RGBImage) -> np.ndarray:
        """See :meth:`SquashResize.resize_image`."""
        content = self._inner(_size(image)).resize_image(image)
        padded = np.empty((*self.image_size, 3), np.uint8)
        padded[...] = self.fill
        padded[: content.shape[0], : content.shape[1]] = content
        return padded

    def resize_masks(self, masks: np.ndarray) -> np.ndarray:
        """See :meth:`SquashResize.resize_masks`."""
        content = self._inner(masks.shape[:2]).resize_masks(masks)
        (height, width), (rows, columns) = self.image_size, content.shape[1:]
        return np.pad(content, ((0, 0), (0, height - rows), (0, width - columns)))

    def resize_boxes(self, boxes: np.ndarray, original_size: Tuple[int, int]) -> np.ndarray:
        """See :meth:`SquashResize.resize_boxes`; clips to the image, not to the padding."""
        return self._inner(original_size).resize_boxes(boxes, original_size)

    def resize_numbers(self, numbers: np.ndarray) -> np.ndarray:
        """See :meth:`SquashResize.resize_numbers`; padding is background, 0."""
        content = self._inner(numbers.shape[:2]).resize_numbers(numbers)
        (height, width), (rows, columns) = self.image_size, content.shape
        return np.pad(content, ((0, height - rows), (0, width - columns)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(image_size={self.image_size}, rule={self.rule.__name__})"


def _size(image: RGBImage) -> Tuple[int, int]:
    """(height, width)."""
    return image.shape[:2] if isinstance(image, np.ndarray) else (image.height, image.width)


def _part(line: np.ndarray, target: int) -> Tuple[slice, slice]:
    """The part of a line that is not 0, before and after a resize to ``target`` pixels.

    Where float64 holds the scale, as 3 / 2, a part that begins and ends with a period of it comes
    out to the bit as it does among others; elsewhere the part is everything.
    """
    source, found = len(line), np.flatnonzero(line)
    periods = math.gcd(source, target)
    period, new_period = source // periods, target // periods
    is_exact = (1.0 / (target / source)).as_integer_ratio() == (period, new_period)
    if not is_exact or not len(found):
        return slice(0, source), slice(0, target)
    first, last = int(found[0]) // period, int(found[-1]) // period + 1
    return slice(first * period, last * period), slice(first * new_period, last * new_period)


_RESIZE_RULES = {"pil": AntialiasedResize, "fast": FastResize, "cv2": ReleasedResize}


def build_resize(cfg: CfgNode) -> SquashResize:
    """Builds the rule ``INPUT.RESIZE`` in ``INPUT.RESIZE_MODE`` for ``INPUT.IMAGE_SIZE``."""
    name, mode = cfg.INPUT.RESIZE, cfg.INPUT.RESIZE_MODE
    if name not in _RESIZE_RULES:
        raise ValueError(f"INPUT.RESIZE: expected one of {sorted(_RESIZE_RULES)}, found {name!r}")
    rule, image_size = _RESIZE_RULES[name], cfg.INPUT.IMAGE_SIZE
    if mode == "squash":
        return rule(image_size=image_size)
    if mode == "letterbox":
        return LetterboxResize(image_size=image_size, rule=rule, fill=cfg.MODEL.PIXEL_MEAN)
    raise ValueError(f"INPUT.RESIZE_MODE: expected 'squash' or 'letterbox', found {mode!r}")
