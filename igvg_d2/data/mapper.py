"""From a dataset dict (one expression) to what the model takes."""

import logging
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances

from igvg_d2.config import PROTOCOL_SIZES
from igvg_d2.io.image import RGBImage, read_reduced_image, size_mismatch
from igvg_d2.io.rle import empty_rle, to_rle

from .bad_samples import (
    BadSampleError,
    ImageSizeError,
    MissingImageError,
    check_targets,
    describe_sample,
)
from .directions import is_flippable, swap_direction_words
from .resize import SquashResize, build_resize
from .tokenizer import build_tokenizer, tokenize
from .transforms import GeometricTransform, jitter_color

logger = logging.getLogger(__name__)

_IMAGE_FORMATS = ("RGB", "BGR")


class GroundingDatasetMapper:
    """Reads the image, transforms image and targets, and tokenizes the expression.

    Input: a dataset dict as the readers in :mod:`igvg_d2.data.datasets` make it; not modified. The
    training loader adds ``rng``, the generator of this visit's augmentation; without it one is
    seeded from numpy's global random numbers.

    Output: a dict with the input's keys except ``annotations`` and ``rng``, and

    * what :func:`model_input` returns;
    * ``instances`` (training only): Instances((H, W)) with ``gt_boxes`` Boxes (T, 4) XYXY pixels,
      ``gt_classes`` int64 zeros (T,), ``gt_masks`` BitMasks (T, H, W) and ``gt_has_mask`` bool
      (T,), False where a target has a box only and its mask is empty; all there also when T = 0;
    * ``frame_sizes`` (inference only), see below;
    * what a subclass adds in :meth:`add_targets`.

    Crops are refused: a crop can turn a target into a no-target.

    Args:
        is_train: augment, and return ``instances``.
        tokenizer: maps an expression to its list of token ids.
        image_format: "RGB" or "BGR".
        resize: rule that brings images, masks and boxes to the network's input size.
        horizontal_flip_prob, vertical_flip_prob: in training, probability of a flip with left/right
            (top/bottom) words exchanged; see :func:`swap_direction_words` for what it cannot know.
        color_jitter: c; in training, brightness and contrast are scaled by factors from
            [1 - c, 1 + c].
        frame_sizes: in inference, sides in pixels of the square frames in which the model makes the
            union mask too, for evaluation protocols that compare masks there.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        tokenizer: Callable[[str], List[int]],
        image_format: str,
        resize: SquashResize,
        horizontal_flip_prob: float = 0.0,
        vertical_flip_prob: float = 0.0,
        color_jitter: float = 0.0,
        frame_sizes: Sequence[int] = (),
    ):
        if image_format not in _IMAGE_FORMATS:
            raise ValueError(
                f"INPUT.FORMAT: expected one of {_IMAGE_FORMATS}, got {image_format!r}"
            )
        for name, value in (
            ("FLIP.HORIZONTAL_PROB", horizontal_flip_prob),
            ("FLIP.VERTICAL_PROB", vertical_flip_prob),
            ("COLOR_JITTER", color_jitter),
        ):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"INPUT.{name}: expected a number from 0 to 1, found {value}")
        self.is_train = is_train
        self.tokenizer = tokenizer
        self.image_format = image_format
        self.resize = resize
        self.flip_probs = {"horizontal": horizontal_flip_prob, "vertical": vertical_flip_prob}
        self.color_jitter = color_jitter
        self.frame_sizes = tuple(frame_sizes)
        augmentations = (
            f", flips {self.flip_probs}, color jitter {color_jitter}" if is_train else ""
        )
        mode = "training" if is_train else "inference"
        logger.info("Augmentations used in %s: %r%s", mode, resize, augmentations)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> Dict[str, Any]:
        """Arguments from ``cfg.INPUT``, and the frames of ``cfg.TEST.PROTOCOLS``."""
        if cfg.INPUT.CROP.ENABLED:
            raise ValueError(
                "INPUT.CROP.ENABLED: expected False, found True; a crop can cut a target away and "
                "turn its expression into a no-target one"
            )
        protocols = () if is_train else cfg.TEST.PROTOCOLS
        return {
            "is_train": is_train,
            "tokenizer": build_tokenizer(cfg),
            "image_format": cfg.INPUT.FORMAT,
            "resize": build_resize(cfg),
            "horizontal_flip_prob": cfg.INPUT.FLIP.HORIZONTAL_PROB,
            "vertical_flip_prob": cfg.INPUT.FLIP.VERTICAL_PROB,
            "color_jitter": cfg.INPUT.COLOR_JITTER,
            # An unknown protocol is for the evaluator to refuse.
            "frame_sizes": sorted({PROTOCOL_SIZES.get(name) or 0 for name in protocols} - {0}),
        }

    def __call__(self, dataset_dict: Dict[str, Any]) -> Dict[str, Any]:
        """Maps one sample; see the class for keys, shapes and frames."""
        # A shallow copy is enough: nothing below writes into a value of the input.
        sample = dict(dataset_dict)
        annotations = sample.pop("annotations", [])
        rng = sample.pop("rng", None)
        if rng is None:
            rng = np.random.default_rng(np.random.randint(2**32, dtype=np.uint64))
        image = self._read_sample(sample)
        flips = self._draw_flips(sample, rng) if self.is_train else []
        transform = GeometricTransform(self.resize, (sample["height"], sample["width"]), flips)
        image = transform.apply_image(image)
        if self.is_train:
            if self.color_jitter > 0.0:
                low, high = 1.0 - self.color_jitter, 1.0 + self.color_jitter
                image = jitter_color(image, *rng.uniform(low, high, size=2))
            sample["instances"] = _read_targets(annotations, sample, transform)
            self.add_targets(sample, transform)
        else:
            _read_annotations(annotations, sample)
            sample["frame_sizes"] = self.frame_sizes
        try:
            text_ids = tokenize(self.tokenizer, sample["expression"])
        except ValueError as error:
            raise BadSampleError(f"expression of {describe_sample(sample)}: {error}") from error
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        size, content_size = transform.original_size, transform.content_size
        sample.update(model_input(pixels, text_ids, sample["expression"], size, content_size))
        return sample

    def read_image(self, path: str) -> Tuple[RGBImage, Tuple[int, int]]:
        """Image of a file in the order of ``INPUT.FORMAT``, and (height, width), original frame.

        A JPEG may be decoded smaller where the resize filters, see ``SquashResize.least_side`` and
        :func:`igvg_d2.io.image.read_reduced_image`.

        Returns:
            what a resize takes: a ``PIL.Image`` of mode "RGB", or uint8 (rows, columns, 3); and the
            size.
        """
        image, size = read_reduced_image(path, self.resize.least_side, self.resize.large)
        if self.image_format == "BGR":
            image = np.asarray(image)[:, :, ::-1]
        return image, size

    def add_targets(self, sample: Dict[str, Any], transform: GeometricTransform) -> None:
        """For subclasses: in training, adds entries of their own to a sample.

        For instance ``sample["labels"] = transform.apply_segmentation(sample.pop("label_map"))``,
        with the map under "label_map" in the dataset dict, gives a map that fits the image the
        model sees, whatever the resize and the flips.

        Args:
            sample: keys of the dataset dict but ``annotations``, the expression after flips, and
                ``instances``; to be changed in place. Must be picklable.
            transform: of this visit, from the original to the network frame.
        """

    def _read_sample(self, sample: Dict[str, Any]) -> RGBImage:
        """The image, after EXIF rotation; it has the size that the sample states."""
        try:
            image, size = self.read_image(sample["file_name"])
        except FileNotFoundError as error:
            raise MissingImageError(
                f"no image file for {describe_sample(sample)}: {error}; see datasets/README.md for "
                "where images belong"
            ) from error
        except ValueError as error:
            raise BadSampleError(f"image of {describe_sample(sample)}: {error}") from error
        expected = (sample.setdefault("height", size[0]), sample.setdefault("width", size[1]))
        if size != expected:
            raise ImageSizeError(
                f"image of {describe_sample(sample)}: "
                f"{size_mismatch(sample['file_name'], size, expected)}; image folder and "
                "annotation file do not belong together"
            )
        return image

    def _draw_flips(self, sample: Dict[str, Any], rng: np.random.Generator) -> List[str]:
        """Random axes to flip along; exchanges the direction words of ``sample["expression"]``."""
        flips = []
        for axis, probability in self.flip_probs.items():
            # Nothing is drawn for what is off, so that one option does not shift another's draws.
            if probability == 0.0 or rng.uniform() >= probability:
                continue
            if is_flippable(sample["expression"], axis):
                sample["expression"] = swap_direction_words(sample["expression"], axis)
                flips.append(axis)
        return flips


def model_input(
    image: torch.Tensor,
    text_ids: Sequence[int],
    expression: str,
    size: Tuple[int, int],
    content_size: Tuple[int, int],
) -> Dict[str, Any]:
    """What the model takes for one expression; the one place that says so.

    Args:
        image: uint8 (3, H, W), network frame, channels in ``cfg.INPUT.FORMAT``.
        text_ids: token ids, begin and end included; as many as this expression needs.
        expression: the text that was tokenized, after a flip with its direction words exchanged.
        size: (height, width) of the original image.
        content_size: (rows, columns) of ``image`` that the original fills, (H, W) unless it is
            letterboxed; flips in training may move the padding to another side.

    Returns:
        dict with ``image``, ``expression``, ``content_size`` as above, ``height`` and ``width``,
        ``text_ids`` int64 (L,), ``text_padding_mask`` bool (L,), all False (the model pads to the
        longest text of the batch).
    """
    return {
        "image": image,
        "height": size[0],
        "width": size[1],
        "content_size": content_size,
        "text_ids": torch.as_tensor(text_ids, dtype=torch.int64),
        "text_padding_mask": torch.zeros(len(text_ids), dtype=torch.bool),
        "expression": expression,
    }


def _read_annotations(
    annotations: List[Dict[str, Any]], sample: Dict[str, Any]
) -> Tuple[np.ndarray, List[Optional[Dict[str, Any]]]]:
    """Boxes float64 (T, 4) XYXY, original frame, and masks or None; checked, also to evaluate."""
    if not annotations:
        return np.zeros((0, 4)), []
    size = sample["height"], sample["width"]
    try:
        rles = [
            to_rle(a["segmentation"], *size) if "segmentation" in a else None for a in annotations
        ]
    except ValueError as error:
        raise BadSampleError(f"segmentation of {describe_sample(sample)}: {error!r}") from error
    boxes = _read_boxes(annotations, sample)
    check_targets(boxes, rles, sample)
    return boxes, rles


def _read_targets(
    annotations: List[Dict[str, Any]], sample: Dict[str, Any], transform: GeometricTransform
) -> Instances:
    """Targets in the network frame; all fields are set also for no target."""
    boxes, rles = _read_annotations(annotations, sample)
    empty = np.zeros((*transform.original_size, 0), np.uint8)
    found = [empty_rle(transform.original_size) if rle is None else rle for rle in rles]
    masks = mask_util.decode(found) if found else empty
    instances = Instances(transform.resize.image_size)
    instances.gt_boxes = Boxes(torch.from_numpy(transform.apply_box(boxes)))
    instances.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
    masks = np.ascontiguousarray(transform.apply_masks(masks))
    instances.gt_masks = BitMasks(torch.from_numpy(masks))
    instances.gt_has_mask = torch.tensor([rle is not None for rle in rles], dtype=torch.bool)
    return instances


def _read_boxes(annotations: List[Dict[str, Any]], sample: Dict[str, Any]) -> np.ndarray:
    """Boxes float64 (T, 4) XYXY, original frame."""
    modes = {a["bbox_mode"] for a in annotations}
    if len(modes) > 1:
        raise ValueError(
            f"bbox_mode of {describe_sample(sample)}: expected one for all, found {modes}"
        )
    boxes = np.array([a["bbox"] for a in annotations], dtype=np.float64)
    if modes == {BoxMode.XYWH_ABS}:
        # BoxMode.convert takes 0.1 ms for this line, as long as decoding a mask.
        boxes[:, 2:] += boxes[:, :2]
        return boxes
    return BoxMode.convert(boxes, modes.pop(), BoxMode.XYXY_ABS)
