"""Devices that a config may name, on pretended machines."""

import functools
import logging
from datetime import timedelta

import pytest
import torch
from torch import nn

from igvg_d2.engine import GroundingPredictor, check_config
from igvg_d2.engine import devices as devices_module
from igvg_d2.engine import launch, setup_config
from igvg_d2.engine.devices import find_device
from igvg_d2.engine.train_step import GroundingStepTrainer, build_step_trainer
from igvg_d2.testing import tiny_cfg
from tests.engine.test_config_checks import CONFIG
from tests.engine.test_launch import in_process


@pytest.fixture
def machine(monkeypatch):
    """A machine with so many GPUs, of which PyTorch can use some."""

    def pretend(gpus, usable, capability=(9, 0)):
        files = [f"/dev/nvidia{i}" for i in range(gpus)]
        monkeypatch.setattr(devices_module.glob, "glob", lambda pattern: files)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: usable > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: usable)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Pretended")

    return pretend


@pytest.mark.parametrize(
    "gpus, usable, wanted, found",
    [
        (0, 0, "cuda", "cpu"),
        (0, 0, "cpu", "cpu"),
        (2, 2, "cpu:0", "cpu"),
        (2, 2, "cuda", "cuda"),
        (2, 2, "cuda:1", "cuda:1"),
    ],
)
def test_devices_that_can_be_used(machine, caplog, gpus, usable, wanted, found):
    machine(gpus, usable)
    assert find_device(wanted, num_processes=2) == found
    assert not caplog.records


@pytest.mark.parametrize(
    "gpus, usable, wanted, message",
    [
        (2, 2, "cuda:2", "'cuda:2'.* can use 2 GPUs.* MODEL.DEVICE cpu"),
        (2, 0, "cuda:0", "'cuda:0'.* can use 0 GPUs .*has some"),
        (0, 0, "cuda:0", "has some|seems to have none"),
        (0, 0, "mps", "MODEL.DEVICE 'mps'"),
        (0, 0, "gpu", "MODEL.DEVICE: expected .*, found 'gpu'"),
        (0, 0, "cuda:x", "MODEL.DEVICE: expected .*, found 'cuda:x'"),
    ],
)
def test_devices_that_cannot_be_used(machine, gpus, usable, wanted, message):
    machine(gpus, usable)
    with pytest.raises(ValueError, match=message):
        find_device(wanted)


@pytest.mark.parametrize("gpus, is_default", [(1, True), (0, False)])
def test_the_cpu_is_no_silent_substitute(machine, caplog, gpus, is_default):
    """A broken driver, or a GPU that was asked for."""
    machine(gpus, 0)
    assert find_device("cuda", 1, is_default) == "cpu"
    assert "can use 0 GPUs" in caplog.text and "runs on the CPU" in caplog.text
    with pytest.raises(ValueError, match="can use 0 GPUs.* MODEL.DEVICE cpu"):
        find_device("cuda", 2, is_default)


def test_a_config_asks_for_its_device(machine, caplog):
    machine(0, 0)
    assert setup_config(CONFIG, num_processes=2).MODEL.DEVICE == "cpu" and not caplog.records
    with pytest.raises(ValueError, match="MODEL.DEVICE"):
        setup_config(CONFIG, ["MODEL.DEVICE", "cuda"], num_processes=2)


def test_a_config_made_in_python_runs_without_a_gpu(machine):
    machine(0, 0)
    predictor = GroundingPredictor(tiny_cfg(["MODEL.DEVICE", "cuda", *SHAPES]))
    assert predictor.model.device.type == "cpu"


SHAPES = ["INPUT.TOKENIZER.NAME", "ShapesTokenizer", "MODEL.BEIT3.VOCAB_SIZE", 256]


@pytest.mark.parametrize(
    "precision, capability, is_fine",
    [("bf16", (7, 5), False), ("bf16", (8, 0), True), ("tf32", (7, 0), False)]
    + [("tf32", (9, 0), True), ("fp16", (7, 0), True)],
)
def test_precisions_that_a_gpu_would_emulate_are_refused(machine, precision, capability, is_fine):
    machine(1, 1, capability)
    cfg = setup_config(CONFIG, ["SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", precision])
    if is_fine:
        return check_config(cfg)
    found = "{}.{}".format(*capability)
    with pytest.raises(ValueError, match=rf"'{precision}' needs .* 8.0, .*Pretended.* has {found}"):
        check_config(cfg)


def test_tf32_is_for_gpus():
    cfg = setup_config(CONFIG, ["SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", "tf32"])
    cfg.MODEL.DEVICE = "cpu"
    with pytest.raises(ValueError, match="'tf32' is for GPUs, not for cpu"):
        check_config(cfg)


class Flags(nn.Linear):
    """Records the flags under which it computes."""

    def forward(self, batch):
        self.seen = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        return {"loss_a": self.weight.sum()}


@pytest.mark.parametrize(
    "precision, seen", [("tf32", ("high", True)), ("bf16", ("highest", False))]
)
def test_tf32_holds_in_training_only(precision, seen):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    cfg = tiny_cfg(["SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", precision])
    model = Flags(2, 2)
    step = build_step_trainer(cfg, model, [], torch.optim.SGD(model.parameters(), lr=0.1))
    assert isinstance(step, GroundingStepTrainer)
    step.accumulate([[0]])
    assert model.seen == seen
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_torchrun_checks_devices_too(monkeypatch):
    names = {"RANK": 0, "WORLD_SIZE": 999, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 999}
    for name, value in {**names, "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ValueError, match="--num-gpus 999: this machine offers .*torchrun"):
        launch(print, 1, device="cuda")


def look_at_groups(given):
    """Makes a group as Detectron2 does, in a job of one process; what the groups were given."""
    from torch import distributed

    from igvg_d2.engine.launch import _run_in_group

    new_group = distributed.new_group

    def record(*args, timeout=None, **kwargs):
        given.append(timeout)
        return new_group(*args, timeout=timeout, **kwargs)

    distributed.new_group = record
    job = (0, 1, 1, given.pop(), "cpu", timedelta(seconds=77))
    result = _run_in_group(0, lambda: distributed.new_group([0]) and 5, (), job)
    assert distributed.new_group is record and not distributed.is_initialized()
    return result, given


def test_the_timeout_reaches_every_group_and_the_job_is_left(tmp_path):
    result, given = in_process(functools.partial(look_at_groups, [f"file://{tmp_path}/meeting"]))
    assert result == 5 and given == [timedelta(seconds=77)] * 2


@pytest.fixture(autouse=True)
def logged(caplog):
    caplog.set_level(logging.WARNING)
