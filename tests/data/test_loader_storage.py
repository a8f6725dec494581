"""What a data loader keeps of the data set."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from igvg_d2 import add_igvg_config
from igvg_d2.data import build_grounding_test_loader, build_grounding_train_loader
from tests.scripts import load_script


@pytest.fixture
def dataset():
    """Name of a registered data set whose target has polygons."""
    item = {"id": 1, "iscrowd": 0, "polygons": [np.zeros(8)], "category_id": 0}
    samples = [{"sample_id": str(i), "annotations": [item] * (i % 3)} for i in range(6)]
    name = "test_loader_storage"
    DatasetCatalog.register(name, lambda: samples)
    MetadataCatalog.get(name).set(thing_classes=["target"])
    return name


def test_polygons_stay_behind_and_no_target_samples_do_not(dataset):
    cfg = get_cfg()
    add_igvg_config(cfg)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATASETS.TRAIN = (dataset,)
    cfg.SOLVER.IMS_PER_BATCH = 6
    same = lambda sample: sample
    batches = list(build_grounding_test_loader(cfg, dataset, mapper=same))
    batches.append(next(iter(build_grounding_train_loader(cfg, mapper=same))))
    samples = [sample for batch in batches for sample in batch]
    assert len(samples) == 12
    for sample in samples:
        assert len(sample["annotations"]) == int(sample["sample_id"]) % 3
        assert all("polygons" not in item and item["id"] == 1 for item in sample["annotations"])
    assert all("polygons" in a for s in DatasetCatalog.get(dataset) for a in s["annotations"])


def test_large_sets_cost_little_memory(tmp_path):
    """A small version of tools/make_large_annotations.py, whose default is gRefCOCO's size."""
    large = load_script("tools/make_large_annotations.py")
    one, two = (large.write_annotations(str(tmp_path / k), 50, 20, 5, seed=0) for k in "ab")
    assert all(Path(one[key]).read_bytes() == Path(two[key]).read_bytes() for key in one)
    paths = large.write_annotations(str(tmp_path), 20000, 2000, 500, seed=0)
    refs = json.loads(Path(paths["annotation_file"]).read_text())
    assert sum(len(ref["sentences"]) for ref in refs) == 20000
    result = large.measure(paths, workers=1)
    assert result["samples"] == 20000
    # gRefCOCO's size is 13 times this: 2 GiB and 30 s.
    assert result["load_cpu_seconds"] < 30.0 / 13.0
    if sys.platform == "linux" and os.path.isfile("/proc/self/smaps_rollup"):
        # A worker without a data set has 8 MiB of its own; before objects were frozen and stored
        # as bytes it had 200.
        (worker,) = result["worker_mib"]
        assert 0.0 < worker < 40.0
