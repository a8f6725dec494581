"""What an accelerator is asked to do (device_cases.py), what travels, what stops a step."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from igvg_d2.engine.guards import LossGuard
from igvg_d2.engine.train_step import WeightAverage, build_step_trainer
from igvg_d2.modeling.transfer import to_device
from igvg_d2.solver import build_optimizer
from igvg_d2.testing import random_batch, random_targets, tiny_cfg

CASES = Path(__file__).with_name("device_cases.py")


def test_on_a_pretended_device():
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", str(CASES)]
    root = CASES.parents[2]
    result = subprocess.run(command, cwd=root, text=True, stdout=subprocess.PIPE, check=False)
    if "this PyTorch knows no device in Python" in result.stdout:
        pytest.skip("this PyTorch knows no device in Python")
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("where, message", [("image", "Loss became .* samples 2 .*, 3 "),
                                            ("gradient", "gradient became infinite")])  # fmt: skip
def test_what_is_not_finite_stops_the_step_before_the_weights(where, message):
    """The second micro-batch alone is bad, and is the only one that is named."""
    cfg = tiny_cfg(["SOLVER.ACCUMULATION_STEPS", 2, "SOLVER.IMS_PER_BATCH", 4])
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    guard = LossGuard(model)
    trainer = build_step_trainer(cfg, model, [random_batch((1, 0, 2, 1))], optimizer)
    trainer.defer(guard)
    average = WeightAverage(model, optimizer, 0.9)
    if where == "image":
        trainer.data_loader[0][3]["image"] = torch.full((3, 64, 64), math.nan)
    else:
        bias = model.global_head.predictor.bias
        bias.register_hook(lambda grad: grad * math.inf)
    before = [p.detach().clone() for p in model.parameters()]
    trainer.iter = 5
    with EventStorage(5), pytest.raises(FloatingPointError) as error:
        trainer.run_step()
    text = str(error.value).replace("\n", " ")
    assert "iteration=5" in text and "samples 0" not in text
    assert re.search(message, text), text
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before))
    assert average.num_updates == 0


def test_a_gpu_gets_pinned_memory_and_masks_as_bytes(monkeypatch):
    pinned, moved = [], []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(x) or x)
    to = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor,
        "to",
        lambda x, device, non_blocking: moved.append((device.type, non_blocking)),
    )
    to_device(torch.ones(2), torch.device("cuda"))
    to_device(torch.ones(2), torch.device("cpu"))
    assert len(pinned) == 1 and moved == [("cuda", True), ("cpu", True)]
    monkeypatch.setattr(torch.Tensor, "to", to)
    sent = []
    monkeypatch.setattr(
        "igvg_d2.modeling.targets.to_device", lambda x, device: sent.append(x.dtype) or x
    )
    targets = random_targets([1, 0])
    assert sent == [torch.float32, torch.bool, torch.bool, torch.bool]
    assert targets.masks.dtype == torch.float32
