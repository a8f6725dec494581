"""Own data of which targets have a box and no mask, from the file to the training sample."""

import json
import logging

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from igvg_d2.data import AntialiasedResize, GroundingDatasetMapper
from igvg_d2.data.datasets import fingerprint, load_expressions, register_expressions
from igvg_d2.data.datasets.checks import check_dataset
from igvg_d2.visualization import GroundingVisualizer
from igvg_d2.visualization.visualizer import ground_truth, judge_prediction
from tests.scripts import load_script

export = load_script("tools/export_dataset.py")

SQUARE = [2, 3, 6, 3, 6, 8, 2, 8]
NAME = "test_box_only"


@pytest.fixture
def write(tmp_path):
    """Callable: segmentation entries -> path of a file with one object for each."""
    Image.fromarray(np.zeros((10, 12, 3), np.uint8)).save(tmp_path / "7.jpg")

    def _write(*entries):
        content = {
            "images": [{"id": 7, "file_name": "7.jpg", "height": 10, "width": 12}],
            "annotations": [
                {"id": i, "image_id": 7, "bbox": [2, 3, 4, 5], **entry}
                for i, entry in enumerate(entries)
            ],
            "expressions": [
                {"image_id": 7, "text": "both", "annotation_ids": list(range(len(entries)))},
                {"image_id": 7, "text": "the cat", "annotation_ids": []},
            ],
        }
        path = tmp_path / "own.json"
        path.write_text(json.dumps(content))
        return str(path)

    return _write


@pytest.mark.parametrize("entry", [{}, {"segmentation": None}, {"segmentation": []}])
def test_from_file_to_training_sample(write, entry, tmp_path, caplog):
    path = write({"segmentation": [SQUARE]}, entry)
    with caplog.at_level(logging.WARNING):
        samples = load_expressions(path, str(tmp_path))
    assert "1 of 2 targets have a box and no mask" in caplog.text
    drawn, boxed = samples[0]["annotations"]
    assert "segmentation" in drawn and "segmentation" not in boxed
    assert boxed["bbox"] == [2.0, 3.0, 4.0, 5.0]
    mapper = GroundingDatasetMapper(
        True,
        tokenizer=lambda text: [0, 5, 2],
        image_format="RGB",
        resize=AntialiasedResize(image_size=(20, 24)),
    )
    instances = mapper(samples[0])["instances"]
    assert instances.gt_has_mask.tolist() == [True, False]
    assert instances.gt_boxes.tensor.tolist() == [[4.0, 6.0, 12.0, 16.0]] * 2
    assert instances.gt_masks.tensor[0].sum() > 0 and not instances.gt_masks.tensor[1].any()
    assert mapper(samples[1])["instances"].gt_has_mask.shape == (0,)
    # It is drawn with its box, and an answer is judged by its number of instances.
    assert GroundingVisualizer().draw_annotation(samples[0]).shape[2] == 3
    truth, found = ground_truth(samples[0]["annotations"], (10, 12)), Instances((10, 12))
    found.pred_boxes = Boxes(truth.gt_boxes.tensor)
    output = {"mask": np.zeros((10, 12)) > 0, "no_target": False, "instances": found}
    output = {key: torch.as_tensor(x) if key == "mask" else x for key, x in output.items()}
    verdict = judge_prediction({**output, "candidates": found}, truth)
    assert verdict.correct and verdict.text == "✓ 2 for 2, no mask annotated"


def test_checks_count_it_and_an_export_keeps_it(write, tmp_path):
    path = write({"segmentation": [SQUARE]}, {})
    register_expressions(NAME, path, str(tmp_path))
    report = check_dataset(NAME)
    assert report.masks == (1, 1) and not report.problems
    output = tmp_path / "again.json"
    export.main([NAME, str(output)])
    annotations = json.loads(output.read_text())["annotations"]
    assert "segmentation" not in annotations[1] and annotations[1]["area"] == 20.0
    samples = load_expressions(str(output), str(tmp_path))
    assert fingerprint(samples) == fingerprint(DatasetCatalog.get(NAME))


def test_neither_box_nor_mask_is_refused(write, tmp_path):
    path = write({"bbox": None})
    with pytest.raises(ValueError, match="own.json.*'segmentation'.*neither a mask nor a box"):
        load_expressions(path, str(tmp_path))
