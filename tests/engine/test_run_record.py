"""A resumed run says which options and data differ from those that it began with."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from igvg_d2.engine.hooks import StepSeedHook
from igvg_d2.engine.run_record import RunRecord
from igvg_d2.testing import tiny_cfg


@pytest.fixture
def dataset(tmp_path):
    """(name, annotation file) of a registered data set."""
    path = tmp_path / "data.json"
    path.write_text("[]")
    DatasetCatalog.register("run_record_data", list)
    MetadataCatalog.get("run_record_data").set(annotation_file=str(path))
    yield "run_record_data", path
    DatasetCatalog.remove("run_record_data")
    MetadataCatalog.remove("run_record_data")


def record(dataset, *opts):
    return RunRecord(tiny_cfg(["DATASETS.TRAIN", (dataset[0],), *opts]))


def test_the_same_run_is_resumed_in_silence(dataset, caplog):
    state = json.loads(json.dumps(record(dataset).state_dict()))
    other_place = ["OUTPUT_DIR", "elsewhere", "SOLVER.NUM_THREADS", 1, "DATALOADER.NUM_WORKERS", 9]
    record(dataset, *other_place).load_state_dict(state)
    assert not caplog.records and state["data"]


@pytest.mark.parametrize(
    "key, old, new, counts",
    [
        ("SOLVER.BASE_LR", 0.5, 0.1, "goes on with the old value"),
        ("SOLVER.WEIGHT_DECAY", 0.0, 0.1, "goes on with the old value"),
        ("SOLVER.IMS_PER_BATCH", 4, 8, "the new value is used"),
        ("INPUT.IMAGE_SIZE", (32, 32), (64, 64), "the new value is used"),
    ],
)
def test_another_option_is_said_with_both_values(dataset, caplog, key, old, new, counts):
    state = record(dataset, key, old).state_dict()
    record(dataset, key, new).load_state_dict(state)
    (message,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    shown = [str(list(v) if isinstance(v, tuple) else v) for v in (old, new)]
    assert f"{key} was {shown[0]} in this run and is {shown[1]} now" in message
    assert counts in message


def test_other_data_under_the_same_name_are_said(dataset, caplog):
    state = record(dataset).state_dict()
    dataset[1].write_text("[1]")
    record(dataset).load_state_dict(state)
    (message,) = [r.getMessage() for r in caplog.records]
    assert (
        "the training data are others" in message and "run_record_data, annotation_file" in message
    )


def test_another_seed_is_said_once(dataset, caplog):
    state = record(dataset, "SEED", 1).state_dict()
    record(dataset, "SEED", 2).load_state_dict(state)
    assert not caplog.records
    StepSeedHook(2).load_state_dict(StepSeedHook(1).state_dict())
    assert "begun with seed 1 and is continued with 2" in caplog.text
