"""The trainer refuses what would hurt, checkpoints are strict, and a run can be repeated."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

import igvg_d2.modeling  # noqa: F401
from igvg_d2.checkpoint import GroundingCheckpointer, export_safetensors, read_metadata
from igvg_d2.data.synthetic import write_shapes
from igvg_d2.testing import tiny_cfg

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs" / "Shapes" / "igvg_tiny.yaml")


@pytest.fixture
def model():
    return build_model(tiny_cfg())


def test_safetensors_round_trip(model, tmp_path):
    path = str(tmp_path / "model.safetensors")
    export_safetensors(model, path, {"seed": "0"})
    other = build_model(tiny_cfg())
    GroundingCheckpointer(other).load(path)
    assert read_metadata(path) == {"seed": "0"}
    for a, b in zip(model.state_dict().values(), other.state_dict().values()):
        assert torch.equal(a, b)


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_any_mismatch_is_an_error_that_names_the_tensor(model, tmp_path, change):
    state = model.state_dict()
    key = "query_generator.mlp.layers.0.weight"
    if change == "missing":
        state.pop(key)
    elif change == "unexpected":
        key = "something.else"
        state[key] = torch.zeros(1)
    else:
        state[key] = torch.zeros(3, 3)
    path = str(tmp_path / "model.pth")
    torch.save({"model": state}, path)
    with pytest.raises(ValueError, match=key):
        GroundingCheckpointer(model).load(path)


def test_bad_files_are_refused(model, tmp_path):
    whole, cut = tmp_path / "whole.pth", tmp_path / "cut.pth"
    torch.save({"model": model.state_dict()}, whole)
    cut.write_bytes(whole.read_bytes()[:1000])
    torch.save({"model": model}, tmp_path / "object.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"no header")
    for name in ("cut.pth", "object.pth", "cut.safetensors"):
        with pytest.raises(ValueError, match=name):
            GroundingCheckpointer(model).load(str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match="absent.pth"):
        GroundingCheckpointer(model).load(str(tmp_path / "absent.pth"))


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    write_shapes(str(root / "shapes"), seed=1, scale=0.01, num_workers=1)
    return root


def run_train_net(datasets, output, *arguments):
    """Run train_net.py with a minute model in its own process; returns its metrics.json records."""
    command = [
        sys.executable, str(ROOT / "train_net.py"), "--config-file", CONFIG,
        *arguments,
        "OUTPUT_DIR", str(output), "DATASETS.TEST", "('shapes_val',)", "TEST.VIS_SAMPLES", "0",
        "SOLVER.IMS_PER_BATCH", "4", "SOLVER.WARMUP_ITERS", "2", "SOLVER.CHECKPOINT_PERIOD", "3",
        "DATALOADER.NUM_WORKERS", "0", "MODEL.BEIT3.DEPTH", "1", "MODEL.DEVICE", "cpu",
        "SOLVER.MAX_ITER", "6",
    ]  # fmt: skip
    env = dict(os.environ, DETECTRON2_DATASETS=str(datasets), OMP_NUM_THREADS="1")
    env["PYTHONPATH"] = str(ROOT)
    result = subprocess.run(command, env=env, capture_output=True, text=True, cwd=str(ROOT))
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    metrics = output / "metrics.json"  # absent after --eval-only
    return (
        [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    )


def last(records, key):
    return [record[key] for record in records if key in record][-1]


def test_command_line_trains_in_two_processes_and_evaluates_exactly(datasets, tmp_path):
    """test_learning.py has the rest: equal seeds, interruption, resuming."""
    # One image a batch: batches of another make-up differ in the last bits.
    alone = ["TEST.BATCH_SIZE", "1"]
    new = ["MODEL.WEIGHTS", ""]  # the shipped encoder is deeper
    records = run_train_net(datasets, tmp_path / "a", "--num-gpus", "2", *alone, *new)
    assert last(records, "total_loss") > 0
    assert last(records, "gres/gIoU") >= 0
    report = Path("inference", "shapes_val", "shapes_val_metrics.json")
    trained = json.loads((tmp_path / "a" / report).read_text())["results"]
    summary = json.loads((tmp_path / "a" / "run_summary.json").read_text())
    assert summary["iterations"] == 6 and summary["samples_seen"] == 24
    assert summary["processes"] == 2
    # Both processes judge with the model of the checkpoint: one set of BatchNorm statistics.
    weights = ["MODEL.WEIGHTS", str(tmp_path / "a" / "model_final.pth")]
    run_train_net(datasets, tmp_path / "b", "--eval-only", *weights, *alone)
    assert json.loads((tmp_path / "b" / report).read_text())["results"] == trained
    assert not (tmp_path / "b" / "run_summary.json").exists()
