"""What a run writes about itself; a resumed run leaves the files of an uninterrupted one."""

import importlib
import math
import os
import resource
import time
from collections import defaultdict
from typing import Any, Dict, List, Optional

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils import comm
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    TensorboardXWriter,
    get_event_storage,
)

from igvg_d2.io.atomic import write_atomically
from igvg_d2.io.json_stream import read_metrics, to_json_text

from .config_checks import flatten

# Values over which writers take a median, as Detectron2's do.
WINDOW = 20
# Seconds of a step are of the process that measured them; Detectron2 begins after three steps.
_STEP_TIME = "time"


class MonitorHook(HookBase):
    """Adds the scalars that Detectron2 does not log; register it before all other hooks.

    * ``samples_per_second``: of all processes together, waiting for data included, evaluation and
      checkpoints not;
    * ``epoch``: visits so far over visits of an epoch, if the loader knows them;
    * ``lr/backbone``, ``lr/rest``: highest learning rate of the encoder's parameters and of the
      others;
    * ``memory_mib``: peak of the GPU's allocator, or of the process without a GPU.
    """

    def __init__(self, batch_size: int, samples_per_epoch: Optional[int] = None):
        """
        Args:
            batch_size: samples per iteration over all processes.
            samples_per_epoch: visits that make an epoch.
        """
        self.batch_size = batch_size
        self.samples_per_epoch = samples_per_epoch

    def before_train(self):
        """Find out which parameter groups are the encoder's."""
        model = getattr(self.trainer.model, "module", self.trainer.model)
        backbone = {id(p) for name, p in model.named_parameters() if name.startswith("backbone.")}
        self.labels = [
            "lr/backbone" if any(id(p) in backbone for p in group["params"]) else "lr/rest"
            for group in self.trainer.optimizer.param_groups
        ]

    def before_step(self):
        """Start the clock."""
        self.start = time.perf_counter()

    def after_step(self):
        """Put the scalars; images of other processes than the first are dropped."""
        seconds = time.perf_counter() - self.start
        storage = self.trainer.storage
        storage.put_scalar("samples_per_second", self.batch_size / max(seconds, 1e-9))
        scalars = {"memory_mib": peak_memory_mib()}
        if self.samples_per_epoch:
            visits = (self.trainer.iter + 1) * self.batch_size
            scalars["epoch"] = visits / self.samples_per_epoch
        for label, group in zip(self.labels, self.trainer.optimizer.param_groups):
            scalars[label] = max(scalars.get(label, 0.0), group["lr"])
        storage.put_scalars(**scalars, smoothing_hint=False)
        if not comm.is_main_process():
            # Only writers take images out, and only the first process has writers.
            storage.clear_images()


