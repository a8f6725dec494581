"""Small hand-made scenes and model outputs to draw."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances


def _annotation(box, size):
    """Annotation of a filled rectangle (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = box
    mask = np.zeros(size, dtype=np.uint8)
    mask[y0:y1, x0:x1] = 1
    return {
        "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 0,
        "segmentation": mask_util.encode(np.asfortranarray(mask)),
        "iscrowd": 0,
    }


def _instances(boxes, scores, size):
    """Predicted instances whose masks are the filled boxes and whose points are their centers."""
    instances = Instances(size)
    tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes):
        mask[y0:y1, x0:x1] = True
    instances.pred_boxes = Boxes(tensor)
    instances.scores = torch.tensor(scores, dtype=torch.float32)
    instances.pred_classes = torch.zeros(len(boxes), dtype=torch.int64)
    instances.pred_masks = masks
    instances.pred_points = (tensor[:, :2] + tensor[:, 2:]) / 2
    return instances


@pytest.fixture
def make_annotations():
    """make_annotations(boxes, size) -> annotations of filled rectangles."""
    return lambda boxes, size: [_annotation(box, size) for box in boxes]


@pytest.fixture
def make_output():
    """make_output(boxes, num_kept, size) -> output dict; the first num_kept boxes are kept."""

    def make(boxes, num_kept, size, attention=True):
        scores = [0.95 - 0.01 * i if i < num_kept else 0.2 for i in range(len(boxes))]
        candidates = _instances(boxes, scores, size)
        kept = candidates[:num_kept]
        output = {
            "instances": kept,
            "candidates": candidates,
            "mask": kept.pred_masks.any(dim=0),
            "no_target": num_kept == 0,
            "no_target_score": torch.tensor(0.1 if num_kept else 0.9),
        }
        if attention:
            output["attention_map"] = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
        return output

    return make
