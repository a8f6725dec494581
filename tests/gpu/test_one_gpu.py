"""On one GPU: the numbers of the CPU, mixed precision, memory of the presets, speed, resuming."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from igvg_d2.config import add_igvg_config
from igvg_d2.engine.train_step import build_step_trainer
from igvg_d2.evaluation.predictions import output_to_host
from igvg_d2.solver import build_optimizer
from igvg_d2.testing import random_batch, tiny_cfg

ROOT = Path(__file__).resolve().parents[2]
COUNTS = (1, 0, 2, 6)
EXACT = ["MODEL.BEIT3.DROP_PATH", 0.0, "MODEL.QUERY_GENERATOR.DROPOUT", 0.0,
         "MODEL.GROUNDING_HEAD.DROPOUT", 0.0]  # fmt: skip
VARIANTS = {
    "paper": [],
    "checkpointing": ["MODEL.BEIT3.CHECKPOINTING", True],
    "detr": ["MODEL.GROUNDING_HEAD.DECODER", "DETRDecoder",
             "MODEL.GROUNDING_HEAD.IN_FEATURES", ["p4"]],
    "released": ["MODEL.QUERY_GENERATOR.ATTENTION", "decoder_layer",
                 "MODEL.QUERY_GENERATOR.POOL", "max", "MODEL.GROUNDING_HEAD.REFERENCE", "shifted",
                 "MODEL.IGVG.ALIGN_CORNERS", True],
}  # fmt: skip


def script(name):
    """A script of the project as a module."""
    path = ROOT / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def benchmark(what, cfg, *arguments):
    """What tools/benchmark.py measures of the first case."""
    module = script("tools/benchmark.py")
    args = module.parse_args(["--what", what, *arguments])
    return module.PARTS[what](cfg, module.list_cases(args)[0], args)


def train(device, opts, steps=3, counts=COUNTS):
    """Losses of some steps and the weights after them."""
    cfg = tiny_cfg([*EXACT, "MODEL.DEVICE", device, "SOLVER.IMS_PER_BATCH", len(counts), *opts])
    torch.manual_seed(0)
    model = build_model(cfg.clone()).train()
    torch.manual_seed(0)
    on_cpu = build_model(tiny_cfg([*EXACT, *opts, "MODEL.DEVICE", "cpu"]))
    model.load_state_dict(on_cpu.state_dict())
    batches = [random_batch(counts, seed=i) for i in range(steps)]
    trainer = build_step_trainer(cfg, model, batches, build_optimizer(cfg, model))
    losses = []
    with EventStorage() as storage:
        for trainer.iter in range(steps):
            trainer.run_step()
            losses.append(storage.latest()["total_loss"][0])
    return losses, model


@pytest.mark.parametrize("name", VARIANTS)
def test_losses_and_gradients_are_those_of_the_cpu(name):
    results = {}
    for device in ("cpu", "cuda"):
        losses, model = train(device, VARIANTS[name], steps=1)
        grads = {k: p.grad.cpu() for k, p in model.named_parameters() if p.grad is not None}
        results[device] = losses, grads
    assert results["cuda"][0] == pytest.approx(results["cpu"][0], rel=1e-4)
    expected, found = results["cpu"][1], results["cuda"][1]
    norm = torch.stack([x.norm() for x in expected.values()]).norm()
    off = torch.stack([(found[k] - x).norm() for k, x in expected.items()]).norm()
    assert off < 1e-3 * norm


@pytest.mark.parametrize("nms", [1.0, 0.7])
def test_predictions_are_those_of_the_cpu(nms):
    test = "MODEL.IGVG.TEST."
    opts = [test + "SCORE_THRESH_TEST", 0.1, test + "NMS_THRESH", nms]
    batch = random_batch((1, 1, 0))
    batch[0].update(height=20, width=30, content_size=(32, 64), frame_sizes=(48,))
    outputs = {}
    for device in ("cpu", "cuda"):
        model = train(device, opts, steps=0)[1].eval()
        with torch.no_grad():
            outputs[device] = [output_to_host(x) for x in model(batch)]
    for found, expected in zip(outputs["cuda"], outputs["cpu"]):
        a, b = found["candidates"], expected["candidates"]
        torch.testing.assert_close(a.scores, b.scores, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor, rtol=1e-3, atol=1e-2)
        assert (found["mask"] != expected["mask"]).float().mean() < 0.01
        assert found["no_target"] == expected["no_target"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains_as_float32_does(precision):
    if precision == "bf16" and torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("bf16 needs compute capability 8.0 or higher")
    opts = ["SOLVER.BASE_LR", 0.001]
    expected, _ = train("cuda", opts, steps=30)
    amp = ["SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", precision]
    found, model = train("cuda", [*opts, *amp], steps=30)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())
    assert sum(found[-5:]) == pytest.approx(sum(expected[-5:]), rel=0.2)


def test_a_step_waits_for_the_matches_and_for_the_numbers():
    """PyTorch itself says where the host waits."""
    opts = ["SOLVER.ACCUMULATION_STEPS", 2]
    cfg = tiny_cfg([*opts, "MODEL.DEVICE", "cuda", "SOLVER.IMS_PER_BATCH", 4])
    model = build_model(cfg).train()
    batches = [random_batch(COUNTS)] * 2
    trainer = build_step_trainer(cfg, model, batches, build_optimizer(cfg, model))
    with EventStorage():
        trainer.iter = 0
        trainer.run_step()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with pytest.warns(UserWarning, match="synchronizing") as found:
                trainer.iter = 1
                trainer.run_step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len([x for x in found if "synchronizing" in str(x.message)]) == 3


PRESETS = {"gRefCOCO/igvg_beit3_base_320_24gb.yaml": 24}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_needs_what_its_header_says(name, capsys):
    """Two steps of the whole batch, with random weights and data."""
    path = ROOT / "configs" / name
    if torch.cuda.get_device_properties(0).total_memory < PRESETS[name] * 0.95 * 2**30:
        pytest.skip(f"the preset is for {PRESETS[name]} GB")
    cfg = get_cfg()
    add_igvg_config(cfg)
    cfg.merge_from_file(str(path))
    found = benchmark("training", cfg, "--steps", "1").peak_mib / 1024
    estimate = float(re.search(r"([\d.]+) GiB", path.read_text())[1])
    with capsys.disabled():
        print(f"\n{name}: {found:.1f} GiB, header {estimate}")
    assert found < 0.9 * PRESETS[name] and found == pytest.approx(estimate, rel=0.35)


def test_throughput(capsys):
    """Printed, to be compared between machines; it only has to be there."""
    cfg = get_cfg()
    add_igvg_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs/gRefCOCO/igvg_beit3_base_320_10ep.yaml"))
    cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", 8])
    seconds = benchmark("training", cfg, "--warmup", "2").seconds
    with capsys.disabled():
        print(f"\n{torch.cuda.get_device_name()}: {8 / min(seconds):.1f} samples/s, ViT-B, float32")
    assert min(seconds) > 0


def test_a_stopped_run_is_continued(tmp_path):
    """The losses go on; not bit by bit, because some gradients of CUDA are not deterministic."""
    subprocess.run(
        [sys.executable, "datasets/prepare_synthetic.py", "--output", f"{tmp_path}/shapes"]
        + ["--scale", "0.05"],
        cwd=ROOT,
        check=True,
    )
    lines = {}
    for name, parts in {"whole": (20,), "parts": (10, 20)}.items():
        folder = tmp_path / name
        for end in parts:
            run_training(tmp_path, folder, ["SOLVER.CHECKPOINT_PERIOD", "10"], end)
        records = [json.loads(x) for x in (folder / "metrics.json").read_text().splitlines()]
        lines[name] = {r["iteration"]: r["total_loss"] for r in records if "total_loss" in r}
    assert lines["parts"][19] == pytest.approx(lines["whole"][19], rel=0.05)


def run_training(data, folder, opts, stop_at, num_gpus=1):
    """20 iterations of the tiny model, stopped by SIGTERM after ``stop_at`` of them."""
    command = [sys.executable, "train_net.py", "--resume", "--num-gpus", str(num_gpus)]
    command += ["--config-file", "configs/Shapes/igvg_tiny.yaml", "OUTPUT_DIR", str(folder)]
    command += ["SOLVER.MAX_ITER", "20", "DATASETS.TEST", "()", "TEST.VIS_SAMPLES", "0", *opts]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ,
                               "DETECTRON2_DATASETS": str(data)})  # fmt: skip
    while process.poll() is None:
        if stop_at < 20 and (folder / f"model_{stop_at - 1:07d}.pth").exists():
            process.terminate()
        time.sleep(0.2)
    assert process.returncode in (0, 75), f"exit code {process.returncode}"


def test_the_benchmark_times_kernels_by_events():
    for what in ("inference", "training"):
        cfg = tiny_cfg(["MODEL.DEVICE", "cuda", "SOLVER.IMS_PER_BATCH", 4])
        result = benchmark(what, cfg, "--steps", "3", "--no-torchscale")
        sums = [sum(times) for times in zip(*result.parts.values())]
        assert 0.2 < min(sums) / min(result.seconds) < 5 and result.rates["gemm_gflops"] > 0
        assert 0 < result.before_mib < result.peak_mib < 2000
