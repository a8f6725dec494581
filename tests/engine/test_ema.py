"""The average of the weights: its arithmetic, and where it is used."""

import logging
from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

import igvg_d2.modeling  # noqa: F401
from igvg_d2.checkpoint import GroundingCheckpointer
from igvg_d2.engine.guards import LossGuard
from igvg_d2.engine.hooks import AverageBatchNormHook
from igvg_d2.engine.train_step import WeightAverage
from igvg_d2.testing import random_batch, tiny_cfg


def make_average(decay=0.25):
    """A weight that SGD lowers by 1 a step, beside a BatchNorm layer."""
    model = nn.Module()
    model.w, model.norm = nn.Parameter(torch.tensor(0.0)), nn.BatchNorm1d(1)
    optimizer = torch.optim.SGD([model.w], lr=1.0)
    return model, optimizer, WeightAverage(model, optimizer, decay)


def step(model, optimizer):
    model.w.grad = torch.tensor(1.0)
    optimizer.step()


def test_average_by_hand():
    model, optimizer, average = make_average()
    values = []
    for number in range(4):
        model.norm.running_mean += 1.0
        model.norm.num_batches_tracked += 1
        step(model, optimizer)
        values.append(average.model.w.item())
    # Decays 1/10, 2/11, 3/12 = 1/4, and then 1/4 because 4/13 is larger; weights -1, -2, -3, -4.
    expected = [-0.9]
    for decay, weight in ((2 / 11, -2), (1 / 4, -3), (1 / 4, -4)):
        expected.append(decay * expected[-1] + (1 - decay) * weight)
    assert values == pytest.approx(expected)
    assert average.model.norm.running_mean.item() == pytest.approx(-expected[-1])
    assert average.model.norm.num_batches_tracked == 4
    assert model.w.item() == -4.0 and not average.model.training
    assert not any(p.requires_grad for p in average.model.parameters())


def test_average_continues_and_restarts():
    model, optimizer, average = make_average()
    for _ in range(3):
        step(model, optimizer)
    other, other_optimizer, continued = make_average()
    other.load_state_dict(model.state_dict())
    state = {k: v for k, v in average.state_dict().items()}
    continued.load_state_dict(state)
    step(model, optimizer)
    step(other, other_optimizer)
    assert continued.model.w.item() == average.model.w.item() and continued.num_updates == 4
    continued.restart()
    assert continued.model.w.item() == other.w.item() and continued.num_updates == 0


def test_a_real_model_is_averaged_and_evaluated():
    model = build_model(tiny_cfg(["MODEL.FREEZE", ["neck."]]))
    guard = LossGuard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    average = WeightAverage(model, optimizer, 0.9)
    batch = random_batch([1, 0])
    sum(model(batch).values()).backward()
    optimizer.step()
    model.eval()
    with torch.no_grad():
        before = average.model(batch)[0]["sem_seg"]
        assert not torch.equal(before, model(batch)[0]["sem_seg"])
        average.restart()
        assert torch.equal(average.model(batch)[0]["sem_seg"], model(batch)[0]["sem_seg"])
    assert guard.in_a_row == 0


def test_processes_share_the_statistics_of_the_average(monkeypatch):
    """A second process has twice the statistics of this one."""
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: tensor.mul_(3.0))
    model, _, average = make_average()
    hook = AverageBatchNormHook(3)
    for ema in (None, average):
        for iteration in range(3):
            hook.trainer = SimpleNamespace(iter=iteration, max_iter=9, model=model, ema=ema)
            hook.after_step()
    assert [m.norm.running_var.item() for m in (model, average.model)] == [1.5**2, 1.5]


def test_files_with_an_average_give_it_unless_a_training_is_resumed(tmp_path, caplog):
    model, optimizer, average = make_average()
    trainer = nn.Linear(1, 1)  # anything with a state
    step(model, optimizer)
    saved = GroundingCheckpointer(model, str(tmp_path), trainer=trainer, ema=average)
    saved.save("model_0000000", iteration=0)
    path = str(tmp_path / "model_0000000.pth")
    raw, averaged = model.w.item(), average.model.w.item()
    assert raw == -1.0 and averaged == pytest.approx(-0.9)

    def load(how, with_trainer=True, with_ema=True):
        other, _, other_average = make_average()
        kwargs = {"trainer": nn.Linear(1, 1)} if with_trainer else {}
        if with_ema:
            kwargs["ema"] = other_average
        how(GroundingCheckpointer(other, str(tmp_path), **kwargs))
        return other.w.item(), other_average.model.w.item(), other_average.num_updates

    resume = lambda c: c.resume_or_load("", resume=True)  # noqa: E731
    begin = lambda c: c.resume_or_load(path, resume=False)  # noqa: E731
    assert load(resume) == (raw, averaged, 1)
    assert load(resume, with_ema=False)[0] == raw
    with caplog.at_level(logging.INFO):
        assert load(lambda c: c.load(path), False, False)[0] == averaged
    assert f"'{path}' has averaged weights" in caplog.text
    assert load(resume, False, False)[0] == averaged  # --eval-only --resume
    assert load(begin) == (averaged, 0.0, 0)
