"""What a training tells while it runs: console, metrics.json, TensorBoard, Weights & Biases."""

import importlib
import os
import resource
import time
from typing import Any, Dict, List, Optional

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    get_event_storage,
)
from detectron2.utils.file_io import PathManager

from .ineffective_keys import flatten
from .training_log import EventFileWriter, MetricsWriter

# Iterations over which noisy scalars are smoothed, as in Detectron2's writers.
_WINDOW = 20


class MonitorHook(HookBase):
    """Adds the scalars that Detectron2 does not log; register it before all other hooks.

    * ``samples_per_second``: of all processes together, waiting for data included, evaluation and
      checkpoints not;
    * ``epoch``: visits so far over visits of an epoch, if the loader knows them;
    * ``lr/backbone``, ``lr/rest``: highest learning rate of the encoder's parameters and of the
      others; with ``_matrices`` at the end for those that Muon steps;
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
        """Find out which parameter group belongs to what."""
        model = getattr(self.trainer.model, "module", self.trainer.model)
        backbone = {id(p) for name, p in model.named_parameters() if name.startswith("backbone.")}
        self.groups: Dict[str, List[int]] = {}
        for index, group in enumerate(self.trainer.optimizer.param_groups):
            in_backbone = any(id(p) in backbone for p in group["params"])
            label = "lr/backbone" if in_backbone else "lr/rest"
            label += "_matrices" if group.get("orthogonal", False) else ""
            self.groups.setdefault(label, []).append(index)

    def before_step(self):
        """Start the clock."""
        self.start = time.perf_counter()

    def after_step(self):
        """Put the scalars; pictures of other processes than the first are dropped."""
        seconds = time.perf_counter() - self.start
        storage = self.trainer.storage
        storage.put_scalar("samples_per_second", self.batch_size / max(seconds, 1e-9))
        if self.samples_per_epoch:
            epoch = (self.trainer.iter + 1) * self.batch_size / self.samples_per_epoch
            storage.put_scalar("epoch", epoch, smoothing_hint=False)
        groups = self.trainer.optimizer.param_groups
        for label, indices in self.groups.items():
            rate = max(groups[i]["lr"] for i in indices)
            storage.put_scalar(label, rate, smoothing_hint=False)
        storage.put_scalar("memory_mib", peak_memory_mib(), smoothing_hint=False)
        if not comm.is_main_process():
            # Only writers take pictures out, and only the first process has writers.
            storage.clear_images()


def peak_memory_mib() -> float:
    """Peak memory in MiB: of the GPU's allocator, else of this process (Linux counts in KiB)."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


class ProgressPrinter(CommonMetricPrinter):
    """One line to the console: time left, every loss, learning rates, norm, speed and memory."""

    def write(self):
        """Print what the event storage has at this iteration."""
        storage = get_event_storage()
        if storage.iter == self._max_iter:
            return  # after the last iteration there is nothing new
        histories = storage.histories()

        def smoothed(key: str) -> str:
            value = histories[key].median(storage.count_samples(key, self._window_size))
            return f"{value:.4g}"

        eta = self._get_eta(storage)
        latest = storage.latest()
        parts = [f"eta: {eta}"] if eta else []
        parts.append(f"iter: {storage.iter + 1}/{self._max_iter}")
        if "epoch" in latest:
            parts.append(f"epoch: {latest['epoch'][0]:.2f}")
        parts += [f"{key}: {smoothed(key)}" for key in histories if "loss" in key]
        parts += [f"{key}: {latest[key][0]:.5g}" for key in sorted(latest) if key[:3] == "lr/"]
        if "grad_norm" in latest:
            parts.append(f"grad_norm: {latest['grad_norm'][0]:.4g}")
        units = {"samples_per_second": "samples/s", "time": "s/iter", "data_time": "data s/iter"}
        parts += [f"{unit}: {smoothed(key)}" for key, unit in units.items() if key in histories]
        if latest.get("bad_samples", (0,))[0]:
            parts.append(f"bad samples: {latest['bad_samples'][0]:.0f}")
        if "memory_mib" in latest:
            parts.append(f"memory: {latest['memory_mib'][0]:.0f} MiB")
        self.logger.info("  ".join(parts))


class WandbWriter(EventWriter):
    """Sends scalars and pictures to Weights & Biases; put it before the TensorBoard writer.

    A resumed training continues its run there: the id is kept in ``OUTPUT_DIR/wandb_run_id``.
    """

    def __init__(
        self, output_dir: str, project: str, name: str, config: Dict[str, Any], wandb: Any = None
    ):
        """
        Args:
            output_dir: folder of the run.
            project, name: in Weights & Biases; an empty name lets it choose.
            config: options of the run, to be shown with it.
            wandb: the package; default: it is imported.

        Raises:
            ImportError: it is not installed.
        """
        self._wandb = import_wandb() if wandb is None else wandb
        self._last_write = -1
        id_file = os.path.join(output_dir, "wandb_run_id")
        run_id = None
        if PathManager.isfile(id_file):
            with PathManager.open(id_file) as file:
                run_id = file.read().strip()
        self._run = self._wandb.init(
            project=project,
            name=name or None,
            dir=output_dir,
            config=config,
            id=run_id,
            resume="allow",
        )
        if run_id is None:
            with PathManager.open(id_file, "w") as file:
                file.write(str(self._run.id))

    def write(self):
        """Send what is new, each scalar under the iteration it belongs to."""
        storage = get_event_storage()
        news: Dict[int, Dict[str, Any]] = {}
        for key, (value, iteration) in storage.latest_with_smoothing_hint(_WINDOW).items():
            if iteration > self._last_write:
                news.setdefault(iteration, {})[key] = value
        # The interface is the storage's own for TensorBoard, whose writer then clears the list.
        for name, picture, iteration in storage._vis_data:
            image = np.asarray(picture).transpose(1, 2, 0)
            news.setdefault(iteration, {})[name] = self._wandb.Image(image)
        for iteration in sorted(news):
            self._run.log(news[iteration], step=iteration)
        self._last_write = max([self._last_write, *news])

    def close(self):
        """End the run there."""
        self._run.finish()


def import_wandb() -> Any:
    """The package of Weights & Biases, which is no requirement.

    Raises:
        ImportError: says how to install it or to do without.
    """
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise ImportError(
            "WANDB.ENABLED is True, but the package 'wandb' cannot be imported "
            f"({error}): pip install wandb, or set WANDB.ENABLED False"
        ) from error


def build_writers(cfg: CfgNode, max_iter: int) -> List[EventWriter]:
    """Console, ``metrics.json``, Weights & Biases if ``WANDB.ENABLED``, TensorBoard.

    Args:
        cfg: with ``OUTPUT_DIR``, which is made.
        max_iter: iterations of the training, for the time left.
    """
    PathManager.mkdirs(cfg.OUTPUT_DIR)
    writers: List[EventWriter] = [
        ProgressPrinter(max_iter),
        MetricsWriter(os.path.join(cfg.OUTPUT_DIR, "metrics.json")),
    ]
    if cfg.WANDB.ENABLED:
        wandb = cfg.WANDB
        writers.append(WandbWriter(cfg.OUTPUT_DIR, wandb.PROJECT, wandb.NAME, dict(flatten(cfg))))
    return [*writers, EventFileWriter(cfg.OUTPUT_DIR)]
