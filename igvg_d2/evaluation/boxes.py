"""Boxes and their scores under the rules of a protocol."""

from typing import Any, Dict, List, Sequence

import numpy as np
from detectron2.structures import Instances

from igvg_d2.io.rle import FARTHEST

from .frames import GroundTruth, output_field, to_numpy
from .metrics import generalized_iou_scores, grec_f1, pairwise_box_iou
from .protocols import Protocol

# The release calls a sample a no-target one if no box scores above this, strictly.
RELEASED_SCORE_THRESHOLD = 0.7
_MDETR_RANKS = (1, 5, 10)


def check_candidates(candidates: Instances, score_threshold: float, sample: Dict[str, Any]) -> None:
    """Refuse numbers that would be counted silently wrong.

    A NaN overlap passes for a match in COCOeval and in the official GREC loop. An inverted box has
    no meaning, but below the threshold nobody looks at it (as upstream).

    Raises:
        ValueError: a score is not finite, a coordinate is not or is beyond any image, or a box at
            the threshold is inverted.
    """
    boxes, scores = to_numpy(candidates.pred_boxes.tensor), to_numpy(candidates.scores)
    inverted = (boxes[:, 2:] < boxes[:, :2]).any(1) & (scores >= score_threshold)
    # Not "greater than", which NaN never is.
    bad = inverted | ~(np.abs(boxes) <= FARTHEST).all(1) | ~np.isfinite(scores)
    if bad.any():
        index = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"sample '{sample['sample_id']}': candidate {index} has box {boxes[index].tolist()} "
            f"and score {float(scores[index])}; expected XYXY order, numbers up to {FARTHEST:.0e}"
        )


def count_confident(candidates: Instances) -> int:
    """Candidates above `RELEASED_SCORE_THRESHOLD`, compared in float32 as the release does."""
    scores = to_numpy(candidates.scores).astype(np.float32)
    return int(np.count_nonzero(scores > np.float32(RELEASED_SCORE_THRESHOLD)))


def no_target_decisions(
    output: Dict[str, Any], sample: Dict[str, Any], protocols: Sequence[Protocol]
) -> Dict[str, Any]:
    """{"pred_no_target": the flag}, and "num_confident" if a protocol has released rules.

    Args:
        output: of the model, with "no_target", for released rules also "candidates".
        sample: data set dict, for messages.
        protocols: of the evaluation.
    """
    decisions: Dict[str, Any] = {"pred_no_target": bool(output_field(output, "no_target", sample))}
    if any(protocol.rules == "released" for protocol in protocols):
        candidates = output_field(output, "candidates", sample)
        check_candidates(candidates, RELEASED_SCORE_THRESHOLD, sample)
        decisions["num_confident"] = count_confident(candidates)
    return decisions


def grec_counts(
    candidates: Instances, target: GroundTruth, protocol: Protocol, **thresholds: float
) -> List[float]:
    """[F1, kept boxes, matched boxes] of one sample by the GREC rule of a protocol.

    Scores are those of the output under native rules; official and released code has them in
    float32, where 0.7 is below 0.7. `thresholds` are those of `grec_f1`.
    """
    boxes, scores = to_numpy(candidates.pred_boxes.tensor), to_numpy(candidates.scores)
    if protocol.rules != "native":
        scores = scores.astype(np.float32)
    gt_boxes = target.boxes
    if protocol.rules == "released":
        boxes, gt_boxes = _released_boxes(boxes, target, protocol)
    return list(grec_f1(boxes, scores, gt_boxes, **thresholds))


def top_box_overlaps(
    candidates: Instances, target: GroundTruth, protocol: Protocol
) -> Dict[str, Any]:
    """Overlaps of the best-scoring boxes with the one target, by the REC rules of a protocol.

    Returns:
        {"iou": IoU of the box with the highest score, the first of equals, 0 without any}; with
        official rules MAttNet's IoU, and "giou" {rank k: best generalized IoU of the k best boxes}
        of MDETR beside it.
    """
    boxes = to_numpy(candidates.pred_boxes.tensor).astype(np.float64)
    scores = to_numpy(candidates.scores)
    gt_boxes = target.boxes
    if protocol.rules == "released":
        boxes, gt_boxes = _released_boxes(boxes, target, protocol)
    top = boxes[[np.argmax(scores)]] if len(boxes) else boxes
    if protocol.rules != "official":
        return {"iou": float(pairwise_box_iou(top, gt_boxes).max(initial=0.0))}
    # Official order: descending (score, box).
    order = sorted(range(len(boxes)), key=lambda i: (scores[i], *boxes[i]), reverse=True)
    overlaps = generalized_iou_scores(boxes[order], gt_boxes)[:, 0]
    return {
        "iou": float(mattnet_iou(top, gt_boxes).max(initial=0.0)),
        # Below the smallest generalized IoU there is, -1, without any box.
        "giou": {str(k): float(overlaps[:k].max(initial=-2.0)) for k in _MDETR_RANKS},
    }


def mattnet_iou(boxes1: np.ndarray, boxes2: np.ndarray) -> np.ndarray:
    """`pairwise_box_iou` as MAttNet has it: an overlap at most one pixel wide or high is none."""
    lower = np.maximum(boxes1[:, None, :2], boxes2[None, :, :2])
    upper = np.minimum(boxes1[:, None, 2:], boxes2[None, :, 2:])
    return np.where((upper - 1 > lower).all(-1), pairwise_box_iou(boxes1, boxes2), 0.0)


def _released_boxes(boxes: np.ndarray, target: GroundTruth, protocol: Protocol):
    """Predicted and target boxes in the frame of the release, targets clipped to w - 1, h - 1."""
    height, width = target.size
    limits = np.array([width - 1, height - 1] * 2, np.float64)
    gt_boxes = np.clip(target.boxes, 0.0, limits)
    if protocol.size is None:
        return boxes, gt_boxes
    scale = protocol.size / np.array([width, height] * 2, np.float64)
    return boxes * scale, gt_boxes * scale
