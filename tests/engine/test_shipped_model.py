"""The models that ship with the project: what they say about themselves, and that they ground."""

import re
from pathlib import Path

import pytest
from detectron2.modeling import build_model

import igvg_d2.modeling  # noqa: F401
from igvg_d2.checkpoint import GroundingCheckpointer, read_metadata
from igvg_d2.engine import GroundingTrainer, setup_config

ROOT = Path(__file__).resolve().parents[2]
ENCODER = ROOT / "demo" / "beit3_tiny_shapes.safetensors"
WEIGHTS = ROOT / "demo" / "igvg_tiny_shapes.safetensors"
CONFIG = ROOT / "configs" / "Shapes" / "igvg_tiny_long.yaml"


def test_they_are_small_and_say_how_they_were_made():
    assert ENCODER.stat().st_size < 10_000_000 and WEIGHTS.stat().st_size < 13_000_000
    facts = read_metadata(str(WEIGHTS))
    assert "train_net.py" in facts["command"] and CONFIG.name in facts["command"]
    assert facts["seed"] == "0" and int(facts["samples_seen"]) == 83_200
    for metric in ("gres/gIoU", "gres/N_acc", "grec/F1score", "instance/mask_AP50"):
        for split in ("val", "testA", "testB"):
            assert 0 < float(facts[f"shapes_{split}/{metric}"]) <= 100
    metrics = "gres/gIoU gres/N_acc gres/T_acc grec/F1score instance/mask_AP50 instance/box_AP50"
    metrics = [*metrics.split(), "instance/CoverAcc_all"]
    zoo = (ROOT / "MODEL_ZOO.md").read_text().partition("igvg_tiny_long.yaml)")[2]
    for split in ("val", "testA", "testB"):
        found = [float(facts[f"shapes_{split}/{name}"]) for name in metrics]
        row = re.search(rf"\| {split} \|([ 0-9.|]+)\|\n", zoo).group(1).split("|")
        del row[1]  # cIoU, which the header of the file does not have
        assert [float(x) for x in row] == pytest.approx(found, abs=0.051), split
        if split == "val":
            readme = (ROOT / "README.md").read_text()
            wanted = " | ".join(f"{found[i]:.1f}" for i in (0, 1, 3, 4))
            assert f"| 83,200 | 27 | {wanted} |" in readme
    readme = (ROOT / "projects" / "Shapes" / "README.md").read_text()
    assert f"{int(read_metadata(str(ENCODER))['samples']):,} samples" in readme


@pytest.fixture(scope="module")
def unseen(register_shapes):
    """A validation set of another seed, which no training has seen."""
    return register_shapes("test_shipped_model", seed=77, scale=0.06)[0]


def test_it_grounds_expressions_about_new_images(unseen, tmp_path):
    opts = ["MODEL.DEVICE", "cpu", "DATASETS.TEST", (unseen,), "OUTPUT_DIR", str(tmp_path)]
    cfg = setup_config(str(CONFIG), [*opts, "DATALOADER.NUM_WORKERS", 0])
    model = build_model(cfg)
    GroundingCheckpointer(model).load(str(WEIGHTS))
    results = GroundingTrainer.test(cfg, model)
    # An always-empty model has 28, 100, 28 and no AP.
    assert results["gres"]["gIoU"] > 50 and results["gres"]["T_acc"] > 65
    assert results["grec"]["F1score"] > 38 and results["instance"]["box_AP50"] > 50
