"""The grounding metrics as pure functions of integers, flags, masks and boxes.

Conventions shared by all functions:

* Results are in percent. A rate without a single case is NaN, never 0 and never an exception. The
  official scripts raise ``ZeroDivisionError`` there or print 0.
* Thresholds are inclusive (``>=``): an IoU of exactly 0.7 counts for Pr@0.7.
* "gIoU" of the GRES benchmark is a mean of mask IoUs, the generalized IoU of two boxes is the
  overlap of the GREC benchmark (`generalized_iou_scores`).
"""

from typing import Dict, List, Sequence, Tuple, Union

import numpy as np
import pycocotools.mask as mask_util

from igvg_d2.io.rle import RLE

Mask = Union[np.ndarray, RLE]

CARDINALITIES = ("0", "1", "2", "3plus")
PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
# What expressions without target lack, see `igvg_d2.data.datasets.absent_kinds`.
ABSENT_KINDS = ("absent", "lookalike", "unnamed")


def percent(numerator: float, denominator: float) -> float:
    """Ratio in percent; NaN when the denominator is 0 (the rate is undefined)."""
    return 100.0 * float(numerator) / float(denominator) if denominator else float("nan")


def mean_percent(values: Sequence[float]) -> float:
    """Mean of `values` in percent; NaN for an empty sequence."""
    values = np.asarray(values, dtype=np.float64)
    return percent(values.sum(), values.size)


def count_pixels(pred_mask: Mask, gt_mask: Mask) -> List[int]:
    """[intersection, union, predicted pixels, target pixels] of two masks.

    Args:
        pred_mask, gt_mask: bool (height, width) or compressed RLE, same frame. Of two RLEs nothing
            is decoded, of one the box around its pixels.
    """
    pred_size, gt_size = mask_size(pred_mask), mask_size(gt_mask)
    if pred_size != gt_size:
        raise ValueError(
            f"masks must have one shape: predicted {pred_size}, ground truth {gt_size}"
        )
    if isinstance(pred_mask, dict) and isinstance(gt_mask, dict):
        intersection = int(mask_util.area(mask_util.merge([pred_mask, gt_mask], intersect=True)))
    elif isinstance(pred_mask, dict):
        intersection = count_pixels(gt_mask, pred_mask)[0]
    elif isinstance(gt_mask, dict):
        window, part = decode_window(gt_mask)
        intersection = int(np.count_nonzero(pred_mask[window] & part))
    else:
        intersection = int(np.count_nonzero(pred_mask & gt_mask))
    pred_area, gt_area = mask_area(pred_mask), mask_area(gt_mask)
    return [intersection, pred_area + gt_area - intersection, pred_area, gt_area]


def mask_size(mask: Mask) -> Tuple[int, ...]:
    """(height, width)."""
    return tuple(mask["size"]) if isinstance(mask, dict) else mask.shape


def mask_area(mask: Mask) -> int:
    """Pixels that are set."""
    return int(mask_util.area(mask) if isinstance(mask, dict) else np.count_nonzero(mask))


def decode_window(rle: RLE) -> Tuple[Tuple[slice, slice], np.ndarray]:
    """Rows and columns of the box around the pixels of an RLE, and bool of that size, row-major."""
    x, y, width, height = mask_util.toBbox(rle).astype(int).tolist()
    window = slice(y, y + height), slice(x, x + width)
    return window, np.ascontiguousarray(mask_util.decode(rle).view(bool)[window])


def iou_ratio(intersections: Sequence[int], unions: Sequence[int]) -> np.ndarray:
    """Element-wise I / U as float64 (N,); 0 where U is 0.

    Both ReLA and LAVT count a target without any pixel that is answered by an empty mask as a miss;
    "1 for two empty masks" is a different convention (LISA) and changes gIoU.
    """
    intersections = np.asarray(intersections, dtype=np.float64)
    unions = np.asarray(unions, dtype=np.float64)
    return np.divide(intersections, unions, out=np.zeros_like(unions), where=unions > 0)


def overall_iou(intersections: Sequence[int], unions: Sequence[int]) -> float:
    """cIoU / oIoU: sum of intersections over sum of unions; NaN when there is no pixel at all."""
    return percent(
        np.asarray(intersections, dtype=np.int64).sum(), np.asarray(unions, dtype=np.int64).sum()
    )


