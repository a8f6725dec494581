"""What a grounding picture shows, in one form: predictions, ground truth and the verdict."""

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.structures import BoxMode, Instances

from igvg_d2.evaluation.metrics import count_pixels, gres_counts

from .drawing import resize_masks


@dataclass
class GroundingItems:
    """Boxes, masks, scores and points of one sample as numpy arrays, in one frame.

    Attributes:
        image_size: (height, width) of the frame the coordinates live in.
        boxes: float (n, 4), (x0, y0, x1, y1) pixels.
        masks: bool (n, height, width).
        scores: float (n,) or None for ground truth.
        points: float (n, 2), (x, y) pixels, or None for ground truth.
    """

    image_size: Tuple[int, int]
    boxes: np.ndarray
    masks: np.ndarray
    scores: Optional[np.ndarray] = None
    points: Optional[np.ndarray] = None

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def union(self) -> np.ndarray:
        """bool (height, width): pixels of any of the masks."""
        return self.masks.any(axis=0) if len(self) else np.zeros(self.image_size, dtype=bool)

    def scaled(self, size: Tuple[int, int]) -> "GroundingItems":
        """The same items in a frame of ``size`` = (height, width), e.g. that of a panel."""
        factor_y, factor_x = size[0] / self.image_size[0], size[1] / self.image_size[1]
        points = None if self.points is None else self.points * [factor_x, factor_y]
        boxes = self.boxes * [factor_x, factor_y, factor_x, factor_y]
        return GroundingItems(size, boxes, resize_masks(self.masks, size), self.scores, points)


def to_array(value: Any) -> np.ndarray:
    """numpy copy of a tensor on any device (bfloat16 becomes float32) or of an array."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.is_floating_point() else value).numpy()
    return np.asarray(value)


def items_from_predictions(instances: Instances) -> GroundingItems:
    """Items of predicted ``Instances`` (pred_boxes, scores, pred_masks, pred_points)."""
    height, width = instances.image_size
    return GroundingItems(
        image_size=(height, width),
        boxes=to_array(instances.pred_boxes.tensor).reshape(-1, 4),
        masks=to_array(instances.pred_masks).astype(bool).reshape(-1, height, width),
        scores=to_array(instances.scores).reshape(-1),
        points=to_array(instances.pred_points).reshape(-1, 2),
    )


def items_from_targets(instances: Instances) -> GroundingItems:
    """Items of ground-truth ``Instances`` of the mapper (gt_boxes, gt_masks as BitMasks)."""
    height, width = instances.image_size
    return GroundingItems(
        image_size=(height, width),
        boxes=to_array(instances.gt_boxes.tensor).reshape(-1, 4),
        masks=to_array(instances.gt_masks.tensor).astype(bool).reshape(-1, height, width),
    )


def items_from_annotations(
    annotations: Sequence[Dict[str, Any]], height: int, width: int
) -> GroundingItems:
    """Items of a dataset dict's annotations; segmentation may be RLE or COCO polygons."""
    boxes: List[List[float]] = []
    masks = np.zeros((len(annotations), height, width), dtype=bool)
    for mask, annotation in zip(masks, annotations):
        mode = annotation["bbox_mode"]
        boxes.append(BoxMode.convert(list(annotation["bbox"]), mode, BoxMode.XYXY_ABS))
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, list):
            segmentation = mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
        mask[:] = mask_util.decode(segmentation)
    return GroundingItems((height, width), np.array(boxes, float).reshape(-1, 4), masks)


@dataclass
class Verdict:
    """Judgement of one prediction: ``correct``, the IoU of the merged mask, and a short text.

    The rules are those of GRES: a no-target sample has IoU 1 when the model says "no target" and 0
    otherwise; a sample with targets has IoU 0 when the model says "no target".
    """

    correct: bool
    iou: float
    text: str


def judge_prediction(
    mask: np.ndarray,
    no_target: bool,
    num_kept: int,
    truth: GroundingItems,
    iou_threshold: float = 0.5,
) -> Verdict:
    """Compare a merged mask with the ground truth of its sample.

    Args:
        mask: bool (height, width) merged mask in the frame of ``truth``.
        no_target: whether the model says that nothing is meant.
        num_kept: number of instances the model keeps.
        truth: ground truth; no items mean no target.
        iou_threshold: least IoU of the merged mask that counts as correct.
    """
    intersection, union, _, _ = count_pixels(mask, truth.union)
    _, _, ious = gres_counts([intersection], [union], [len(truth) == 0], [no_target])
    correct = bool(ious[0] >= iou_threshold)
    if len(truth) == 0:
        text = "no target" if no_target else "target invented"
    elif no_target:
        text = "target missed"
    else:
        text = f"IoU {ious[0]:.2f}"
        if num_kept != len(truth):
            text += f", {num_kept} {'of' if num_kept < len(truth) else 'for'} {len(truth)}"
    return Verdict(correct, float(ious[0]), f"{'✓' if correct else '✗'} {text}")
