"""A run's summary, the random numbers of a step, and BatchNorm statistics of all processes."""

import json
import logging
import os
import resource
import shlex
import sys
import time
from typing import Dict, List

import numpy as np
import torch
from detectron2.engine import HookBase, TrainerBase
from detectron2.utils import comm
from torch import nn

from igvg_d2.io.atomic import write_atomically
from igvg_d2.io.json_stream import to_json_text


class RunSummaryHook(HookBase):
    """Writes ``run_summary.json`` after training: samples seen, wall time and CPU time.

    A resumed run adds to the numbers it finds, so they describe the whole run. CPU time and memory
    are sums over the training processes; data loader workers, alive until the end, are not in.
    """

    def __init__(self, output_dir: str, samples_per_iter: int, seed: int):
        """
        Args:
            output_dir: folder of the run.
            samples_per_iter: batch size over all processes.
            seed: ``SEED`` of the run, for the record.
        """
        self.path = os.path.join(output_dir, "run_summary.json")
        self.samples_per_iter = samples_per_iter
        self.seed = seed

    def before_train(self):
        """Start the clocks."""
        self.start_iter = self.trainer.start_iter
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def after_train(self):
        """Add this run's share and write the file."""
        # Detectron2 has already advanced the counter; nothing ran if the run was complete.
        if self.start_iter >= self.trainer.max_iter:
            return
        # Linux counts in KiB.
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10
        shares = comm.gather((time.process_time() - self.cpu, memory))
        if not comm.is_main_process():
            return
        wall, cpu = time.perf_counter() - self.wall, sum(seconds for seconds, _ in shares)
        if self.start_iter > 0 and os.path.isfile(self.path):
            with open(self.path) as file:
                previous = json.load(file)
            wall += previous["train_wall_seconds"]
            cpu += previous["train_cpu_seconds"]
        summary = {
            "command": shlex.join(sys.argv),
            "seed": self.seed,
            "processes": comm.get_world_size(),
            "threads": torch.get_num_threads(),
            "iterations": self.trainer.iter,
            "samples_seen": self.trainer.iter * self.samples_per_iter,
            "train_wall_seconds": round(wall, 1),
            "train_cpu_seconds": round(cpu, 1),
            "peak_memory_mib": sum(mib for _, mib in shares),
        }
        write_atomically(self.path, to_json_text(summary, indent=2))


class StepSeedHook(HookBase):
    """Makes the random numbers of a step a function of seed, iteration and process.

    Dropout and stochastic depth of a resumed run are then those of an uninterrupted one, and
    nothing that happens between the steps, such as an evaluation, changes them.
    """

    def __init__(self, seed: int):
        """
        Args:
            seed: of the run, not negative.
        """
        self.seed = seed

    def before_step(self):
        """Seed PyTorch's generators, of all devices."""
        sequence = np.random.SeedSequence((self.seed, self.trainer.iter, comm.get_rank()))
        torch.manual_seed(int(sequence.generate_state(1)[0]))

    def state_dict(self) -> Dict[str, int]:
        """The seed, to be stored with a checkpoint."""
        return {"seed": self.seed}

    def load_state_dict(self, state: Dict[str, int]) -> None:
        """Say so when a run is continued with other random numbers."""
        if state["seed"] != self.seed:
            logging.getLogger(__name__).warning(
                "The run was begun with seed %d and is continued with %d: it will not be what an "
                "uninterrupted run would have been. Set SEED %d for that.",
                *(state["seed"], self.seed, state["seed"]),
            )


class AverageBatchNormHook(HookBase):
    """Gives all processes the same running statistics before a checkpoint or an evaluation.

    Each process gathers its own from its share of the batches. Without this, the parts of a test
    set are judged by slightly different models, none of which is that of the checkpoint, which has
    the statistics of the first process.
    """

    def __init__(self, *periods: int):
        """
        Args:
            periods: iterations between checkpoints, between evaluations; 0 = only at the end.
        """
        self.periods = [period for period in periods if period > 0]

    def after_step(self):
        """Average when something is about to read the statistics."""
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or any(done % period == 0 for period in self.periods):
            average_batch_norm(self.trainer)


def average_batch_norm(trainer: TrainerBase) -> None:
    """Replace the running statistics by their mean over the processes; call it in all of them.

    Args:
        trainer: has ``model`` and ``ema``, see :class:`GroundingTrainer`.
    """
    statistics = batch_norm_statistics(trainer)
    if comm.get_world_size() > 1 and len(statistics):
        torch.distributed.all_reduce(statistics)
        set_batch_norm_statistics(trainer, statistics / comm.get_world_size())


def batch_norm_statistics(trainer: TrainerBase) -> torch.Tensor:
    """Running means and variances of all BatchNorm layers, also of the average: float (n,)."""
    buffers = _batch_norm_buffers(trainer)
    return torch.cat([buffer.float() for buffer in buffers]) if buffers else torch.zeros(0)


def set_batch_norm_statistics(trainer: TrainerBase, statistics: torch.Tensor) -> None:
    """Set what :func:`batch_norm_statistics` returned."""
    buffers = _batch_norm_buffers(trainer)
    for buffer, values in zip(buffers, statistics.split([len(buffer) for buffer in buffers])):
        buffer.copy_(values)


def _batch_norm_buffers(trainer: TrainerBase) -> List[torch.Tensor]:
    models = [trainer.model] if trainer.ema is None else [trainer.model, trainer.ema.model]
    return [
        buffer
        for model in models
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    ]
