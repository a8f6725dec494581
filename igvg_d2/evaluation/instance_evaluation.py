"""Instance-level metrics: class-agnostic mask and box AP (COCO rules) and CoverAcc (paper Eq. 3).

Every sample is one "image" of one category: the candidates of an expression compete with its own
targets only, and every candidate of a no-target expression is a false positive. Overlaps with the
ground truth are computed while the masks are at hand; what is kept are a few numbers per sample,
so memory does not grow with the image size and gathering costs bytes.
"""

import contextlib
import io
from collections import defaultdict
from typing import Any, Dict, List, Sequence

import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures import Instances
from pycocotools.cocoeval import COCOeval

from .grounding_evaluation import GroundTruth, Record, to_numpy
from .metrics import cover_accuracy, num_covered_boxes

# Candidates per sample that take part in AP, COCO's own limit.
MAX_CANDIDATES = 100


def make_instance_record(
    target: GroundTruth, candidates: Instances, *, min_score: float = 0.05
) -> Record:
    """Scores and overlaps of the candidates of one sample.

    Args:
        target: ground truth.
        candidates: `scores` (Q,), `pred_boxes` Boxes XYXY pixels, and optionally `pred_masks` bool
            (Q, height, width) and `pred_points` float (Q, 2) pixels, in the original frame.
        min_score: candidates below are left out of AP to save time; they could only lengthen the
            tail of the precision-recall curve. Points of all candidates count for CoverAcc.

    Returns:
        dict with scores list (n,), descending; box_ious and mask_ious lists (n, T); num_covered,
        the number of target boxes with a point. mask_ious / num_covered are None without
        `pred_masks` / `pred_points`.
    """
    scores = to_numpy(candidates.scores).astype(np.float64)
    # Stable sort, the order COCOeval itself establishes.
    order = np.argsort(-scores, kind="mergesort")
    order = order[scores[order] >= min_score][:MAX_CANDIDATES]
    boxes = to_numpy(candidates.pred_boxes.tensor).astype(np.float64)
    mask_ious = num_covered = None
    if candidates.has("pred_masks"):
        masks = to_numpy(candidates.pred_masks).astype(bool, copy=False)
        # Views of the chosen masks; indexing with `order` would copy them all.
        mask_ious = pairwise_mask_iou([masks[i] for i in order], target.masks).tolist()
    if candidates.has("pred_points"):
        num_covered = num_covered_boxes(to_numpy(candidates.pred_points), target.boxes)
    return {
        "scores": scores[order].tolist(),
        "box_ious": pairwise_box_iou(boxes[order], target.boxes).tolist(),
        "mask_ious": mask_ious,
        "num_covered": num_covered,
    }


def pairwise_box_iou(boxes1: np.ndarray, boxes2: np.ndarray) -> np.ndarray:
    """Plain IoU of every pair in float64, as COCO computes it.

    Args:
        boxes1: float64 (N, 4) XYXY pixels.
        boxes2: float64 (M, 4) XYXY pixels.

    Returns:
        float64 (N, M).
    """
    if len(boxes1) == 0 or len(boxes2) == 0:
        return np.zeros((len(boxes1), len(boxes2)))
    xywh1, xywh2 = (np.hstack([b[:, :2], b[:, 2:] - b[:, :2]]) for b in (boxes1, boxes2))
    return mask_util.iou(xywh1, xywh2, [0] * len(boxes2))


def pairwise_mask_iou(masks1: Sequence[np.ndarray], masks2: Sequence[np.ndarray]) -> np.ndarray:
    """IoU of every pair of masks, exact integers divided once; 0 for two empty masks.

    Args:
        masks1: N masks, bool (height, width).
        masks2: M masks of the same size.

    Returns:
        float64 (N, M).
    """
    areas1, areas2 = ([np.count_nonzero(m) for m in masks] for masks in (masks1, masks2))
    ious = np.zeros((len(masks1), len(masks2)))
    for i, mask1 in enumerate(masks1):
        for j, mask2 in enumerate(masks2):
            intersection = np.count_nonzero(mask1 & mask2)
            ious[i, j] = intersection / max(areas1[i] + areas2[j] - intersection, 1)
    return ious


def summarize_instances(records: Sequence[Record]) -> Dict[str, float]:
    """Average precision and CoverAcc of records made by `make_instance_record`.

    Args:
        records: with `num_targets` beside the keys of `make_instance_record`.

    Returns:
        {"mask_AP", "mask_AP50", "mask_AP75", "box_AP", "box_AP50", "box_AP75", "CoverAcc"} in
        percent; NaN without any target, or where the candidates had no masks or points.
    """
    results = {}
    for kind in ("mask", "box"):
        precision = _average_precision(records, f"{kind}_ious")
        results.update({f"{kind}_AP{suffix}": value for suffix, value in precision.items()})
    results["CoverAcc"] = float("nan")
    if all(r["num_covered"] is not None for r in records):
        results["CoverAcc"] = cover_accuracy(
            [r["num_covered"] for r in records], [r["num_targets"] for r in records]
        )
    return results


def _average_precision(records: Sequence[Record], iou_key: str) -> Dict[str, float]:
    """{"": AP at .50:.95, "50": ..., "75": ...} in percent."""
    undefined = {"": float("nan"), "50": float("nan"), "75": float("nan")}
    if not any(r["num_targets"] for r in records) or any(r[iou_key] is None for r in records):
        return undefined
    evaluation = _RecordedOverlapEval(records, iou_key)
    # COCOeval prints its progress; the log has our own table.
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    # (IoU thresholds .50, .55 ... .95, recall steps, 1 category, 1 area range, 1 maxDets)
    precision = 100.0 * evaluation.eval["precision"][:, :, 0, 0, 0].mean(axis=1)
    return {"": float(precision.mean()), "50": float(precision[0]), "75": float(precision[5])}


class _RecordedOverlapEval(COCOeval):
    """COCOeval whose overlaps were computed earlier; matching and accumulation are its own."""

    def __init__(self, records: Sequence[Record], iou_key: str):
        """One image per record, in the given order, which settles ties between equal scores."""
        super().__init__(iouType="bbox")
        self._records = records
        self._iou_key = iou_key
        self.params.imgIds = list(range(len(records)))
        self.params.catIds = [0]
        # Sizes are not recorded and no area breakdown is reported: one range saves 3/4 of the time.
        self.params.areaRng = self.params.areaRng[:1]
        self.params.areaRngLbl = self.params.areaRngLbl[:1]
        self.params.maxDets = [MAX_CANDIDATES]

    def _prepare(self) -> None:
        """Fill the tables COCOeval reads from its ground-truth and result files."""
        self._gts, self._dts = defaultdict(list), defaultdict(list)
        self.evalImgs, self.eval = defaultdict(list), {}
        common: Dict[str, Any] = {"area": 1.0, "ignore": 0, "iscrowd": 0}
        next_id = 1  # COCOeval reads a match with id 0 as "no match".
        for image_id, record in enumerate(self._records):
            objects: List[Dict[str, Any]] = [{} for _ in range(record["num_targets"])]
            objects += [{"score": score} for score in record["scores"]]
            for item in objects:
                item.update(common, id=next_id)
                table = self._dts if "score" in item else self._gts
                table[image_id, 0].append(item)
                next_id += 1

    def computeIoU(self, imgId: int, catId: int) -> np.ndarray:
        """Overlaps float64 (n, T) of one sample; rows are already in descending score."""
        record = self._records[imgId]
        ious = np.asarray(record[self._iou_key], dtype=np.float64)
        return ious.reshape(len(record["scores"]), record["num_targets"])
