"""A short training in this process: losses fall, runs repeat, resume and evaluate exactly."""

import json
import math
import os

import pytest
import torch
from detectron2.utils.env import seed_all_rng

from igvg_d2.checkpoint import GroundingCheckpointer, read_checkpoint
from igvg_d2.engine import GroundingTrainer
from igvg_d2.testing import tiny_cfg

ITERATIONS = 36


@pytest.fixture(scope="module")
def shapes(register_shapes):
    """Names of a small training and a small validation set."""
    return register_shapes("test_learning", seed=2, scale=0.004, splits=("train", "val"))


def make_cfg(shapes, output, *opts):
    cfg = tiny_cfg(
        [
            "MODEL.BEIT3.VOCAB_SIZE", 256,
            "MODEL.BEIT3.MAX_TEXT_POSITIONS", 48,
            "INPUT.TOKENIZER.NAME", "ShapesTokenizer",
            "INPUT.TOKENIZER.MAX_TOKENS", 40,
            "INPUT.RANDOM_FLIP", "none",
            "INPUT.FLIP.HORIZONTAL_PROB", 0.5,
            "INPUT.COLOR_JITTER", 0.1,
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False,
            "DATALOADER.NUM_WORKERS", 0,
            "DATASETS.TRAIN", (shapes[0],),
            "DATASETS.TEST", (shapes[1],),
            "SOLVER.IMS_PER_BATCH", 8,
            "SOLVER.BASE_LR", 0.003,
            "SOLVER.CLIP_TOTAL_NORM", 1.0,
            "SOLVER.MAX_ITER", ITERATIONS,
            "SOLVER.WARMUP_ITERS", 4,
            "SOLVER.STEPS", (),
            "SOLVER.CHECKPOINT_PERIOD", ITERATIONS // 2,
            "SEED", 7,
            "OUTPUT_DIR", str(output),
        ]
    )  # fmt: skip
    cfg.merge_from_list(list(opts))
    cfg.freeze()
    return cfg


class RecordingTrainer(GroundingTrainer):
    """Keeps the total loss of every iteration; can be interrupted after one of them."""

    def __init__(self, cfg, stop_after=None):
        super().__init__(cfg)
        self.losses = []
        self.stop_after = stop_after

    def run_step(self):
        super().run_step()
        self.losses.append(self.storage.latest()["total_loss"][0])

    def after_step(self):
        super().after_step()
        if self.iter + 1 == self.stop_after:
            raise KeyboardInterrupt


def train(cfg, resume=False, stop_after=None):
    """A trainer after its run, interrupted or not; with the metrics of its evaluation."""
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    seed_all_rng(cfg.SEED)
    trainer = RecordingTrainer(cfg, stop_after)
    trainer.resume_or_load(resume=resume)
    try:
        trainer.train()
    except KeyboardInterrupt:
        return trainer, None
    return trainer, trainer.results


@pytest.fixture(scope="module")
def finished(shapes, tmp_path_factory):
    """Config, trainer and metrics of a whole run."""
    cfg = make_cfg(shapes, tmp_path_factory.mktemp("run"))
    return cfg, *train(cfg)


def test_losses_fall(finished):
    _, trainer, metrics = finished
    assert len(trainer.losses) == ITERATIONS and all(math.isfinite(x) for x in trainer.losses)
    first, last = sum(trainer.losses[:6]) / 6, sum(trainer.losses[-6:]) / 6
    assert last < 0.9 * first
    assert set(metrics) >= {"gres", "grec"} and 0 <= metrics["gres"]["gIoU"] <= 100


def test_loss_keys_are_logged_for_every_iteration_alike(finished):
    path = os.path.join(finished[0].OUTPUT_DIR, "metrics.json")
    with open(path) as file:
        records = [json.loads(line) for line in file]
    keys = [{k for k in r if k.startswith("loss_")} for r in records if "total_loss" in r]
    assert keys and all(k == keys[0] for k in keys)
    assert {"loss_ce", "loss_mask", "loss_sem_seg", "loss_no_target"} <= keys[0]


