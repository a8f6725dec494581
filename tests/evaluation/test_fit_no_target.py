"""Fitting the no-target threshold on training data and applying it to other data."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from igvg_d2.evaluation import GRefCOCOEvaluator
from igvg_d2.evaluation.predictions import output_to_prediction
from igvg_d2.evaluation.scoring import warn_of_empty_targets

ROOT = Path(__file__).resolve().parents[2]


def load(name):
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_fit_then_apply(make_sample, make_output, box_mask, register, tmp_path, capsys):
    mask = box_mask((2, 3, 12, 13))
    samples = [
        make_sample(f"{i}_0", [mask] * (i < 2), [[2, 3, 10, 10]] * (i < 2)) for i in range(4)
    ]
    lines = []
    # By its own flag the model takes everything for a target; its score knows better.
    for sample, score in zip(samples, (0.1, 0.25, 0.35, 0.5)):
        output = make_output(mask, False, [[2, 3, 12, 13]], [0.9])
        output["no_target_score"] = score
        lines.append(json.dumps(output_to_prediction(output, sample)))
    path, fitted, report = (tmp_path / name for name in ("p.jsonl", "t.json", "r.json"))
    path.write_text("\n".join(lines))
    train = register(samples)
    MetadataCatalog.get(train).set(split="train")
    common = ["--dataset", train, "--predictions", str(path)]
    load("fit_no_target_threshold").main([*common, "--output", str(fitted)])
    assert "AUROC 100.00" in capsys.readouterr().out
    content = json.loads(fitted.read_text())
    assert content["threshold"] == pytest.approx(0.3) and content["num_no_target"] == 2
    load("score_predictions").main(
        [*common, "--no-target-threshold", str(fitted), "--output", str(report)]
    )
    results = json.loads(report.read_text())["protocols"]["native"]["results"]
    assert (results["gres"]["N_acc"], results["gres_fitted"]["N_acc"]) == (0.0, 100.0)
    assert (results["gres"]["gIoU"], results["gres_fitted"]["gIoU"]) == (50.0, 100.0)
    assert (results["grec"]["F1score"], results["grec_fitted"]["F1score"]) == (50.0, 100.0)


@pytest.mark.parametrize("value", ["0", "nan", "-1", "1.1", "inf"])
@pytest.mark.parametrize("in_file", [False, True])
def test_thresholds_that_decide_nothing_are_refused(tmp_path, value, in_file):
    path = tmp_path / "t.json"
    path.write_text(f'{{"threshold": {dict(nan="NaN", inf="Infinity").get(value, value)}}}')
    name = str(path) if in_file else value
    with pytest.raises(
        ValueError,
        match=f"--no-target-threshold {name}: expected a number above 0, at most 1.* found",
    ):
        load("score_predictions").read_threshold(str(path) if in_file else value)
    with pytest.raises(ValueError, match="TEST.NO_TARGET_THRESHOLD: expected"):
        GRefCOCOEvaluator(dataset_name="x", no_target_threshold=float(value))


def test_a_target_without_area_is_named(make_sample, register, caplog):
    empty = np.zeros((20, 30), bool)
    name = register([make_sample("4_1", [empty], [[2, 3, 10, 10]]), make_sample("5_1", [], [])])
    warn_of_empty_targets(GRefCOCOEvaluator(dataset_name=name))
    assert "1 samples have a target without area" in caplog.text and "['4_1']" in caplog.text


def test_a_test_split_is_refused(make_sample, register, tmp_path):
    name = register([make_sample("1_0", [], [])])
    MetadataCatalog.get(name).set(split="val")
    with pytest.raises(SystemExit, match="is the split 'val'.*--any-split"):
        load("fit_no_target_threshold").main(["--dataset", name, "--predictions", "none"])
