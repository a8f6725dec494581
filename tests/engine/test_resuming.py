"""A run that is interrupted and resumed leaves what an uninterrupted one leaves."""

import json
import os
import signal
import struct

import pytest
import torch

from igvg_d2.checkpoint import GroundingCheckpointer, read_checkpoint
from igvg_d2.engine.checkpointing import BestModelHook, CheckpointHook
from igvg_d2.engine.config_checks import check_config
from igvg_d2.engine.evaluation_hook import preserved_training_state
from igvg_d2.engine.monitoring import MetricsWriter
from igvg_d2.io.json_stream import read_metrics
from igvg_d2.testing import tiny_cfg
from tests.engine.toy_training import Toy, ToyTrainer, toy_cfg, train

# What differs from run to run.
TIMES = ("time", "data_time", "rank_data_time", "eta_seconds", "eval_seconds")


def metrics(folder):
    """Lines of metrics.json without times; each iteration once."""
    with open(os.path.join(folder, "metrics.json")) as file:
        lines = [json.loads(line) for line in file]
    assert len({line["iteration"] for line in lines}) == len(lines)
    return {x["iteration"]: {k: v for k, v in x.items() if k not in TIMES} for x in lines}


def checkpoints(folder):
    return sorted(name for name in os.listdir(folder) if name.endswith(".pth"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder and trainer of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    trainer, _ = train(toy_cfg(folder))
    assert trainer.evaluated == [14, 29, 40] and sorted(metrics(folder)) == [14, 19, 29, 39, 40]
    return folder, trainer


@pytest.mark.parametrize("where", [3, 9, 14, 22, 29, 38, "eval"])
@pytest.mark.parametrize("how", ["crash", "stop"])
def test_resumed_run_equals_the_uninterrupted_one(whole, tmp_path, how, where):
    cfg = toy_cfg(tmp_path)
    disturbance = {"fail_at": where} if how == "crash" else {"signals": {where: signal.SIGTERM}}
    first, code = train(cfg, **disturbance)
    assert code == ("crash" if how == "crash" else 75)
    rest, code = train(cfg, resume=True)
    assert code is None
    # A stop loses nothing, a crash what came after the last checkpoint.
    last = 14 if where == "eval" else where
    assert rest.start_iter == (last + 1 if how == "stop" else last // 10 * 10)
    assert {**first.losses, **rest.losses} == whole[1].losses
    for name, value in whole[1].model.state_dict().items():
        assert torch.equal(value, rest.model.state_dict()[name]), name
    assert metrics(tmp_path) == metrics(whole[0])
    if how == "stop":
        assert first.evaluated + rest.evaluated == [14, 29, 40]
        with open(tmp_path / "run_summary.json") as file:
            assert json.load(file)["iterations"] == 40


def test_stop_in_the_final_evaluation(tmp_path):
    cfg = toy_cfg(tmp_path, "TEST.EVAL_PERIOD", 0)
    first, code = train(cfg, signals={"eval": signal.SIGUSR1})
    assert code == 75 and first.evaluated == [] and "model_final.pth" in checkpoints(tmp_path)
    rest, code = train(cfg, resume=True)
    assert code is None and rest.losses == {} and rest.evaluated == [40]
    assert sorted(metrics(tmp_path)) == [19, 39, 40]


def test_stop_at_the_last_step_still_ends_well(tmp_path):
    first, code = train(toy_cfg(tmp_path), signals={39: signal.SIGTERM})
    assert code == 75 and first.start_iter == 0 and first.evaluated == [14, 29]
    assert train(toy_cfg(tmp_path), resume=True)[0].evaluated == [40]


def test_killed_between_checkpoint_and_evaluation(whole, tmp_path):
    """Iteration 29 has both, in this order; the line of metrics.json comes last."""
    cfg = toy_cfg(tmp_path, "TEST.EVAL_PERIOD", 20)
    train(cfg, fail_at="eval")
    assert sorted(metrics(tmp_path)) == [19]  # written as the process ended
    lines = (tmp_path / "metrics.json").read_text()
    (tmp_path / "metrics.json").write_text("")  # as after SIGKILL
    rest, _ = train(cfg, resume=True)
    assert rest.start_iter == 20 and rest.evaluated == [19, 40]
    found = metrics(tmp_path)
    assert "gres/gIoU" in found[19] and sorted(found) == [19, 39, 40]
    known = json.loads(lines)
    assert all(found[19][key] == known[key] for key in known if key not in TIMES)
    again, _ = train(cfg, resume=True)
    assert again.evaluated == [40] and metrics(tmp_path) == found


def test_keep_the_newest(tmp_path):
    other = tmp_path / "model_0000099.pth"
    other.write_bytes(b"of another run")
    cfg = toy_cfg(tmp_path, "SOLVER.CHECKPOINT_KEEP", 2, "TEST.BEST_METRIC", "gres/gIoU")
    train(cfg, fail_at=25)
    kept = ["model_0000009.pth", "model_0000019.pth", "model_0000099.pth", "model_best.pth"]
    assert checkpoints(tmp_path) == kept
    train(cfg, resume=True)
    kept = ["model_0000029.pth", "model_0000039.pth", "model_0000099.pth"]
    assert checkpoints(tmp_path) == [*kept, "model_best.pth", "model_final.pth"]
    assert other.read_bytes() == b"of another run"


def test_last_checkpoint_is_never_deleted(tmp_path):
    checkpointer = GroundingCheckpointer(torch.nn.Linear(1, 1), str(tmp_path))
    hook = CheckpointHook(checkpointer, 1, keep=1)
    hook.step(0)
    checkpointer.tag_last_checkpoint, tag = lambda name: None, checkpointer.tag_last_checkpoint
    hook.step(1)
    assert checkpoints(tmp_path) == ["model_0000000.pth", "model_0000001.pth"]
    checkpointer.tag_last_checkpoint = tag
    hook.step(2)
    assert checkpoints(tmp_path) == ["model_0000002.pth"]


def test_half_written_files_are_removed(tmp_path):
    train(toy_cfg(tmp_path), fail_at=12)
    (tmp_path / "model_0000010.pth.unfinished").write_bytes(b"x")
    train(toy_cfg(tmp_path), resume=True, fail_at=13)
    assert not list(tmp_path.glob("*.unfinished"))


NAN = float("nan")


@pytest.mark.parametrize("interrupted", [None, 18, 21, 31])
def test_best_model(tmp_path, interrupted):
    """The best of 14, 29 and the end, wherever the run was interrupted; NaN is never the best."""
    scores = {4: NAN, 9: 3.0, 14: 2.0, 19: 5.0, 24: NAN, 29: 4.0, 34: 5.0}
    opts = ["TEST.EVAL_PERIOD", 5, "TEST.BEST_METRIC", "gres/gIoU"]
    cfg = toy_cfg(tmp_path, *opts)
    if interrupted is not None:
        train(cfg, scores=scores, fail_at=interrupted)
    trainer, _ = train(cfg, resume=True, scores=scores)
    best = read_checkpoint(str(tmp_path / "model_best.pth"))
    assert best["iteration"] == 19
    assert best["best"] == {"metric": "gres/gIoU", "value": 5.0, "iteration": 19}
    at_19 = read_checkpoint(str(tmp_path / "model_0000019.pth"))
    for name, value in at_19["model"].items():
        assert torch.equal(value, best["model"][name]), name
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    stored = read_checkpoint(str(tmp_path / "model_final.pth"))["trainer"]["hooks"]
    assert stored["BestModelHook"] == best["best"]
    # A model that is loaded from it is the one that was evaluated.
    GroundingCheckpointer(Toy()).load(str(tmp_path / "model_best.pth"))


def test_best_model_of_another_metric_is_forgotten(tmp_path, caplog):
    hook = BestModelHook(GroundingCheckpointer(Toy(), str(tmp_path)), "a")
    hook.load_state_dict({"metric": "b", "value": 9.0, "iteration": 3})
    assert hook.value is None and "is now a and begins anew" in caplog.text
    hook.update({"a": 1.0}, 5, Toy())
    assert hook.state_dict() == {"metric": "a", "value": 1.0, "iteration": 5}


def test_unknown_metric_is_named_with_those_there_are(tmp_path):
    cfg = toy_cfg(tmp_path, "TEST.BEST_METRIC", "gIoU")
    trainer = ToyTrainer(cfg)
    with pytest.raises(ValueError, match="no metric 'gIoU', choose one of gres/gIoU"):
        trainer.train()
    opts = ["INPUT.TOKENIZER.NAME", "ShapesTokenizer", "DATASETS.TEST", ("a", "b")]
    cfg = tiny_cfg(["TEST.BEST_METRIC", "gres/gIoU", "SOLVER.CHECKPOINT_KEEP", -1, *opts])
    with pytest.raises(
        ValueError, match="BEST_METRIC: 'gres/gIoU' must begin with(.|\n)*CHECKPOINT_KEEP=-1 must"
    ):
        check_config(cfg)


def test_evaluation_leaves_no_trace():
    model = Toy().train()
    model.linear.bias.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    assert modes["norm"] and not modes["frozen"]
    state, statistics = torch.get_rng_state(), model.norm.running_mean.clone()
    with pytest.raises(RuntimeError, match="in between"):
        with preserved_training_state(model):
            model.eval().requires_grad_(False)
            torch.set_grad_enabled(False)
            model.linear.training = True
            torch.manual_seed(3)
            model(torch.ones(4, 3))
            raise RuntimeError("in between")
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert torch.is_grad_enabled() and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model.norm.running_mean, statistics)


def test_metrics_file_is_mended(tmp_path):
    path = tmp_path / "metrics.json"
    lines = ['{"iteration": 19, "a": 1}', '{"iteration": 39, "a": 2}', '{"iteration": 19, "b": 3}']
    path.write_text("\n".join([*lines, '{"iteration": 59, "a"']))
    writer = MetricsWriter(str(path), 39)
    assert read_metrics(str(path)) == {19: {"iteration": 19, "a": 1, "b": 3}}
    assert path.read_text().endswith("}\n") and writer.last == 19
    assert MetricsWriter(str(path)).last == -1
    assert not path.exists() and read_metrics(f"{path}.previous")


def test_tensorboard_hides_points_that_are_made_again(tmp_path):
    event_pb2 = pytest.importorskip("tensorboard.compat.proto.event_pb2")
    cfg = toy_cfg(tmp_path)
    train(cfg, fail_at=25)
    old = set(tmp_path.glob("events*"))
    train(cfg, resume=True)
    (new,) = set(tmp_path.glob("events*")) - old
    content, starts = new.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        event = event_pb2.Event.FromString(content[12 : 12 + length])
        if event.HasField("session_log"):
            starts.append(event.step)
        content = content[16 + length :]
    assert starts == [20]
