"""Small data sets and model outputs for the evaluator tests."""

import itertools
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances

FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "reference" / "metric_fixtures"
_names = (f"evaluation_test_{i}" for i in itertools.count())


@pytest.fixture
def fixtures_dir():
    """Folder of the shared metric fixtures; the test is skipped without it."""
    if not FIXTURES.is_dir():
        pytest.skip(f"shared metric fixtures not found beside the repository: {FIXTURES}")
    return FIXTURES


@pytest.fixture
def register():
    """Callable: data set dicts -> name of a registered data set."""

    def _register(dicts, evaluator_type="grefcoco"):
        name = next(_names)
        DatasetCatalog.register(name, lambda: dicts)
        MetadataCatalog.get(name).set(evaluator_type=evaluator_type)
        return name

    return _register


@pytest.fixture
def box_mask():
    """Callable: XYXY integer box -> bool (height, width) mask filled with it."""

    def _box_mask(box, size=(20, 30)):
        mask = np.zeros(size, dtype=bool)
        if box is not None:
            mask[box[1] : box[3], box[0] : box[2]] = True
        return mask

    return _box_mask


@pytest.fixture
def make_sample():
    """Callable: masks bool (h, w), RLE or None for a box only, boxes XYWH -> a data set dict."""

    def _make_sample(sample_id, masks, boxes, size=(20, 30), **extra):
        ref_id, sent_id = (int(x) for x in sample_id.split("_"))
        annotations = []
        for mask, box in zip(masks, boxes):
            if isinstance(mask, np.ndarray):
                mask = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
            annotations.append(
                dict(
                    bbox=list(box),
                    bbox_mode=BoxMode.XYWH_ABS,
                    category_id=0,
                    iscrowd=0,
                    **({} if mask is None else {"segmentation": mask}),
                )
            )
        return dict(
            sample_id=sample_id,
            ref_id=ref_id,
            sent_id=sent_id,
            image_id=ref_id,
            file_name="none.jpg",
            height=size[0],
            width=size[1],
            expression="x",
            annotations=annotations,
            **extra,
        )

    return _make_sample


@pytest.fixture
def make_output():
    """Callable: mask, flag and candidates -> a model output in the original frame."""

    def _make_output(mask, no_target=False, boxes=(), scores=(), masks=None, points=None):
        candidates = Instances(mask.shape)
        candidates.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        candidates.scores = torch.tensor(scores, dtype=torch.float32)
        if masks is not None:
            stacked = np.array(masks, dtype=bool).reshape(-1, *mask.shape)
            candidates.pred_masks = torch.from_numpy(stacked)
        if points is not None:
            candidates.pred_points = torch.tensor(points, dtype=torch.float32).reshape(-1, 2)
        return {
            "mask": torch.from_numpy(np.ascontiguousarray(mask)),
            "no_target": torch.tensor(no_target),
            "no_target_score": torch.tensor(float(no_target)),
            "candidates": candidates,
        }

    return _make_output
