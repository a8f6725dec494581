"""Console, metrics.json, TensorBoard and Weights & Biases show what a training run does."""

import json
import logging
import math
import sys
import types

import numpy as np
import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.engine.hooks import IterationTimer
from detectron2.utils.events import EventStorage
from torch import nn

from igvg_d2.engine.monitoring import MonitorHook, TrainingLogHook, WriterHook, build_writers
from igvg_d2.solver import build_optimizer
from igvg_d2.testing import tiny_cfg


class Toy(nn.Module):
    """A model with an encoder and a rest."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(2, 2)
        self.rest = nn.Linear(2, 1)

    def forward(self, batch):
        return {
            "loss_a": self.rest(self.backbone(batch)).square().mean(),
            "loss_b": 0.0 * self.rest.bias.sum() + 2.0,
        }


class Loader:
    """The same batch for ever."""

    def __iter__(self):
        while True:
            yield torch.ones(4, 2)


def make_cfg(tmp_path, *opts):
    return tiny_cfg(
        [
            "SOLVER.BACKBONE_MULTIPLIER", 0.1,
            "SOLVER.BASE_LR", 0.01,
            "OUTPUT_DIR", str(tmp_path),
            *opts,
        ]
    )  # fmt: skip


def train(cfg, iterations=20):
    model = Toy()
    trainer = SimpleTrainer(model, Loader(), build_optimizer(cfg, model))
    trainer.build_writers = lambda: build_writers(cfg, iterations)
    log = TrainingLogHook()
    trainer.register_hooks([log, MonitorHook(4, 16), IterationTimer(), WriterHook(log, 10)])
    trainer.train(0, iterations)
    return trainer


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_everything_is_in_console_json_and_tensorboard(tmp_path, caplog, clip):
    cfg = make_cfg(tmp_path, "SOLVER.CLIP_TOTAL_NORM", clip)
    with caplog.at_level(logging.INFO):
        train(cfg)
    line = [r.getMessage() for r in caplog.records if "iter: 19" in r.getMessage()][0]
    for text in ("eta: 0:00:00", "total_loss: ", "loss_a: ", "loss_b: 2", "time: ", "data_time: "):
        assert text in line
    records = [json.loads(x) for x in (tmp_path / "metrics.json").read_text().splitlines()]
    wanted = (
        "total_loss loss_a loss_b lr/backbone lr/rest grad_norm samples_per_second time".split()
    )
    wanted += ["data_time", "memory_mib", "eta_seconds", "epoch"]
    assert set(wanted) <= records[-1].keys() and records[-1]["iteration"] == 19
    assert all(math.isfinite(records[-1][key]) for key in wanted)
    assert records[-1]["lr/backbone"] == pytest.approx(0.1 * records[-1]["lr/rest"])
    assert records[-1]["memory_mib"] > 10 and records[-1]["samples_per_second"] > 0
    events = [path.read_bytes() for path in tmp_path.glob("events.out.tfevents.*")]
    assert len(events) == 1 and all(key.encode() in events[0] for key in wanted)


def test_the_norm_is_logged_and_clipped_only_if_asked(tmp_path):
    norms = {}
    for clip in (0.0, 1e-4):
        torch.manual_seed(0)
        trainer = train(make_cfg(tmp_path, "SOLVER.CLIP_TOTAL_NORM", clip), iterations=1)
        grads = [p.grad for p in trainer.model.parameters()]
        norms[clip] = float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in grads])))
        assert trainer.storage.latest()["grad_norm"][0] == pytest.approx(norms[0.0], rel=1e-5)
    assert norms[1e-4] == pytest.approx(1e-4, rel=1e-3)


def test_images_do_not_pile_up_in_other_processes(tmp_path, monkeypatch):
    model = Toy()
    trainer = SimpleTrainer(model, Loader(), build_optimizer(make_cfg(tmp_path), model))
    hook = MonitorHook(4)
    trainer.register_hooks([hook])
    monkeypatch.setattr("detectron2.utils.comm.is_main_process", lambda: False)
    with EventStorage() as trainer.storage:
        hook.before_train()
        hook.before_step()
        trainer.storage.put_image("image", np.zeros((3, 2, 2), np.uint8))
        hook.after_step()
        assert trainer.storage._vis_data == []


def test_weights_and_biases_follows_tensorboard(tmp_path, monkeypatch):
    asked = []

    def init(**kwargs):
        asked.append(kwargs)
        return types.SimpleNamespace(id="run7")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    cfg = make_cfg(tmp_path, "WANDB.ENABLED", True)
    train(cfg)
    # wandb itself reads WANDB_PROJECT and WANDB_NAME, unless they are given.
    assert not {"project", "name"} & set(asked[0])
    assert asked[0]["sync_tensorboard"] and asked[0]["config"]["SOLVER.BASE_LR"] == 0.01
    train(cfg)
    assert [kwargs["id"] for kwargs in asked] == [None, "run7"]  # continued


def test_weights_and_biases_missing_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="WANDB.ENABLED.*pip install wandb"):
        build_writers(make_cfg(tmp_path, "WANDB.ENABLED", True), 10)
