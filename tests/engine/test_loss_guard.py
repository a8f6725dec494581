"""A loss that is not finite stops the training before it reaches the weights, or is passed over."""

import json

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from igvg_d2.engine.guards import BadSampleLog, LossGuard
from igvg_d2.testing import random_batch, tiny_cfg


class Toy(nn.Module):
    """Two losses; the first is the mean of a BatchNorm layer of the inputs."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, batch):
        x = self.norm(torch.tensor([[sample["x"]] for sample in batch]))
        return {"loss_a": x.square().sum() + self.unused.sum(), "loss_b": self.norm.weight.sum()}


def make_batch(*values):
    return [{"x": x, "sample_id": f"s{i}", "file_name": f"{i}.jpg"} for i, x in enumerate(values)]


BAD = make_batch(1.0, float("nan"))
GOOD = make_batch(1.0, 2.0)


def test_a_bad_loss_raises_with_iteration_component_and_samples():
    model = Toy()
    LossGuard(model)
    with EventStorage(7):
        model(GOOD)
        with pytest.raises(FloatingPointError, match="iteration=7") as error:
            model(BAD)
    message = str(error.value)
    assert "rank 0: loss_a = nan; samples s0 ('0.jpg'), s1 ('1.jpg')" in message
    assert "loss_b" not in message
    model.eval()
    model(BAD)


def test_skipping_leaves_no_trace():
    model = Toy()
    log = BadSampleLog(Toy(), "")
    LossGuard(model, log)
    model(GOOD)
    before = {k: v.clone() for k, v in model.state_dict().items() if v.is_floating_point()}
    losses = model(BAD)
    sum(losses.values()).backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())
    assert list(losses) == ["loss_a", "loss_b"] and all(x == 0 for x in losses.values())
    for key, value in before.items():
        assert torch.equal(model.state_dict()[key], value), key
    assert [s["sample_id"] for s in log._pending] == ["s0", "s1"]
    assert model(GOOD)["loss_a"] > 0


def test_a_diverged_training_stops_also_when_skipping():
    model = Toy()
    LossGuard(model, BadSampleLog(Toy(), ""), max_in_a_row=2)
    for batch in (BAD, BAD, GOOD, BAD, BAD):
        model(batch)
    with pytest.raises(FloatingPointError, match="2 are skipped: training has diverged"):
        model(BAD)


def test_only_losses_may_be_returned():
    model = Toy()
    LossGuard(model)
    model.forward = lambda batch: {"loss_a": torch.zeros(()), "accuracy": torch.ones(())}
    with pytest.raises(ValueError, match=r"\['accuracy'\]"):
        model(GOOD)


def test_the_real_model_is_guarded():
    model = build_model(tiny_cfg())
    LossGuard(model)
    batch = random_batch([1, 0])
    with EventStorage():
        assert all(torch.isfinite(x) for x in model(batch).values())
        batch[0]["image"] = torch.full((3, 64, 64), float("nan"))
        with pytest.raises(FloatingPointError, match="samples 0 .*, 1 "):
            model(batch)


class FakeTrainer:
    """What BadSampleLog reads of a trainer."""

    start_iter = 0
    iter = 0
    max_iter = 100

    def __init__(self):
        self.storage = EventStorage()


def make_log(tmp_path, start_iter=0, **kwargs):
    model = Toy()
    log = BadSampleLog(model, str(tmp_path), **{"periods": (1,), **kwargs})
    log.trainer = FakeTrainer()
    log.trainer.start_iter = start_iter
    log.before_train()
    return model, log


def report(number):
    return {
        "sample_id": f"bad{number}",
        "file_name": f"{number}.jpg",
        "reason": f"cannot decode bad{number}",
        "replaced_by": "s0",
        "dataset_size": 5,
    }


def lines(tmp_path):
    return [json.loads(x) for x in (tmp_path / "bad_samples.jsonl").read_text().splitlines()]


def test_bad_samples_are_listed_once_and_across_a_resume(tmp_path, caplog):
    model, log = make_log(tmp_path)
    for numbers in ([0], [0, 1], []):
        batch = make_batch(1.0, 2.0)
        batch[0]["bad_samples"] = [report(n) for n in numbers]
        model(batch)
        log.after_step()
    log.add_batch([{"sample_id": "s0", "file_name": "0.jpg"}], "Loss became NaN")
    log.after_step()
    assert log.num_bad == 2 and log.trainer.storage.latest()["bad_samples"][0] == 2
    assert [x["sample_id"] for x in lines(tmp_path)] == ["bad0", "bad1", "s0"]
    assert lines(tmp_path)[0]["reason"] == "cannot decode bad0"
    assert caplog.text.count("cannot decode bad0") == 1
    with open(tmp_path / "bad_samples.jsonl", "a") as file:
        file.write('{"sample_id": "half')
    _, resumed = make_log(tmp_path, start_iter=10)
    assert resumed.num_bad == 2 and len(lines(tmp_path)) == 3
    _, new = make_log(tmp_path)
    assert new.num_bad == 0 and lines(tmp_path) == []


def test_too_many_bad_samples_stop_the_training(tmp_path):
    model, log = make_log(tmp_path)
    batch = make_batch(1.0, 2.0)
    batch[1]["bad_samples"] = [report(n) for n in range(3)]
    model(batch)
    with pytest.raises(
        ValueError, match="3 of 5 training samples are bad, more than the share of 0.5"
    ):
        log.after_step()
    assert len(lines(tmp_path)) == 3
