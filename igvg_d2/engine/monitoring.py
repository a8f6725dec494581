"""Logging during training."""

import importlib
import os
import resource
import time
from typing import Any, Dict, List, Optional

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter

from igvg_d2.io.atomic import write_atomically

from .training_log import WINDOW, EventFileWriter, MetricsWriter
from .unread_keys import flatten


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
        """Put the scalars; images of other processes than the first are dropped."""
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


def build_writers(cfg: CfgNode, max_iter: int) -> List[EventWriter]:
    """Console (Detectron2's), ``metrics.json`` and TensorBoard, with ``WANDB.ENABLED`` also there.

    Args:
        cfg: with ``OUTPUT_DIR``, which is made.
        max_iter: iterations of the training run, for the time left.
    """
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    if cfg.WANDB.ENABLED:
        start_wandb(cfg.OUTPUT_DIR, dict(flatten(cfg)))
    return [
        CommonMetricPrinter(max_iter, WINDOW),
        MetricsWriter(os.path.join(cfg.OUTPUT_DIR, "metrics.json")),
        EventFileWriter(cfg.OUTPUT_DIR),
    ]