def test_same_seed_gives_the_same_losses(finished, shapes, tmp_path):
    cfg = make_cfg(shapes, tmp_path)
    trainer, _ = train(cfg, stop_after=10)
    assert trainer.losses == pytest.approx(finished[1].losses[:10], abs=1e-4)


def test_another_seed_gives_other_losses(finished, shapes, tmp_path):
    trainer, _ = train(make_cfg(shapes, tmp_path, "SEED", 8), stop_after=2)
    assert trainer.losses != pytest.approx(finished[1].losses[:2], abs=1e-4)


def test_evaluation_of_the_saved_weights_reproduces_the_numbers(finished, tmp_path):
    cfg, trainer, metrics = finished
    model = GroundingTrainer.build_model(cfg)
    GroundingCheckpointer(model).load(os.path.join(cfg.OUTPUT_DIR, "model_final.pth"))
    results = GroundingTrainer.test(cfg, model)
    for task in metrics:
        assert results[task] == pytest.approx(metrics[task], abs=0, nan_ok=True), task


def test_interrupted_run_continues_where_it_stopped(shapes, tmp_path):
    cfg = make_cfg(shapes, tmp_path)
    half = ITERATIONS // 2
    interrupted, _ = train(cfg, stop_after=half + 3)
    assert len(interrupted.losses) == half + 3
    resumed, metrics = train(cfg, resume=True)
    # From the checkpoint of iteration 18, not from where it was stopped, and not from the start.
    assert resumed.start_iter == half and len(resumed.losses) == ITERATIONS - half
    assert resumed.losses[0] < interrupted.losses[0] and metrics is not None
    assert resumed.optimizer.state_dict()["state"][0]["step"] == ITERATIONS
    with open(tmp_path / "run_summary.json") as file:
        assert json.load(file)["iterations"] == ITERATIONS
    again, _ = train(cfg, resume=True)
    assert again.losses == []


@pytest.mark.parametrize("num_workers", [0, 1])
def test_resumed_run_is_the_uninterrupted_one_bit_by_bit(shapes, tmp_path, num_workers):
    """With stochastic depth, dropout, augmentation and BatchNorm; an evaluation changes nothing."""
    opts = ["MODEL.BEIT3.DROP_PATH", 0.5, "MODEL.GROUNDING_HEAD.DROPOUT", 0.1]
    opts += ["SOLVER.MAX_ITER", 12, "SOLVER.CHECKPOINT_PERIOD", 5, "DATASETS.TEST", ()]
    opts += ["DATALOADER.NUM_WORKERS", num_workers]
    whole, _ = train(make_cfg(shapes, tmp_path / "whole", *opts))
    opts[opts.index("DATASETS.TEST") + 1] = (shapes[1],)
    cfg = make_cfg(shapes, tmp_path / "parts", *opts, "TEST.EVAL_PERIOD", 4)
    first, _ = train(cfg, stop_after=8)
    rest, _ = train(cfg, resume=True)
    assert rest.start_iter == 5 and first.losses[:5] + rest.losses == whole.losses
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, rest.model.state_dict()[name]), name


def test_best_model_is_the_one_that_was_evaluated(shapes, tmp_path):
    """The moving average; a resumed run continues it."""
    opts = ["SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.EMA.ENABLED", True]
    metric = "grec/N_acc"
    cfg = make_cfg(shapes, tmp_path, *opts, "TEST.EVAL_PERIOD", 2, "TEST.BEST_METRIC", metric)
    train(cfg, stop_after=3)
    trainer, metrics = train(cfg, resume=True)
    assert trainer.start_iter == 2
    best = read_checkpoint(str(tmp_path / "model_best.pth"))
    assert best["best"]["metric"] == metric
    assert best["best"]["value"] >= metrics["grec"]["N_acc"]
    stored = read_checkpoint(str(tmp_path / f"model_{best['iteration']:07d}.pth"))
    for name, value in stored["ema"]["model"].items():
        assert torch.equal(value, best["model"][name]), name


