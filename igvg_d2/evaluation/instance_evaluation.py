"""Instance-level metrics: class-agnostic mask and box AP (COCO rules) and CoverAcc (paper Eq. 3).

Eq. 3 asks how many target boxes hold one of the points that queries start from, all of them, with
no score involved. So a grid of points that predict nothing reaches 100, and the number compares
selectors of equally many points only: it is "CoverAcc_all". "CoverAcc" counts the points of
predicted instances alone, those whose boxes GREC keeps.

Every sample is one "image" of one category: the candidates of an expression compete with its own
targets only, and every candidate of a no-target expression is a false positive. Overlaps with the
ground truth are computed while the masks are at hand; what is kept are a few numbers per sample,
so memory does not grow with the image size and gathering costs bytes.
"""

import contextlib
import io
from collections import defaultdict
from itertools import compress
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures import Instances
from pycocotools.cocoeval import COCOeval

from igvg_d2.io.rle import RLEMasks

from .columns import has_masks, mask_is_known
from .frames import GroundTruth, to_numpy
from .metrics import (
    cardinality_groups,
    cover_accuracy,
    decode_window,
    mask_area,
    mean_percent,
    num_covered_boxes,
    pairwise_box_iou,
    percent,
)
from .reporting import Record

# Candidates per sample that take part in AP, COCO's own limit.
MAX_CANDIDATES = 100


def make_instance_record(
    target: GroundTruth,
    candidates: Instances,
    *,
    min_score: float = 0.05,
    score_threshold: float = 0.7,
) -> Record:
    """Scores and overlaps of the candidates of one sample.

    Args:
        target: ground truth.
        candidates: `scores` (Q,), `pred_boxes` Boxes XYXY pixels, and optionally `pred_masks` bool
            (Q, height, width) or `RLEMasks`, and `pred_points` float (Q, 2) pixels, in the original
            frame.
        min_score: candidates below are left out of AP to save time; they could only lengthen the
            tail of the precision-recall curve.
        score_threshold: from this score on a candidate is a predicted instance: its point counts
            for CoverAcc, and its box is asked whether it fits its mask.

    Returns:
        dict with scores list (n,), descending; box_ious and mask_ious lists (n, T); num_covered,
        the number of target boxes with the point of a predicted instance, and num_covered_all, with
        any point; box_mask_ious, IoU of each kept box with the tightest box around its own mask (0
        if that is empty). mask_ious and box_mask_ious / num_covered and num_covered_all are None
        without `pred_masks` / `pred_points`, mask_ious also if a target has no mask.
    """
    scores = to_numpy(candidates.scores).astype(np.float64)
    # Stable sort, the order COCOeval itself establishes.
    order = np.argsort(-scores, kind="mergesort")
    order = order[scores[order] >= min_score][:MAX_CANDIDATES]
    boxes = to_numpy(candidates.pred_boxes.tensor).astype(np.float64)
    mask_ious = num_covered = num_covered_all = box_mask_ious = None
    if candidates.has("pred_masks"):
        masks = candidates.pred_masks
        if not isinstance(masks, RLEMasks):
            # Views of the chosen masks; indexing with `order` would copy them all.
            masks = to_numpy(masks).astype(bool, copy=False)
        chosen = [masks[i] for i in order]
        if target.has_masks:
            mask_ious = pairwise_mask_iou(chosen, target).tolist()
        kept = [(boxes[i], masks[i]) for i in order if scores[i] >= score_threshold]
        box_mask_ious = [_fit_to_mask(box, mask) for box, mask in kept]
    if candidates.has("pred_points"):
        points = to_numpy(candidates.pred_points)
        num_covered = num_covered_boxes(points[scores >= score_threshold], target.boxes)
        num_covered_all = num_covered_boxes(points, target.boxes)
    return {
        "scores": scores[order].tolist(),
        "box_ious": pairwise_box_iou(boxes[order], target.boxes).tolist(),
        "mask_ious": mask_ious,
        "num_covered": num_covered,
        "num_covered_all": num_covered_all,
        "box_mask_ious": box_mask_ious,
    }


def pairwise_mask_iou(masks: Sequence[Any], target: GroundTruth) -> np.ndarray:
    """IoU float64 (N, T) of masks and targets, exact integers divided once; 0 for two empty masks.

    Args:
        masks: N masks, all bool (height, width) or all RLE dicts.
        target: ground truth with T targets of the same size.
    """
    ious = np.zeros((len(masks), target.num_targets))
    if not ious.size:
        return ious
    if isinstance(masks[0], dict):
        return mask_util.iou(masks, target.rles, [0] * target.num_targets)
    areas = [mask_area(mask) for mask in masks]
    for j, rle in enumerate(target.rles):
        window, part = decode_window(rle)
        for i, mask in enumerate(masks):
            intersection = int(np.count_nonzero(mask[window] & part))
            ious[i, j] = intersection / max(areas[i] + mask_area(rle) - intersection, 1)
    return ious


