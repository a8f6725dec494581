"""The answer to one question about one image: thresholds, masks and drawings when asked for."""

import os
import sys
from dataclasses import replace
from numbers import Real
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from igvg_d2.evaluation.calibration import check_threshold
from igvg_d2.io.json_stream import to_json_text
from igvg_d2.io.rle import RLE, empty_rle, to_json
from igvg_d2.modeling.mask_resize import resize_logits
from igvg_d2.modeling.postprocessing import RankedOutput, resized_masks

from . import exports
from .images import ImageLike, to_rgb
from .masks import decode_mask, encode_mask


class Region(NamedTuple):
    """One thing found: box float32 (4,) XYXY pixels, score, and its mask, if the model has any."""

    box: np.ndarray
    score: float
    rle: Optional[RLE]


class GroundingResult:
    """What a model answers to one expression about one image; ``len(result)`` targets.

    All coordinates are pixels of the original image, as a person sees it. Masks are computed when
    they are first asked for, and kept as RLEs. The model's output dict, which benchmarks score, can
    be read by its keys too: "instances", "candidates", "mask", "no_target", "no_target_score" and,
    if the model has them, "sem_seg", "attention_map" and "resized_masks"; its "mask" is not cleared
    by the no-target flag.

    Attributes:
        expression: the question.
        orig_shape: (height, width).
        path: of the image file, None for an image in memory.
    """

    def __init__(
        self,
        ranked: RankedOutput,
        expression: str,
        *,
        source: Optional[ImageLike] = None,
        frame_sizes: Sequence[int] = (),
        no_target_threshold: Optional[float] = None,
    ):
        """
        Args:
            ranked: of the model, on the host.
            expression: the question.
            source: path of the image, or the image itself in RGB (not copied), for drawings.
            frame_sizes: sides of "resized_masks", which some benchmarks compare.
            no_target_threshold: see :meth:`with_thresholds`.
        """
        self.expression = expression
        self.orig_shape: Tuple[int, int] = tuple(ranked.candidates.image_size)
        self.path = source if isinstance(source, str) else None
        self._ranked, self._source = ranked, source
        self._frame_sizes = tuple(frame_sizes)
        self._no_target_threshold = no_target_threshold
        # RLE of candidate i, and of the global mask under -1; shared where the threshold is equal.
        self._rles: Dict[int, RLE] = {}
        self._num_kept = ranked.num_kept()

    def with_thresholds(
        self,
        threshold: Optional[float] = None,
        mask_threshold: Optional[float] = None,
        no_target_threshold: Optional[float] = None,
    ) -> "GroundingResult":
        """The answer under other thresholds, without running the model; None keeps one.

        Args:
            threshold: targets are kept from this score on, in [0, 1].
            mask_threshold: pixels belong to a mask from this probability on, in [0, 1].
            no_target_threshold: in (0, 1]; from this ``no_target_score`` on the answer is "no
                target", below it is not, whatever the scores of targets: what
                ``tools/calibrate.py`` fits. Never set, the model decides: there is no target when
                none is kept.
        """
        check_thresholds(threshold, mask_threshold, no_target_threshold)
        ranked = self._ranked.with_thresholds(threshold, mask_threshold)
        if no_target_threshold is None:
            no_target_threshold = self._no_target_threshold
        result = GroundingResult(
            ranked,
            self.expression,
            source=self._source,
            frame_sizes=self._frame_sizes,
            no_target_threshold=no_target_threshold,
        )
        if ranked.options.mask_thresh == self._ranked.options.mask_thresh:
            result._rles = self._rles
        return result

    def resized(self, size: Sequence[int]) -> "GroundingResult":
        """The answer about the same image in another size (height, width), to be shown there."""
        (height, width), ranked = self.orig_shape, self._ranked
        scale = torch.tensor([size[1] / width, size[0] / height])
        candidates = Instances(tuple(size), **ranked.candidates.get_fields())
        candidates.pred_boxes = Boxes(candidates.pred_boxes.tensor * scale.repeat(2))
        candidates.pred_points = candidates.pred_points * scale
        return GroundingResult(
            replace(ranked, candidates=candidates),
            self.expression,
            no_target_threshold=self._no_target_threshold,
        )

    @property
    def no_target(self) -> bool:
        """Whether nothing in the image matches; then there are no boxes and no mask."""
        if self._no_target_threshold is None:
            return self._ranked.is_no_target()
        return self.no_target_score >= self._no_target_threshold

    @property
    def no_target_score(self) -> float:
        """Probability that nothing in the image matches."""
        return float(self._ranked.no_target_score)

    def __len__(self) -> int:
        return 0 if self.no_target else self._num_kept

    @property
    def boxes(self) -> np.ndarray:
        """float32 (n, 4), XYXY pixels, best first."""
        return self._ranked.candidates.pred_boxes.tensor[: len(self)].numpy().copy()

    @property
    def scores(self) -> np.ndarray:
        """float32 (n,), probabilities in descending order."""
        return self._ranked.scores[: len(self)].numpy().copy()

    @property
    def points(self) -> np.ndarray:
        """float32 (n, 2), (x, y) pixels: where the queries of the targets started."""
        return self._ranked.candidates.pred_points[: len(self)].numpy().copy()

    @property
    def rles(self) -> List[RLE]:
        """COCO RLE of the mask of each target; empty for a model without instance masks."""
        return [] if self._ranked.mask_logits is None else self._encode(range(len(self)))

    @property
    def masks(self) -> np.ndarray:
        """bool (n, height, width), of each target."""
        return self._masks(len(self))

    @property
    def union_rle(self) -> RLE:
        """COCO RLE of :attr:`mask`."""
        if self.no_target:
            return empty_rle(self.orig_shape)
        return self._union()

    @property
    def mask(self) -> np.ndarray:
        """bool (height, width), all targets together; without a pixel if there is no target."""
        return decode_mask(self.union_rle)

    @property
    def attention_map(self) -> Optional[np.ndarray]:
        """float32 (Hi, Wi), where the model looked, in cells of its own; None if it has none."""
        attention = self._ranked.attention_map
        return None if attention is None else attention.numpy().copy()

    def regions(self) -> List[Region]:
        """What was found, one by one; of a model without instances, all of it together."""
        rles = self.rles or [None] * len(self)
        found = [Region(*parts) for parts in zip(self.boxes, self.scores.tolist(), rles)]
        if not found and mask_util.area(self.union_rle):
            x, y, width, height = mask_util.toBbox(self.union_rle)
            box = np.array([x, y, x + width, y + height], np.float32)
            found = [Region(box, 1.0 - self.no_target_score, self.union_rle)]
        return found

    def plot(
        self,
        image: Optional[ImageLike] = None,
        layers: Sequence[str] = ("masks", "boxes", "points"),
    ) -> np.ndarray:
        """The image with the answer over it, uint8 RGB (height, width, 3).

        Args:
            image: to draw on, by default the image of the question, RGB; read again from its file.
                It may have another size.
            layers: of "attention", "masks" (of each target), "mask" (all of them in one color),
                "boxes" and "points", drawn in this order. "No target" is a band across the image.
        """
        from .plotting import draw_result  # matplotlib's fonts are slow to load

        source = self._source if image is None else image
        return draw_result(self, to_rgb(source), layers)

    def show(self) -> None:
        """The overlay in a notebook, or in the image viewer of the desktop."""
        image = Image.fromarray(self.plot())
        shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
        if shell is None:
            image.show(title=self.expression)
        else:
            sys.modules["IPython"].display.display(image)

    def save(self, path: Union[str, os.PathLike]) -> str:
        """Write the overlay; the ending says the format. Returns the path.

        Raises:
            ValueError: it is the file of the image itself, or the ending is of no image format.
        """
        path = os.fspath(path)
        if self.path and os.path.exists(path) and os.path.samefile(path, self.path):
            raise ValueError(f"'{path}' is the image itself; save the answer under another name")
        kind = Image.registered_extensions().get(os.path.splitext(path)[1].lower())
        if kind not in Image.SAVE:  # some formats are only read
            raise ValueError(f"'{path}' has no ending of an image format, such as .png or .jpg")
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        # Thin colored lines need the full resolution of colors.
        is_jpeg = path.lower().endswith((".jpg", ".jpeg"))
        options = {"quality": 90, "subsampling": 0} if is_jpeg else {}
        Image.fromarray(self.plot()).save(path, **options)
        return path

    def to_dict(self) -> Dict[str, Any]:
        """The answer as JSON can hold it.

        Returns:
            dict with expression, path, height, width; and, named as in a prediction file (see
            :mod:`igvg_d2.evaluation.predictions`), no_target, no_target_score, boxes, scores,
            points, mask (COCO RLE) and, if the model has them, masks.
        """
        height, width = self.orig_shape
        has_masks = self._ranked.mask_logits is not None
        masks = {"masks": [to_json(rle) for rle in self.rles]} if has_masks else {}
        return {
            "expression": self.expression,
            "path": self.path,
            "height": height,
            "width": width,
            "no_target": self.no_target,
            "no_target_score": self.no_target_score,
            "boxes": self.boxes.tolist(),
            "scores": self.scores.tolist(),
            "points": self.points.tolist(),
            "mask": to_json(self.union_rle),
            **masks,
        }

    def to_json(self, indent: Optional[int] = None) -> str:
        """:meth:`to_dict` as text."""
        return to_json_text(self.to_dict(), indent=indent)

    to_coco = exports.to_coco
    to_label_studio = exports.to_label_studio
    to_supervision = exports.to_supervision

    def keys(self) -> List[str]:
        """Of the model's output dict, see the class."""
        ranked, keys = self._ranked, "candidates instances mask no_target no_target_score".split()
        optional = {
            "sem_seg": ranked.sem_seg is not None,
            "attention_map": ranked.attention_map is not None,
            "resized_masks": bool(self._frame_sizes),
        }
        return keys + [key for key, is_there in optional.items() if is_there]

    def __contains__(self, key: str) -> bool:
        return key in self.keys()

    def __getitem__(self, key: str) -> Any:
        if key not in self.keys():
            raise KeyError(f"{key!r}; there are {self.keys()}")
        ranked, size = self._ranked, self.orig_shape
        return {
            "candidates": lambda: self._instances(len(ranked.candidates)),
            "instances": lambda: self._instances(self._num_kept),
            "mask": lambda: torch.from_numpy(decode_mask(self._union())),
            "no_target": lambda: self.no_target,
            "no_target_score": lambda: ranked.no_target_score,
            "sem_seg": lambda: resize_logits(ranked.sem_seg, size),
            "attention_map": lambda: ranked.attention_map,
            "resized_masks": lambda: resized_masks(ranked, self._frame_sizes),
        }[key]()

    def get(self, key: str, default: Any = None) -> Any:
        """As ``dict.get``."""
        return self[key] if key in self else default

    def __repr__(self) -> str:
        found = "no target" if self.no_target else f"{len(self)} found"
        height, width = self.orig_shape
        score = f"no-target score {self.no_target_score:.2f}"
        return f"GroundingResult({self.expression!r}: {found}, {score}, {width} x {height} pixels)"

    def _masks(self, count: int) -> np.ndarray:
        """bool (count, height, width) of the first candidates; empty ones without a mask head."""
        masks = np.zeros((count, *self.orig_shape), dtype=bool)
        if self._ranked.mask_logits is not None:
            for mask, rle in zip(masks, self._encode(range(count))):
                decode_mask(rle, out=mask)
        return masks

    def _instances(self, count: int) -> Instances:
        """The first candidates as the model's dict has them."""
        instances = self._ranked.candidates[:count]
        instances.pred_masks = torch.from_numpy(self._masks(count))
        return instances

    def _encode(self, indices: Iterable[int]) -> List[RLE]:
        """RLEs of candidates, that of -1 of the global mask."""
        ranked, indices = self._ranked, list(indices)
        for index in indices:
            if index not in self._rles:
                logits = ranked.sem_seg[0] if index < 0 else ranked.mask_logits[index]
                self._rles[index] = encode_mask(ranked, logits, self.orig_shape)
        return [self._rles[index] for index in indices]

    def _union(self) -> RLE:
        """The union mask, not cleared by the no-target flag."""
        ranked, parts = self._ranked, []
        if not ranked.has_global_mask or ranked.options.output_mask == "merge":
            parts += range(0 if ranked.mask_logits is None else self._num_kept)
        if ranked.has_global_mask:
            parts += [-1]
        if not parts:
            return empty_rle(self.orig_shape)
        return mask_util.merge(self._encode(parts))


def check_thresholds(threshold=None, mask_threshold=None, no_target_threshold=None) -> None:
    """Refuse what is no threshold: ValueError that names it."""
    for name, value in (("threshold", threshold), ("mask_threshold", mask_threshold)):
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if value is not None and not (is_number and 0.0 <= value <= 1.0):
            raise ValueError(f"{name} must be a number from 0 to 1, got {value!r}.")
    check_threshold(no_target_threshold)
