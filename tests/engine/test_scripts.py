"""The command line scripts around images."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

import igvg_d2.modeling  # noqa: F401
from igvg_d2 import model_zoo
from igvg_d2.checkpoint import GroundingCheckpointer, read_metadata
from igvg_d2.engine import GroundingPredictor
from igvg_d2.engine.train_step import WeightAverage
from igvg_d2.testing import tiny_cfg
from igvg_d2.visualization.result_images import load_records
from tests.scripts import load_script


def test_make_report(tmp_path):
    module = load_script("tools/make_report.py")
    path = module.main([str(tmp_path), "--title", "a run"])
    assert "a run" in Path(path).read_text(encoding="utf-8")


def test_visualize_data_spreads_over_the_data(tmp_path, image_samples):
    samples = image_samples(10)
    config = tmp_path / "config.yaml"
    config.write_text("VERSION: 2\n")
    output = tmp_path / "images"
    name = "test_scripts_dataset"
    DatasetCatalog.register(name, lambda: samples)
    try:
        load_script("tools/visualize_data.py").main(
            ["--source", "annotation", "--config-file", str(config), "--num", "5"]
            + ["--dataset", name, "--output-dir", str(output)]
        )
    finally:
        DatasetCatalog.remove(name)
    names = sorted(path.name for path in output.iterdir())
    assert names == [f"{i:04d}_{2 * i}_0.png" for i in range(5)]


def test_visualize_results_finds_the_records(tmp_path):
    assert load_records(str(tmp_path), "toy") is None
    folder = tmp_path / "inference" / "toy"
    folder.mkdir(parents=True)
    (folder / "toy_records.json").write_text(json.dumps([{"sample_id": "1"}]))
    assert load_records(str(tmp_path), "toy") == [{"sample_id": "1"}]


def test_export_of_a_run_with_an_average_holds_the_average(tmp_path, monkeypatch):
    cfg = tiny_cfg(["SOLVER.EMA.ENABLED", True])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    (tmp_path / "run_summary.json").write_text("{}")
    model = build_model(cfg)
    average = WeightAverage(model, torch.optim.SGD(model.parameters(), lr=0.1), 0.9)
    torch.nn.init.ones_(model.image_projection.weight)
    GroundingCheckpointer(model, str(tmp_path), ema=average).save("model_final")
    output = str(tmp_path / "model.safetensors")
    monkeypatch.setattr("sys.argv", ["export.py", "--model", str(tmp_path), "--output", output])
    load_script("tools/export.py").main()
    assert read_metadata(output)["weights"].startswith("moving average")
    cfg.MODEL.WEIGHTS = output
    cfg.INPUT.TOKENIZER.NAME = "ShapesTokenizer"
    exported = GroundingPredictor(cfg).model.image_projection.weight
    assert torch.equal(exported, average.model.image_projection.weight)
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    assert torch.equal(GroundingPredictor(cfg).model.image_projection.weight, exported)


def test_export_of_a_run_carries_its_facts(tmp_path, monkeypatch, capsys):
    export = load_script("tools/export.py")
    # The other tokenizer's file would be downloaded.
    cfg = tiny_cfg(["INPUT.TOKENIZER.NAME", "ShapesTokenizer"])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    model = build_model(cfg)
    GroundingCheckpointer(model, str(tmp_path)).save("model_final")
    (tmp_path / "run_summary.json").write_text('{"command": "train_net.py --x", "seed": 3}')
    report = {"dataset": "shapes_val", "results": {"gres": {"gIoU": 61.234, "count_0": 3}}}
    (tmp_path / "inference" / "shapes_val").mkdir(parents=True)
    metrics = tmp_path / "inference" / "shapes_val" / "shapes_val_metrics.json"
    metrics.write_text(json.dumps(report))
    output = str(tmp_path / "model.safetensors")
    monkeypatch.setattr("sys.argv", ["export.py", "--model", str(tmp_path), "--output", output])
    export.main()
    facts = {"command": "train_net.py --x", "seed": "3", "shapes_val/gres/gIoU": "61.23"}
    found = read_metadata(output)
    config = found.pop("config")
    assert found == facts
    # The file alone is the model.
    again = model_zoo.load(output, device="cpu")
    assert again.MODEL.WEIGHTS == output and yaml.safe_load(config)["MODEL"]["WEIGHTS"] == ""
    GroundingCheckpointer(build_model(again)).load(output)
    other = build_model(cfg)
    GroundingCheckpointer(other).load(output)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    monkeypatch.setattr("sys.argv", ["export.py", "--show", output])
    capsys.readouterr()
    export.main()
    assert json.loads(capsys.readouterr().out) == {**facts, "config": config}
    monkeypatch.setattr(
        "sys.argv", ["export.py", "--model", str(tmp_path / "inference"), "--output", output]
    )
    with pytest.raises(SystemExit, match="model_final.pth"):
        export.main()
