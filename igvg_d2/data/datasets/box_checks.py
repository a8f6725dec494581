"""Boxes that contradict the masks beside them, such as corners where x, y, width, height belong."""

import logging
from typing import Any, Dict, Iterable, List, Sequence, Tuple

import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures import Boxes, BoxMode
from detectron2.structures.boxes import matched_pairwise_iou

logger = logging.getLogger(__name__)

# Rasterising loses thin spikes of a polygon, up to 10 pixels in COCO: boxes and masks overlap there
# by 0.85 and more. The slack, in pixels, is for objects of a few pixels.
_LEAST_IOU, _SLACK = 0.5, 2.0


def contradicting_boxes(annotations: Sequence[Dict[str, Any]]) -> List[Tuple[int, str]]:
    """Annotations whose box overlaps the extent of their mask by less than half (IoU).

    Args:
        annotations: of dataset dicts, with RLE masks; those without (a pixel) are passed over.

    Returns:
        (index, what was found) of each.
    """
    places = [i for i, item in enumerate(annotations) if "segmentation" in item]
    if not places:
        return []
    annotations = [annotations[i] for i in places]
    boxes = np.array([_to_xywh(item) for item in annotations], dtype=np.float64)
    extents = np.array([mask_util.toBbox(item["segmentation"]) for item in annotations])
    corners, wanted = (
        Boxes(np.concatenate([b[:, :2], b[:, :2] + b[:, 2:]], axis=1)) for b in (boxes, extents)
    )
    ious, as_corners = (matched_pairwise_iou(b, wanted) for b in (corners, Boxes(boxes)))
    is_far = (corners.tensor - wanted.tensor).abs().amax(dim=1) > _SLACK
    found = []
    # 0 / 0 is NaN: a box without area overlaps by 0.
    bad = (ious.nan_to_num() < _LEAST_IOU) & is_far & wanted.nonempty()
    for i in bad.nonzero()[:, 0].tolist():
        hint = "; it would fit as corners x0, y0, x1, y1" if as_corners[i] >= _LEAST_IOU else ""
        box, extent = ([round(float(v), 1) for v in b] for b in (boxes[i], extents[i]))
        found.append((places[i], f"box {box}, but its mask has the extent {extent}{hint}"))
    return found


def warn_of_contradicting_boxes(samples: Iterable[Dict[str, Any]], path: str) -> None:
    """Log how many objects of an annotation file have such a box, and the first."""
    objects = {id(item): item for sample in samples for item in sample["annotations"]}
    annotations = list(objects.values())
    found = contradicting_boxes(annotations)
    if found:
        index, text = found[0]
        logger.warning(
            "%s: %d of %d objects have a box that contradicts their mask (x, y, width, height are "
            "expected); the first is annotation %s: %s",
            *(path, len(found), len(annotations), annotations[index]["id"], text),
        )


def _to_xywh(item: Dict[str, Any]) -> Sequence[float]:
    """Box [x, y, width, height]; BoxMode.convert takes longer than all the rest."""
    mode, box = item["bbox_mode"], item["bbox"]
    return box if mode == BoxMode.XYWH_ABS else BoxMode.convert(box, mode, BoxMode.XYWH_ABS)
