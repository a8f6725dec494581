"""What a data loader keeps of the data set."""

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from igvg_d2 import add_igvg_config
from igvg_d2.data import build_grounding_test_loader, build_grounding_train_loader


@pytest.fixture
def dataset():
    """Name of a registered data set whose target has polygons."""
    item = {"id": 1, "iscrowd": 0, "polygons": [np.zeros(8)], "category_id": 0}
    samples = [{"sample_id": str(i), "annotations": [item] * (i % 3)} for i in range(6)]
    name = "test_loader_storage"
    DatasetCatalog.register(name, lambda: samples)
    MetadataCatalog.get(name).set(thing_classes=["target"])
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


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