def peak_memory_mib() -> float:
    """Peak memory in MiB: of the GPU's allocator, else of this process (Linux counts in KiB)."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def start_wandb(output_dir: str, config: Dict[str, Any]) -> None:
    """Let Weights & Biases follow the TensorBoard files; call it before these are begun.

    A resumed run continues its run there: the id is kept in ``OUTPUT_DIR/wandb_run_id``.

    Args:
        output_dir: folder of the run.
        config: options of the run, to be shown with it.

    Raises:
        ImportError: the package wandb, which is no requirement, is not installed.
    """
    try:
        wandb = importlib.import_module("wandb")
    except ImportError as error:
        raise ImportError(
            "WANDB.ENABLED is True, but the package 'wandb' cannot be imported "
            f"({error}): pip install wandb, or set WANDB.ENABLED False"
        ) from error
    path = os.path.join(output_dir, "wandb_run_id")
    run_id = None
    if os.path.isfile(path):
        with open(path) as file:
            run_id = file.read().strip()
    run = wandb.init(
        dir=output_dir, config=config, id=run_id, resume="allow", sync_tensorboard=True
    )
    write_atomically(path, str(run.id))


def build_writers(cfg: CfgNode, max_iter: int, start_iter: int = 0) -> List[EventWriter]:
    """Console (Detectron2's), ``metrics.json`` and TensorBoard, with ``WANDB.ENABLED`` also there.

    Args:
        cfg: with ``OUTPUT_DIR``, which is made.
        max_iter: iterations of the training run, for the time left.
        start_iter: first iteration that will run, from 0; what was written about it and later ones
            is dropped from ``metrics.json``, and hidden in TensorBoard.
    """
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    if cfg.WANDB.ENABLED:
        start_wandb(cfg.OUTPUT_DIR, dict(flatten(cfg)))
    metrics = MetricsWriter(os.path.join(cfg.OUTPUT_DIR, "metrics.json"), start_iter)
    # Flushed after two minutes by default, which is what a kill would lose.
    events = TensorboardXWriter(cfg.OUTPUT_DIR, flush_secs=20, purge_step=start_iter or None)
    events._last_write = metrics.last
    return [CommonMetricPrinter(max_iter, WINDOW), metrics, events]


class MetricsWriter(EventWriter):
    """One JSON object per iteration, as Detectron2's ``JSONWriter``; continues a file.

    Attributes:
        last: iteration of the newest line, from 0; -1 before the first one.
    """

    def __init__(self, path: str, start_iter: int = 0):
        """
        Args:
            path: of ``metrics.json``; that of a run that begins anew is kept as ``*.previous``.
            start_iter: lines about this and later iterations are dropped.
        """
        self.path = path
        self.last = -1
        if start_iter > 0 and os.path.isfile(self.path):
            kept = [r for i, r in read_metrics(self.path).items() if i < start_iter]
            lines = "".join(to_json_text(record, sort_keys=True) + "\n" for record in kept)
            write_atomically(self.path, lines)
            self.last = kept[-1]["iteration"] if kept else -1
        elif os.path.isfile(self.path) and os.path.getsize(self.path):
            os.replace(self.path, f"{self.path}.previous")

    def write(self):
        """Append what is newer than the last line."""
        news: Dict[int, Dict[str, Any]] = defaultdict(dict)
        latest = get_event_storage().latest_with_smoothing_hint(WINDOW)
        for name, (value, iteration) in latest.items():
            # JSON has no NaN and no infinity: what is undefined is left out.
            if iteration > self.last and math.isfinite(value):
                news[iteration][name] = value
        if not news:
            return
        with open(self.path, "a") as file:
            for iteration, scalars in sorted(news.items()):
                file.write(to_json_text({**scalars, "iteration": iteration}, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.last = max(news)


class TrainingLogHook(HookBase):
    """Brings log files and unwritten scalars back to where the checkpoint was written.

    The last values of every scalar are part of a checkpoint: writers show medians, and evaluations
    may wait to be written. Register it before all hooks that log.
    """

    def __init__(self):
        self.writers: List[EventWriter] = []  # none in other processes than the first
        self._scalars: Dict[str, Any] = {}

    def before_train(self):
        """Build the writers, now that it is known where they go on, and restore the scalars."""
        if comm.is_main_process():
            self.writers += self.trainer.build_writers()
        for name, (values, hint) in self._scalars.items():
            for value, iteration in values:
                self.trainer.storage.put_scalar(
                    name, value, smoothing_hint=hint, cur_iter=iteration
                )
        self._scalars = {}

    def state_dict(self) -> Dict[str, Any]:
        """Name to ([(value, iteration), the last 20], whether it is shown as a median)."""
        storage = getattr(self.trainer, "storage", None)
        if storage is None:
            return {}
        hints = storage.smoothing_hints()
        return {
            name: ([(float(v), int(i)) for v, i in history.values()[-WINDOW:]], hints[name])
            for name, history in storage.histories().items()
            if name != _STEP_TIME
        }

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """To be restored when the run begins."""
        self._scalars = state


class WriterHook(PeriodicWriter):
    """Detectron2's, which first writes what an interrupted run was about to write."""

    def __init__(self, log: TrainingLogHook, period: int = 20):
        """
        Args:
            log: has the writers when training begins.
            period: iterations.
        """
        super().__init__(log.writers, period)
        self.writers = log.writers
        self.period = period

    def before_train(self):
        """The last process may have ended between a checkpoint and its line in metrics.json."""
        done, storage = self.trainer.start_iter, self.trainer.storage
        due = done > 0 and (done % self.period == 0 or done == self.trainer.max_iter)
        written = [w.last for w in self.writers if isinstance(w, MetricsWriter)]
        if due and all(last < done - 1 for last in written):
            storage.iter = done - 1
            for writer in self.writers:
                writer.write()
            storage.iter = done

    def close(self) -> None:
        """Close the writers; what is not written yet is in the checkpoint."""
        for writer in self.writers:
            writer.close()