def gres_counts(
    intersections: Sequence[int],
    unions: Sequence[int],
    is_no_target: Sequence[bool],
    pred_no_target: Sequence[bool],
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Apply the no-target rules of the GRES benchmark (ReLA's evaluator) to raw pixel counts.

    ============  =======  ===========  ============  =======================
    ground truth  flagged  I            U             IoU
    ============  =======  ===========  ============  =======================
    no target     yes      0            0             1, whatever the mask
    no target     no       0            pixels of P   0, even when P is empty
    target        yes      0            ``|P or G|``  0
    target        no       ``|P & G|``  ``|P or G|``  I / U
    ============  =======  ===========  ============  =======================

    Args:
        intersections, unions: int (N,) of the predicted mask P (never cleared by the flag) and the
            union G of all targets.
        is_no_target: bool (N,), ground truth.
        pred_no_target: bool (N,), the model's flag.

    Returns:
        I int64 (N,), U int64 (N,), IoU float64 (N,).
    """
    is_no_target = np.asarray(is_no_target, dtype=bool)
    pred_no_target = np.asarray(pred_no_target, dtype=bool)
    counted = ~is_no_target & ~pred_no_target
    rejected = is_no_target & pred_no_target
    intersections = np.where(counted, np.asarray(intersections, dtype=np.int64), 0)
    unions = np.where(rejected, 0, np.asarray(unions, dtype=np.int64))
    ious = np.where(rejected, 1.0, iou_ratio(intersections, unions))
    return intersections, unions, ious


def no_target_accuracy(is_no_target: Sequence[bool], pred_no_target: Sequence[bool]) -> float:
    """N_acc: share of the no-target samples that are flagged, TP / (TP + FN)."""
    return mean_percent(np.asarray(pred_no_target, bool)[np.asarray(is_no_target, bool)])


def target_accuracy(is_no_target: Sequence[bool], pred_no_target: Sequence[bool]) -> float:
    """T_acc: share of the samples with a target that are not flagged, TN / (TN + FP)."""
    return mean_percent(~np.asarray(pred_no_target, bool)[~np.asarray(is_no_target, bool)])


def precision_at(ious: Sequence[float], threshold: float) -> float:
    """Pr@threshold: share of the given IoUs that reach it. Pass samples with a target only."""
    return mean_percent(np.asarray(ious, dtype=np.float64) >= threshold)


def mask_results(intersections: Sequence[int], unions: Sequence[int]) -> Dict[str, float]:
    """{mIoU, oIoU, Pr@0.5 ... Pr@0.9} of samples with a target."""
    ious = iou_ratio(intersections, unions)
    results = {"mIoU": mean_percent(ious), "oIoU": overall_iou(intersections, unions)}
    return {**results, **{f"Pr@{t}": precision_at(ious, t) for t in PRECISION_THRESHOLDS}}


def cardinality_groups(num_targets: Sequence[int]) -> Dict[str, np.ndarray]:
    """Samples with 0, 1, 2 and 3 or more ground-truth instances, {"0": bool (N,), ...}."""
    groups = np.minimum(np.asarray(num_targets, dtype=np.int64), len(CARDINALITIES) - 1)
    return {name: groups == i for i, name in enumerate(CARDINALITIES)}


def by_cardinality(values: Sequence[float], num_targets: Sequence[int]) -> Dict[str, float]:
    """Mean of values (N,) in [0, 1], in percent, by number of targets (N,); NaN for no sample."""
    values = np.asarray(values, dtype=np.float64)
    groups = cardinality_groups(num_targets)
    return {name: mean_percent(values[chosen]) for name, chosen in groups.items()}


def count_by_cardinality(num_targets: Sequence[int]) -> Dict[str, int]:
    """Number of samples by number of targets (N,)."""
    return {name: int(chosen.sum()) for name, chosen in cardinality_groups(num_targets).items()}


def check_boxes(boxes: np.ndarray, limit: float = 1e15, ordered: bool = False) -> None:
    """Refuse boxes (N, 4) of which areas overflow: NaN passes for a match in COCOeval and GREC.

    Args:
        limit: largest coordinate; areas of the default, whatever the unit, are finite in float32.
        ordered: refuse inverted boxes, too.
    """
    # Not "greater than", which NaN never is.
    bad = ~(np.abs(boxes) <= limit).all(1) | (ordered & (boxes[:, 2:] < boxes[:, :2]).any(1))
    if bad.any():
        raise ValueError(
            f"expected XYXY boxes with x1 <= x2 and y1 <= y2, numbers up to {limit:.0e}, got "
            f"{boxes[bad][0]}"
        )


def pairwise_box_iou(boxes1: np.ndarray, boxes2: np.ndarray) -> np.ndarray:
    """Plain IoU of every pair as COCO computes it, float64 (N, M).

    Args:
        boxes1: float64 (N, 4) XYXY pixels.
        boxes2: float64 (M, 4) XYXY pixels.

    Raises:
        ValueError: a coordinate is not finite, or so large that areas are not.
    """
    check_boxes(boxes1)
    check_boxes(boxes2)
    if len(boxes1) == 0 or len(boxes2) == 0:
        return np.zeros((len(boxes1), len(boxes2)))
    xywh1, xywh2 = (np.hstack([b[:, :2], b[:, 2:] - b[:, :2]]) for b in (boxes1, boxes2))
    return mask_util.iou(xywh1, xywh2, [0] * len(boxes2))


def generalized_iou_scores(boxes1: np.ndarray, boxes2: np.ndarray) -> np.ndarray:
    """Generalized IoU of every pair of boxes (Rezatofighi et al., CVPR 2019).

    Computed in float32 as in the official GREC script, so that pairs exactly at the threshold fall
    on the same side. Two boxes without area have IoU 0; a hull without area has no penalty
    (upstream both are 0 / 0).

    Args:
        boxes1: (N, 4) XYXY, any common unit, x1 <= x2 and y1 <= y2.
        boxes2: (M, 4) XYXY.

    Returns:
        float32 (N, M) in [-1, 1].

    Raises:
        ValueError: a box is inverted, not finite, or so large that areas are not.
    """
    boxes1 = np.asarray(boxes1, dtype=np.float32).reshape(-1, 4)
    boxes2 = np.asarray(boxes2, dtype=np.float32).reshape(-1, 4)
    check_boxes(boxes1, ordered=True)
    check_boxes(boxes2, ordered=True)
    area1, area2 = ((b[:, 2:] - b[:, :2]).prod(1) for b in (boxes1, boxes2))
    upper_left = np.maximum(boxes1[:, None, :2], boxes2[None, :, :2])
    lower_right = np.minimum(boxes1[:, None, 2:], boxes2[None, :, 2:])
    intersection = np.clip(lower_right - upper_left, 0, None).prod(2)
    union = area1[:, None] + area2[None] - intersection
    hull_min = np.minimum(boxes1[:, None, :2], boxes2[None, :, :2])
    hull_max = np.maximum(boxes1[:, None, 2:], boxes2[None, :, 2:])
    hull = (hull_max - hull_min).prod(2)
    iou = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
    penalty = np.divide(hull - union, hull, out=np.zeros_like(hull), where=hull > 0)
    return iou - penalty


def greedy_match_count(overlaps: np.ndarray, threshold: float) -> int:
    """True positives of the GREC rule: take the best remaining pair until it is below `threshold`.

    An optimal assignment can keep one pair more; the benchmark is defined by the greedy one.

    Args:
        overlaps: float (num_pred, num_gt).
        threshold: smallest overlap of a match, inclusive.
    """
    overlaps = np.array(overlaps, copy=True)
    matches = 0
    for _ in range(min(overlaps.shape)):
        row, column = np.unravel_index(np.argmax(overlaps), overlaps.shape)
        if not overlaps[row, column] >= threshold:  # nor NaN
            break
        matches += 1
        # Used pairs get 0, not -inf, as upstream; a threshold <= 0 would therefore never stop.
        overlaps[row, :] = 0.0
        overlaps[:, column] = 0.0
    return matches


def grec_f1(
    boxes: np.ndarray,
    scores: Sequence[float],
    gt_boxes: np.ndarray,
    *,
    score_threshold: float = 0.7,
    iou_threshold: float = 0.5,
) -> Tuple[float, int, int]:
    """F1 of one sample by the official GREC rule: keep by score, match greedily, no NMS.

    Without a target F1 is 1 when nothing is kept and 0 otherwise. With targets F1 is
    2 TP / (2 TP + FP + FN); duplicates are false positives. An empty box list is legal (upstream it
    raises) and keeps nothing.

    Args:
        boxes: (N, 4) XYXY pixels of all candidates, any order.
        scores: N Python floats or a float array. A float32 0.7 is 0.69999998 once it is a Python
            float, and is dropped, as upstream.
        gt_boxes: (T, 4) XYXY pixels of the original image, not clipped. T = 0 means no target.
        score_threshold: smallest score of a kept box, inclusive.
        iou_threshold: smallest *generalized* IoU of a match, inclusive.

    Returns:
        (F1, number of kept boxes, number of true positives).
    """
    scores = np.asarray(scores, dtype=np.float64)
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    gt_boxes = np.asarray(gt_boxes).reshape(-1, 4)
    kept = np.flatnonzero(scores >= score_threshold)
    if len(gt_boxes) == 0:
        return float(len(kept) == 0), len(kept), 0
    # Official order, descending (score, box): it settles which of two equal overlaps is taken.
    kept = sorted(kept, key=lambda i: (scores[i], *boxes[i]), reverse=True)
    overlaps = generalized_iou_scores(boxes[kept], gt_boxes)
    matches = greedy_match_count(overlaps, iou_threshold)
    # 2 TP + FP + FN with FP = kept - TP and FN = T - TP.
    return 2 * matches / (len(kept) + len(gt_boxes)), len(kept), matches


def num_covered_boxes(points: np.ndarray, boxes: np.ndarray) -> int:
    """Number of boxes that contain at least one of the points, bounds inclusive.

    Args:
        points: float (Q, 2), (x, y).
        boxes: float (T, 4) XYXY in the frame of the points.
    """
    points = np.asarray(points, dtype=np.float64).reshape(-1, 1, 2)
    boxes = np.asarray(boxes, dtype=np.float64).reshape(1, -1, 4)
    inside = (points >= boxes[..., :2]) & (points <= boxes[..., 2:])
    return int(inside.all(-1).any(0).sum())


def cover_accuracy(num_covered: Sequence[int], num_targets: Sequence[int]) -> float:
    """Mean over samples with targets of covered / all ground-truth boxes (paper Eq. 3).

    TP + FN is the number of boxes of *one* sample, so every sample weighs the same.
    """
    num_targets = np.asarray(num_targets, dtype=np.float64)
    has_target = num_targets > 0
    return mean_percent(
        np.asarray(num_covered, dtype=np.float64)[has_target] / num_targets[has_target]
    )
