"""Boxes that contradict the masks beside them are found, others are not."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.structures import BoxMode

from igvg_d2.data.datasets.box_checks import contradicting_boxes, warn_of_contradicting_boxes


def annotation(box, extent=(30, 40, 20, 10), mode=BoxMode.XYWH_ABS):
    x, y, width, height = extent
    mask = np.zeros((100, 100), np.uint8, order="F")
    mask[y : y + height, x : x + width] = 1
    return {"id": 5, "bbox": list(box), "bbox_mode": mode, "segmentation": mask_util.encode(mask)}


@pytest.mark.parametrize(
    "item, hint",
    [
        (annotation((30, 40, 50, 50)), True),  # corners
        (annotation((0.3, 0.4, 0.2, 0.1)), False),  # relative
        (annotation((40, 45, 20, 10)), False),  # centre
        (annotation((40, 30, 10, 20)), False),  # y before x
    ],
)
def test_other_conventions_are_noticed(item, hint):
    ((index, text),) = contradicting_boxes([annotation((30, 40, 20, 10)), item])
    assert index == 1 and "but its mask has the extent [30.0, 40.0, 20.0, 10.0]" in text
    assert ("corners x0, y0, x1, y1" in text) == hint


@pytest.mark.parametrize(
    "item",
    [
        annotation((29.6, 39.2, 21.1, 11.0)),
        annotation((26, 40, 24, 12)),  # a spike that the mask lost
        annotation((30, 40, 50, 50), mode=BoxMode.XYXY_ABS),
        annotation((3.9, 3.2, 0.8, 2.9), extent=(4, 3, 2, 2)),  # a few pixels
        annotation((30, 40, 20, 10), extent=(30, 40, 0, 0)),  # no pixel: another problem
    ],
)
def test_boxes_of_the_object_are_left_alone(item):
    assert contradicting_boxes([item]) == [] == contradicting_boxes([])


def test_a_file_is_told_once_with_counts(caplog):
    good, bad = annotation((30, 40, 20, 10)), annotation((30, 40, 50, 50))
    samples = [{"annotations": [good, bad]}, {"annotations": [bad]}, {"annotations": []}]
    with caplog.at_level("WARNING", logger="igvg_d2"):
        warn_of_contradicting_boxes(samples, "own.json")
    assert len(caplog.records) == 1
    assert "own.json: 1 of 2 objects have a box that contradicts their mask" in caplog.text
    assert "annotation 5: box [30.0, 40.0, 50.0, 50.0]" in caplog.text
