"""Choice of cases, and the images and index of a fake model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances

from igvg_d2.engine import setup_config
from igvg_d2.visualization import GroundingVisualizer
from igvg_d2.visualization.result_images import render_result_images, select_cases


def _record(sample_id, num_targets, iou, image_id=None, **more):
    image_id = sample_id if image_id is None else image_id
    return {
        "sample_id": str(sample_id),
        "image_id": image_id,
        "num_targets": num_targets,
        "iou": iou,
        **more,
    }


def test_worst_and_best_of_every_cardinality():
    records = [
        _record(100 * targets + i, targets, i / 10) for targets in (0, 1, 2, 5) for i in range(10)
    ]
    cases = select_cases(records, 16)
    assert [c.sample_id for c in cases if c.cardinality == "1"] == ["100", "101", "109", "108"]
    assert [c.case for c in cases] == ["worst", "worst", "best", "best"] * 4
    assert [c.sample_id for c in cases if c.cardinality == "3plus"] == ["500", "501", "509", "508"]
    assert len(select_cases(records, 5)) == 5
    # Everything there is, each sample once.
    everything = select_cases(records, 1000)
    assert len(everything) == len({c.sample_id for c in everything}) == 40
    assert select_cases(records, 0) == [] and select_cases([], 10) == []


def test_ties_and_repeated_images():
    # Equal IoU: the answer given with more confidence is the better or the worse one.
    records = [_record(i, 0, 0.0, no_target_score=s) for i, s in enumerate([0.3, 0.1, 0.2, 0.4])]
    assert [c.sample_id for c in select_cases(records, 2)] == ["1", "3"]
    same_image = [_record(i, 1, i / 10, image_id=7) for i in range(10)]
    assert len(select_cases(same_image, 10)) == 2


class _NothingModel(torch.nn.Module):
    """Always answers "no target"."""

    def forward(self, inputs):
        assert not self.training
        outputs = []
        for x in inputs:
            size = (x["height"], x["width"])
            empty = Instances(size)
            empty.pred_boxes = Boxes(torch.zeros(0, 4))
            empty.scores = torch.zeros(0)
            empty.pred_masks = torch.zeros(0, *size, dtype=torch.bool)
            empty.pred_points = torch.zeros(0, 2)
            outputs.append(
                {
                    "instances": empty,
                    "candidates": empty,
                    "mask": torch.zeros(size, dtype=torch.bool),
                    "no_target": True,
                    "no_target_score": torch.tensor(0.8),
                }
            )
        return outputs


@pytest.fixture
def dataset(image_samples):
    samples = image_samples(12, "{}/x")
    name = "test_visualization_dataset"
    DatasetCatalog.register(name, lambda: samples)
    return name


@pytest.fixture
def cfg():
    cfg = setup_config()
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.IMAGE_SIZE = (32, 32)
    cfg.INPUT.TOKENIZER.NAME = "ShapesTokenizer"
    return cfg


def test_images_and_index(cfg, dataset, tmp_path):
    model = _NothingModel().train()
    output_dir = tmp_path / "images"
    index_path = render_result_images(cfg, model, dataset, str(output_dir), 10)
    index = json.loads(Path(index_path).read_text())
    assert model.training and index["dataset"] == dataset and len(index["images"]) == 10
    for entry in index["images"]:
        assert (output_dir / entry["file"]).is_file()
        assert (entry["case"], entry["cardinality"]) == ("sample", "0")
    # A second call leaves no stale image, also of a call that named them otherwise.
    Path(index_path).write_text(json.dumps({"pictures": index["images"]}))
    records = [_record("3/x", 0, 1.0, image_id=3), _record("4/x", 0, 0.0, image_id=4)]
    index_path = render_result_images(cfg, model, dataset, str(output_dir), 10, records)
    images = json.loads(Path(index_path).read_text())["images"]
    assert [(p["sample_id"], p["case"]) for p in images] == [("4/x", "worst"), ("3/x", "best")]
    assert len(list(output_dir.glob("*.jpg"))) == 2


def test_any_id_and_expression_can_be_drawn(cfg, image_samples, tmp_path):
    ids = ["\ud800", "é" * 400, "a/../b\x1b[2J", "1\n2\u2028" * 200, "中" * 300]
    samples = image_samples(len(ids), "{}")
    for sample, sample_id in zip(samples, ids):
        sample.update(sample_id=sample_id)
    name = "test_visualization_hostile"
    DatasetCatalog.register(name, lambda: samples)
    path = Path(render_result_images(cfg, _NothingModel(), name, str(tmp_path), len(ids)))
    images = json.loads(path.read_text())["images"]
    assert [p["sample_id"] for p in images] == ids
    assert all((tmp_path / p["file"]).is_file() for p in images)
    text = "red \ud800\x1b[2J\x00 \u2028 square"
    drawn = GroundingVisualizer().draw_prediction(
        np.zeros((40, 60, 3), np.uint8),
        text,
        _NothingModel().eval()([{"height": 40, "width": 60}])[0],
    )
    assert drawn.shape[2] == 3


def test_records_of_another_data_set(cfg, dataset, tmp_path):
    with pytest.raises(KeyError, match="the same data set"):
        render_result_images(
            cfg, _NothingModel(), dataset, str(tmp_path), 1, [_record("77", 0, 1.0)]
        )
