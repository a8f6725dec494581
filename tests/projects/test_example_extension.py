"""The example of an outside project: it registers itself, trains, and touches nothing here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from igvg_d2 import add_igvg_config
from igvg_d2.data.synthetic import write_shapes
from igvg_d2.modeling import QUERY_GENERATOR_REGISTRY
from igvg_d2.testing import (
    assert_all_parameters_used,
    assert_losses_contract,
    assert_query_generator_contract,
    random_batch,
    random_targets,
    tiny_cfg,
)

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "projects" / "IGVG" / "example_extension"
CONFIG = EXAMPLE / "configs" / "igvg_center_queries.yaml"
NAME = ["MODEL.QUERY_GENERATOR.NAME", "CenterQueryGenerator"]


@pytest.fixture(scope="module")
def center_queries():
    """The package, imported as its train_net.py does; unregistered afterwards."""
    sys.path.insert(0, str(EXAMPLE))
    import center_queries

    yield center_queries
    sys.path.remove(str(EXAMPLE))
    for name in [n for n in sys.modules if n.split(".")[0] == "center_queries"]:
        del sys.modules[name]
    QUERY_GENERATOR_REGISTRY._obj_map.pop("CenterQueryGenerator")


def make_cfg(center_queries):
    cfg = tiny_cfg(NAME)
    center_queries.add_center_queries_config(cfg)
    return cfg


def test_config_merges_on_top_of_the_library(center_queries):
    cfg = get_cfg()
    add_igvg_config(cfg)
    with pytest.raises(KeyError, match="CENTER_QUERIES"):
        cfg.clone().merge_from_file(str(CONFIG))
    center_queries.add_center_queries_config(cfg)
    cfg.merge_from_file(str(CONFIG))
    assert cfg.MODEL.QUERY_GENERATOR.NAME == "CenterQueryGenerator"


def test_generator_keeps_the_contract(center_queries):
    torch.manual_seed(0)
    generator = center_queries.CenterQueryGenerator(dim=32, num_queries=4, loss_weight=1.0)
    assert_query_generator_contract(generator, dim=32, num_queries=4)


def test_model_trains_and_answers_with_it(center_queries):
    torch.manual_seed(0)
    model = build_model(make_cfg(center_queries))
    with EventStorage():
        mixed, empty = model(random_batch([2, 0, 1])), model(random_batch([0, 0]))
    assert "loss_center" in mixed and "loss_point_heatmap" not in mixed
    assert_losses_contract(mixed, empty, {})
    assert_all_parameters_used(model, sum(mixed.values()))
    with torch.no_grad():
        (output,) = model.eval()(random_batch([1]))
    assert len(output["candidates"]) == 4 and output["mask"].shape == (64, 64)


def test_loss_by_hand(center_queries):
    targets = random_targets([1], (8, 8))
    targets.boxes[0, 0] = torch.tensor([0.75, 0.25, 0.5, 0.5])  # upper right cell of 2 x 2
    logits = torch.zeros(1, 2, 2, requires_grad=True)
    loss = center_queries.query_generator.center_loss(logits, targets)
    # (1/2)^2 log 2, weighted 0.25 for the cell with the center and 0.75 for the three others.
    assert loss.item() == pytest.approx(0.25 * 0.6931472 * (0.25 + 3 * 0.75))
    loss.backward()
    assert torch.sign(logits.grad[0]).tolist() == [[1.0, -1.0], [1.0, 1.0]]


DRIVER = """
import json, runpy, sys
for command in json.loads(sys.argv[1]):
    sys.argv = command
    sys.orig_argv = [sys.executable, *command]
    runpy.run_path(command[0], run_name="__main__")
"""


def run_commands(commands, project, folder):
    """Run scripts in one fresh process, each as from the command line; returns what they print.

    Args:
        commands: lists of a script and its arguments.
        project: folder of an outside project, to import from.
        folder: where to run them, with the data sets.
    """
    command = [sys.executable, "-c", DRIVER, json.dumps(commands)]
    env = dict(os.environ, DETECTRON2_DATASETS=str(folder), OMP_NUM_THREADS="1")
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(project)])
    result = subprocess.run(command, env=env, capture_output=True, text=True, cwd=str(folder))
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def test_train_net_demo_and_every_tool_take_the_config(tmp_path):
    write_shapes(str(tmp_path / "shapes"), seed=1, scale=0.003, num_workers=1)
    out, images = tmp_path / "out", tmp_path / "shapes" / "images" / "train2014"
    options = [
        "OUTPUT_DIR", str(out), "DATASETS.TEST", "('shapes_val',)", "TEST.VIS_SAMPLES", "0",
        "SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "1", "SOLVER.IMS_PER_BATCH", "2",
        "DATALOADER.NUM_WORKERS", "0", "MODEL.BEIT3.DEPTH", "1", "MODEL.WEIGHTS", "",
    ]  # fmt: skip
    weights = ["MODEL.WEIGHTS", str(out / "model_final.pth")]
    config = ["--config-file", str(CONFIG)]
    run = [str(EXAMPLE / "run_script.py")]
    tools = str(ROOT / "tools") + "/"
    demo = [str(ROOT / "demo" / "demo.py"), "--input", str(min(images.iterdir())), "--expression"]
    commands = [
        [str(EXAMPLE / "train_net.py"), *config, "--eval-only", *options],
        [str(EXAMPLE / "train_net.py"), *config, *options],
        [*run, *demo, "the red circle", "--output", str(tmp_path / "answer.png"), *config, "--opts"]
        + [*options, *weights],
        [*run, tools + "visualize_data.py", "--source", "dataloader", *config, "--num", "1"]
        + ["--output-dir", str(tmp_path / "data"), *options],
        [*run, tools + "visualize_results.py", *config, "--num", "1", *options, *weights],
        [*run, tools + "export.py", "--model", str(out), "--output"]
        + [str(tmp_path / "model.safetensors")],
        [*run, tools + "score_predictions.py", "--dataset", "shapes_val", "--num-workers", "0"]
        + ["--predictions", str(out / "inference" / "shapes_val" / "shapes_val_predictions.jsonl")],
        [
            *run,
            tools + "make_large_annotations.py",
            "--output",
            str(tmp_path / "large"),
            "--measure",
        ]
        + ["--expressions", "64", "--images", "8", "--objects", "32", "--workers", "0"],
        [*run, tools + "benchmark.py", "--what", "inference,training", "--no-torchscale"]
        + ["--steps", "1", "--warmup", "0", *config, *options],
    ]
    printed = run_commands(commands, EXAMPLE, tmp_path)
    records = (out / "metrics.json").read_text().splitlines()
    keys = set().union(*(json.loads(line) for line in records))
    assert {"loss_center", "gres/gIoU", "grec/F1score"} <= keys
    assert list((tmp_path / "data").iterdir()) and (tmp_path / "answer.png").is_file()
    assert (tmp_path / "model.safetensors").is_file() and "query generation" in printed
