"""A training run in milliseconds, with the trainer's own hooks."""

import os
import signal
import time
import weakref

import torch
from detectron2.engine import SimpleTrainer, TrainerBase
from detectron2.engine.hooks import IterationTimer
from detectron2.utils import comm
from torch import nn

from igvg_d2.checkpoint import GroundingCheckpointer
from igvg_d2.engine import GroundingTrainer
from igvg_d2.engine.config_checks import record_reads
from igvg_d2.engine.hooks import RunSummaryHook, StepSeedHook
from igvg_d2.engine.stop_signals import StoppableLoader, TrainingStopped
from igvg_d2.engine.trainer import build_resumable_hooks
from igvg_d2.testing import tiny_cfg


class Toy(nn.Module):
    """BatchNorm, dropout, and a frozen part in evaluation mode."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm1d(3)
        self.linear = nn.Linear(3, 1)
        self.frozen = nn.BatchNorm1d(3).requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        self.frozen.training = False
        return self

    def forward(self, batch):
        values = nn.functional.dropout(self.norm(self.frozen(batch)), 0.2, self.training)
        return {"loss_a": self.linear(values).square().mean()}


class Batches:
    """Another batch at each position, as the training loader has them."""

    position = 0

    def __iter__(self):
        while True:
            generator = torch.Generator().manual_seed(1000 * self.position + comm.get_rank())
            self.position += 1
            yield torch.randn(8, 3, generator=generator)


class ToyTrainer(GroundingTrainer):
    """Interrupted where a test wants it.

    Args:
        cfg: of :func:`toy_cfg`.
        scores: result of the evaluation after an iteration; default: all are 1.
        signals: iteration, or "eval", to the number of a signal that this process gets there.
        fail_at: iteration, or "eval", at which the process crashes.
    """

    def __init__(self, cfg, scores=None, signals=None, fail_at=None):
        TrainerBase.__init__(self)
        model = Toy()
        if comm.get_world_size() > 1:
            model = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
        self._trainer = SimpleTrainer(model, Batches(), optimizer)
        self.results = {}
        self.cfg, self.max_iter, self.ema = record_reads(cfg), cfg.SOLVER.MAX_ITER, None
        self.scores, self.signals, self.fail_at = scores or {}, signals or {}, fail_at
        self.losses, self.evaluated = {}, []
        self.checkpointer = GroundingCheckpointer(
            model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        summary = RunSummaryHook(cfg.OUTPUT_DIR, 8, 0)
        log, *others = build_resumable_hooks(self)
        self.hooks = [StepSeedHook(7), summary, log, IterationTimer(), *others]
        self.register_hooks(self.hooks)

    def run_step(self):
        super().run_step()
        if comm.is_main_process():
            self.losses[self.iter] = self.storage.latest()["total_loss"][0]
        self.disturb(self.iter)

    def evaluate(self):
        self.model.eval()
        torch.rand(1)
        # The processes have different numbers of batches.
        for _ in StoppableLoader(range(3 + comm.get_rank())):
            self.disturb("eval")
        self.evaluated.append(self.storage.iter)
        return {"gres": {"gIoU": self.scores.get(self.storage.iter, 1.0)}}

    def disturb(self, where):
        if where == self.fail_at:
            raise KeyboardInterrupt
        if where in self.signals:
            os.kill(os.getpid(), self.signals.pop(where))


def toy_cfg(folder, *opts):
    """40 iterations; checkpoints every 10, an evaluation every 15."""
    os.makedirs(folder, exist_ok=True)
    cfg = tiny_cfg(["OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", 40])
    cfg.merge_from_list(["SOLVER.CHECKPOINT_PERIOD", 10, "TEST.EVAL_PERIOD", 15, *opts])
    cfg.freeze()
    return cfg


def train(cfg, resume=False, **kwargs):
    """The trainer after its run, and the exit code if it was stopped."""
    trainer = ToyTrainer(cfg, **kwargs)
    trainer.resume_or_load(resume=resume)
    trainer.data_loader.position = trainer.start_iter
    try:
        trainer.train()
    except KeyboardInterrupt:
        return trainer, "crash"
    except SystemExit as stopped:
        return trainer, stopped.code
    return trainer, None


class SlowTrainer(ToyTrainer):
    """Its step after the first checkpoint lasts, and tells so by a file."""

    seconds = 1.0

    def run_step(self):
        super().run_step()
        if self.iter == 12:
            with open(os.path.join(self.cfg.OUTPUT_DIR, f"rank{comm.get_rank()}"), "w"):
                time.sleep(self.seconds)


def train_slowly(folder, seconds):
    """Body of a process that is interrupted in the step after iteration 11."""
    SlowTrainer.seconds = seconds
    trainer = SlowTrainer(toy_cfg(folder))
    trainer.resume_or_load(resume=False)
    trainer.train()


def stop_one_rank(whole, parts):
    """Body of a process of two: an uninterrupted run, and one that is stopped twice.

    A single process gets the signal, in a step and later in an evaluation; then the last checkpoint
    is damaged. Ends as stopped.
    """
    codes = [train(toy_cfg(whole))[1]]
    names = []
    for where, rank in ((12, 1), ("eval", 0), ("never", 0)):
        if where == "never" and comm.is_main_process():
            os.truncate(os.path.join(parts, "model_0000014.pth"), 100)
        comm.synchronize()
        signals = {where: signal.SIGUSR1} if comm.get_rank() == rank else {}
        trainer, code = train(toy_cfg(parts), resume=True, signals=signals)
        with open(os.path.join(parts, "last_checkpoint")) as file:
            names.append(file.read())
        codes.append(code)
    assert trainer.start_iter == 13
    assert codes == [None, 75, 75, None], codes
    assert names == ["model_0000012.pth", "model_0000014.pth", "model_final.pth"], names
    raise TrainingStopped(14)