def _fit_to_mask(box: np.ndarray, mask: Any) -> float:
    """IoU of an XYXY box with the tightest box around a mask, bool (height, width) or RLE."""
    if isinstance(mask, dict):
        x, y, width, height = mask_util.toBbox(mask).tolist()
        tight = [x, y, x + width, y + height]
    else:
        columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        if not len(rows):
            return 0.0
        tight = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    return float(pairwise_box_iou(box[None], np.array([tight], np.float64))[0, 0])


def summarize_instances(records: Sequence[Record]) -> Dict[str, float]:
    """Average precision, CoverAcc and box-mask consistency of `make_instance_record`.

    Returns:
        {"mask_AP", "mask_AP50", "mask_AP75", "box_AP", "box_AP50", "box_AP75", "CoverAcc",
        "CoverAcc_all", "box_mask_IoU" (mean IoU of kept boxes with the tightest boxes around their
        masks)} in percent; NaN without any target, or where the candidates had no masks or points.
    """
    results = {}
    for kind in ("mask", "box"):
        used = has_masks(records) if kind == "mask" else [True] * len(records)
        precision = _average_precision(list(compress(records, used)), f"{kind}_ious")
        results.update({f"{kind}_AP{suffix}": value for suffix, value in precision.items()})
    num_targets = [r["num_targets"] for r in records]
    for suffix in ("", "_all"):
        covered = [r[f"num_covered{suffix}"] for r in records]
        has_points = None not in covered
        results[f"CoverAcc{suffix}"] = (
            cover_accuracy(covered, num_targets) if has_points else float("nan")
        )
    results["box_mask_IoU"] = float("nan")
    if all(r["box_mask_ious"] is not None for r in records):
        results["box_mask_IoU"] = mean_percent([x for r in records for x in r["box_mask_ious"]])
    return results


def summarize_sets(records: Sequence[Record]) -> Dict[str, float]:
    """Kept boxes against targets, summed over samples, by the matches of GREC, in percent.

    Returns:
        F1, precision and recall of instances, recall by number of targets, count_acc (the number of
        kept boxes is the number of targets), and decision_agreement, the share of samples whose
        flag, mask (not of data without masks) and kept boxes say the same: a target or none.
    """
    kept, matched, targets = (
        np.array([r[key] for r in records], dtype=np.int64)
        for key in ("num_kept", "num_matched", "num_targets")
    )
    areas = "pred_area" if mask_is_known(records).any() else "num_kept"
    agreed = [r["pred_no_target"] == (r[areas] == 0) == (r["num_kept"] == 0) for r in records]
    results = {
        "F1": percent(2 * matched.sum(), kept.sum() + targets.sum()),
        "precision": percent(matched.sum(), kept.sum()),
        "recall": percent(matched.sum(), targets.sum()),
        "count_acc": mean_percent(kept == targets),
        "decision_agreement": mean_percent(agreed),
    }
    for name, chosen in cardinality_groups(targets).items():
        if name != "0":
            results[f"recall_{name}"] = percent(matched[chosen].sum(), targets[chosen].sum())
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
        self._gts = _Objects(lambda i: [{} for _ in range(self._records[i]["num_targets"])])
        self._dts = _Objects(lambda i: [{"score": s} for s in self._records[i]["scores"]])
        self.evalImgs, self.eval = defaultdict(list), {}

    def computeIoU(self, imgId: int, catId: int) -> None:
        """Not for all samples at once: see `evaluateImg`."""

    def evaluateImg(self, imgId: int, catId: int, aRng, maxDet: int) -> Optional[Dict[str, Any]]:
        """Matches of one sample: what `accumulate` reads, and numbers of objects as flags."""
        record = self._records[imgId]
        ious = np.asarray(record[self._iou_key], dtype=np.float64)
        # float64 (n, T); rows are already in descending score.
        self.ious[imgId, catId] = ious.reshape(len(record["scores"]), record["num_targets"])
        found = super().evaluateImg(imgId, catId, aRng, maxDet)
        self.ious[imgId, catId] = None
        if found is None:
            return None
        kept = {key: found[key] for key in ("dtScores", "dtIgnore", "gtIgnore")}
        return {**kept, "dtMatches": found["dtMatches"] > 0}


class _Objects:
    """What COCOeval looks up by (image, category), made when asked for instead of kept for all."""

    def __init__(self, make: Callable[[int], List[Dict[str, Any]]]):
        """`make` gives the objects of an image, new ones at each call."""
        self._make = make

    def __getitem__(self, key: Tuple[int, int]) -> List[Dict[str, Any]]:
        """Objects of an image; ids are its own, from 1: COCOeval reads 0 as "no match"."""
        common: Dict[str, Any] = {"area": 1.0, "ignore": 0, "iscrowd": 0}
        return [
            {**item, **common, "id": number} for number, item in enumerate(self._make(key[0]), 1)
        ]
