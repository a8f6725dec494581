"""Ground truth and predicted masks in the frame of a protocol, and pixels counted there.

How a target gets to the 480 x 480 or 320 x 320 frame changes numbers, so each way is the one of
the code it stands for (the fixtures of the tests agree pixel by pixel):

* "polygons" (official GRES, ReLA): polygons are scaled in floating point and rasterised there;
* "nearest" (official RES, Ref-ZOM, R-RefCOCO): rasterised at the original size, then PIL nearest;
* released: rasterised at the original size, then OpenCV nearest, which takes other pixels than PIL.

A model puts its mask of that frame, resized from logits, into `output["resized_masks"][size]`. Who
has a mask of the original size only gets it resized by PIL nearest, as in the fixtures. That is not
how most targets come to the frame, so the evaluators also compute what a perfect mask of the
original size reaches there, the ceiling of such a score.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Dict, List, Optional, Sequence, Tuple

import cv2
import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.structures import BoxMode
from PIL import Image

from igvg_d2.io.rle import FARTHEST, RLE, empty_rle, to_rle

from .metrics import Mask, check_boxes, mask_size
from .protocols import Protocol

_Annotation = Dict[str, Any]


@dataclass(frozen=True)
class GroundTruth:
    """Annotations of one sample, in the original image frame; masks are decoded when asked for.

    Attributes:
        sample: the data set dict (see the readers in `igvg_d2/data/datasets`).
        boxes: float64 (T, 4) XYXY pixels, as annotated (not clipped).
    """

    sample: Dict[str, Any]
    boxes: np.ndarray

    @property
    def num_targets(self) -> int:
        """T, the number of annotated instances; 0 means no target."""
        return len(self.boxes)

    @property
    def size(self) -> Tuple[int, int]:
        """(height, width) of the image."""
        return self.sample["height"], self.sample["width"]

    @property
    def has_masks(self) -> bool:
        """Whether every target has a mask; without, there are no `rles` and no `union`."""
        return all("segmentation" in annotation for annotation in self.sample["annotations"])

    @property
    def rles(self) -> List[RLE]:
        """T compressed RLEs, in the order of the annotations."""
        return [annotation["segmentation"] for annotation in self.sample["annotations"]]

    @cached_property
    def union_rle(self) -> RLE:
        """OR over the targets; empty without a target."""
        return _union(self.rles, self.size)

    @cached_property
    def union(self) -> np.ndarray:
        """`union_rle` as bool (height, width)."""
        return decode_rle(self.union_rle)

    @classmethod
    def from_sample(cls, sample: Dict[str, Any]) -> "GroundTruth":
        """Check the annotations of a data set dict, whose reader may be a user's own.

        Raises:
            ValueError: names the sample, and what is wrong with a box or a segmentation.
        """
        annotations = sample["annotations"]
        boxes = np.zeros((len(annotations), 4))
        for mode in {a["bbox_mode"] for a in annotations}:
            rows = [i for i, a in enumerate(annotations) if a["bbox_mode"] == mode]
            # As an array: BoxMode.convert takes a list through float32, which moves x + w.
            found = np.array([annotations[i]["bbox"] for i in rows], dtype=np.float64)
            boxes[rows] = BoxMode.convert(found, mode, BoxMode.XYXY_ABS)
        size = (sample["height"], sample["width"])
        try:
            check_boxes(boxes, FARTHEST)
            annotations = [dict(a) for a in annotations]
            for annotation in annotations:
                if "segmentation" in annotation:
                    annotation["segmentation"] = to_rle(annotation["segmentation"], *size)
        except ValueError as error:
            raise ValueError(f"ground truth of sample '{sample['sample_id']}': {error}") from error
        return cls({**sample, "annotations": annotations}, boxes)


def decode_rle(rle: Dict[str, Any]) -> np.ndarray:
    """bool (height, width), column-major as RLEs are: copies to row-major would cost the most."""
    return mask_util.decode(rle).view(bool)


def target_mask(
    target: GroundTruth, protocol: Protocol, official: str = "nearest", single_cover: bool = False
) -> Mask:
    """The ground-truth mask in the frame of a protocol, RLE of the image or bool (size, size).

    Args:
        target: ground truth.
        protocol: rules and frame.
        official: "polygons" or "nearest", see the module; for official rules only.
        single_cover: keep only pixels covered by exactly one polygon part, as the loaders of LAVT
            and RefSegformer do with objects whose parts overlap.
    """
    is_official = protocol.rules == "official"
    if is_official and official == "polygons":
        return _scaled_polygons(target, protocol)
    if is_official and single_cover:
        return _resize(_single_cover(target), protocol)
    return target.union_rle if protocol.size is None else _resize(target.union, protocol)


def predicted_mask(
    mask: Mask, resized: Dict[int, np.ndarray], target: GroundTruth, protocol: Protocol
) -> Mask:
    """The predicted mask in the frame of a protocol.

    Args:
        mask: bool or RLE, of the original size, or of the protocol's frame if it cannot be both.
        resized: frame size -> bool (size, size), where the model made them.
        target: ground truth, for the original size.
        protocol: rules and frame.

    Raises:
        ValueError: the mask is neither of the original size nor of the frame's.
    """
    size, frame, found = protocol.size, (protocol.size, protocol.size), mask_size(mask)
    if size is None or (found != frame and size not in resized):
        if found != target.size:
            raise ValueError(
                f"the mask has size {found}; protocol '{protocol.name}' needs the original "
                f"size {target.size}" + ("" if size is None else f" or {frame}")
            )
        if size is None:
            return mask
        return _nearest(decode_rle(mask) if isinstance(mask, dict) else mask, size)
    chosen = resized.get(size, mask)
    if mask_size(chosen) != frame:
        raise ValueError(f"the mask for {protocol.resolution} has size {mask_size(chosen)}")
    return chosen


def undefined_official(sample: Dict[str, Any]) -> Optional[str]:
    """Why the official GRES code could not evaluate a sample, or None.

    It drops crowds and stops if nothing is left, and it cannot scale a target stored as RLE.
    """
    annotations = sample["annotations"]
    kept = [a for a in annotations if not a.get("iscrowd")]
    if annotations and not kept:
        return "all targets are crowds"
    if any("polygons" not in a for a in kept):
        return "a target has no polygon"
    return None


def _scaled_polygons(target: GroundTruth, protocol: Protocol) -> Mask:
    """ReLA's mask: crowds dropped, polygons scaled to the frame, parts joined by OR.

    Where its code stops (see `undefined_official`) crowds stay in if there is nothing else, and
    masks without polygons are resized by PIL nearest.
    """
    annotations = target.sample["annotations"]
    kept = [a for a in annotations if not a.get("iscrowd")] or annotations
    if protocol.size is None:
        return _union([a["segmentation"] for a in kept], target.size)
    height, width = target.size
    scale = np.array([protocol.size / width, protocol.size / height])
    rles = []
    mask = np.zeros((protocol.size, protocol.size), bool)
    for annotation in kept:
        if "polygons" not in annotation:
            mask |= _nearest(decode_rle(annotation["segmentation"]), protocol.size)
            continue
        polygons = [
            (np.asarray(part, np.float64).reshape(-1, 2) * scale).reshape(-1).tolist()
            for part in annotation["polygons"]
        ]
        rles += mask_util.frPyObjects(polygons, protocol.size, protocol.size)
    return mask | decode_rle(mask_util.merge(rles)) if rles else mask


def _single_cover(target: GroundTruth) -> np.ndarray:
    """Pixels covered by exactly one polygon part of the targets; RLEs count as one part."""
    covers = np.zeros(target.size, np.int32)
    for annotation in target.sample["annotations"]:
        rles = [annotation["segmentation"]]
        if len(annotation.get("polygons", ())) > 1:
            polygons = [np.asarray(part).tolist() for part in annotation["polygons"]]
            rles = mask_util.frPyObjects(polygons, *target.size)
        for rle in rles:
            covers += decode_rle(rle)
    return covers == 1


def _union(rles: Sequence[RLE], size: Tuple[int, int]) -> RLE:
    """OR of masks of (height, width)."""
    return mask_util.merge(list(rles)) if rles else empty_rle(size)


def _resize(mask: np.ndarray, protocol: Protocol) -> np.ndarray:
    """A ground-truth mask of the original size in the protocol's frame, by its kind of nearest."""
    if protocol.size is None:
        return mask
    return _nearest(mask, protocol.size, opencv=protocol.rules != "official")


def _nearest(mask: np.ndarray, size: int, opencv: bool = False) -> np.ndarray:
    """bool (size, size) by PIL's nearest or OpenCV's, which nothing else reproduces exactly."""
    # A square treats both axes alike: the pixels can stay in their order.
    transposed = mask.flags.f_contiguous
    pixels = np.ascontiguousarray(mask.T if transposed else mask).view(np.uint8)
    if opencv:
        resized = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_NEAREST)
    else:
        resized = np.asarray(Image.fromarray(pixels).resize((size, size), Image.NEAREST))
    return resized.view(bool).T if transposed else resized.view(bool)


def to_numpy(value: Any) -> np.ndarray:
    """A tensor from any device, or anything array-like, as numpy without copy where possible."""
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def to_mask(value: Any) -> Mask:
    """An RLE as it is; anything array-like as bool numpy."""
    return value if isinstance(value, dict) else to_numpy(value).astype(bool, copy=False)


def output_field(output: Dict[str, Any], key: str, sample: Dict[str, Any]) -> Any:
    """`output[key]`, or an error that names the sample and what the model returned instead."""
    if key not in output:
        raise KeyError(
            f"sample '{sample['sample_id']}': the model output needs '{key}', got {sorted(output)}"
        )
    return output[key]