def test_failed_save_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    checkpointer = GroundingCheckpointer(torch.nn.Linear(2, 2), str(tmp_path))
    checkpointer.save("model_0000001")
    torch_save = torch.save

    def full_disk(data, file):
        torch_save(data, file)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpointer.save("model_0000002")
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000001.pth"]
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000001.pth")


def test_saving_options_resume_bit_by_bit_and_evaluate_the_average(shapes, tmp_path):
    """Scaled losses of fp16, micro-batches, activation checkpointing and EMA together."""
    opts = ["SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", "fp16"]
    opts += ["SOLVER.ACCUMULATION_STEPS", 2, "MODEL.BEIT3.CHECKPOINTING", True]
    opts += ["SOLVER.EMA.ENABLED", True, "SOLVER.EMA.DECAY", 0.8, "MODEL.BEIT3.DROP_PATH", 0.5]
    opts += ["SOLVER.MAX_ITER", 5, "SOLVER.CHECKPOINT_PERIOD", 2]
    whole, metrics = train(make_cfg(shapes, tmp_path / "whole", *opts))
    cfg = make_cfg(shapes, tmp_path / "parts", *opts, "TEST.EVAL_PERIOD", 3)
    first, _ = train(cfg, stop_after=3)
    rest, again = train(cfg, resume=True)
    assert rest.start_iter == 2 and first.losses[:2] + rest.losses == whole.losses
    assert all(math.isfinite(x) for x in whole.losses)
    for found, expected in ((rest.model, whole.model), (rest.ema.model, whole.ema.model)):
        for name, value in expected.state_dict().items():
            assert torch.equal(value, found.state_dict()[name]), name
    model = GroundingTrainer.build_model(cfg)
    GroundingCheckpointer(model).load(os.path.join(cfg.OUTPUT_DIR, "model_final.pth"))
    average, raw = rest.ema.model.state_dict(), rest.model.state_dict()
    assert all(torch.equal(value, average[name]) for name, value in model.state_dict().items())
    # Metrics of so few samples may be those of the raw weights, too.
    assert not all(torch.equal(value, raw[name]) for name, value in average.items())
    results = GroundingTrainer.test(cfg, model)
    for task in metrics:
        assert again[task] == pytest.approx(metrics[task], abs=0, nan_ok=True), task
        assert results[task] == pytest.approx(metrics[task], abs=0, nan_ok=True), task


def test_micro_batches_change_neither_the_data_nor_the_steps(shapes, tmp_path):
    """Without batch statistics and random numbers the runs are the same up to rounding."""
    opts = ["MODEL.PIXEL_DECODER.NORM", "LN", "MODEL.BEIT3.DROP_PATH", 0.0]
    opts += ["MODEL.QUERY_GENERATOR.DROPOUT", 0.0, "MODEL.GROUNDING_HEAD.DROPOUT", 0.0]
    opts += ["SOLVER.BASE_LR", 0.0001, "SOLVER.MAX_ITER", 4, "DATASETS.TEST", ()]
    losses = []
    for steps in (1, 4):
        cfg = make_cfg(shapes, tmp_path / str(steps), *opts, "SOLVER.ACCUMULATION_STEPS", steps)
        losses.append(train(cfg)[0].losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0][0] != losses[0][1]


def test_a_resumed_run_says_which_options_are_others(shapes, tmp_path, caplog):
    opts = ["SOLVER.MAX_ITER", 3, "SOLVER.CHECKPOINT_PERIOD", 1, "DATASETS.TEST", ()]
    train(make_cfg(shapes, tmp_path, *opts), stop_after=2)
    train(make_cfg(shapes, tmp_path, *opts, "SOLVER.BASE_LR", 0.125), resume=True)
    said = [r.getMessage() for r in caplog.records if r.getMessage().startswith("--resume:")]
    assert len(said) == 1 and "SOLVER.BASE_LR was" in said[0] and "is 0.125 now" in said[0]
