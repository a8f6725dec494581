"""Save a checkpoint and exit on SIGINT (Ctrl-C), SIGTERM or SIGUSR1."""

import logging
import multiprocessing
import os
import signal
import threading
import time
from typing import Any, Dict, Iterator, List, Optional

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

from .checkpointing import CheckpointHook
from .guards import BadSampleLog
from .hooks import average_batch_norm, batch_norm_statistics, set_batch_norm_statistics
from .output_lock import release_output_lock

logger = logging.getLogger(__name__)

# "Temporary failure, try again" of sysexits.h: neither finished (0) nor an error.
STOPPED_EXIT_CODE = 75
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# Launchers and batch systems both pass a signal on: a second one this soon is the same one.
_SAME_SECONDS = 2.0
# Ctrl-C in a single process has no such copies, but for that of `timeout`, which comes at once.
SAME_KEY_SECONDS = 0.1


class EvaluationStopped(Exception):
    """A signal came during an evaluation; raised in all processes."""


class TrainingStopped(SystemExit):
    """Ends the process with :data:`STOPPED_EXIT_CODE` after a signal; a checkpoint is there."""

    def __init__(self, iteration: int):
        """
        Args:
            iteration: the last one that ended, from 0; -1 if none did.
        """
        super().__init__(STOPPED_EXIT_CODE)
        self.iteration = iteration


class StopSignals:
    """Remembers a signal until the trainer can act on it; a second one ends the process at once.

    Attributes:
        received: number of the signal, None so far.
        saved: a checkpoint was written since.
    """

    def __init__(self):
        self.received: Optional[int] = None
        self.saved = False
        self._since = 0.0
        self._previous: Dict[int, Any] = {}

    def install(self) -> None:
        """Take over the signals, if this is the main thread, the only one that may."""
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)

    def remove(self) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, frame: Any) -> None:
        """The signal handler. Not to be logged: it may interrupt the logger itself."""
        now = time.monotonic()
        launcher = multiprocessing.parent_process()
        if number == signal.SIGINT and launcher is not None and os.getppid() != launcher.pid:
            os._exit(128 + number)  # it is gone; PyTorch lets its children have this signal then
        is_key = number == signal.SIGINT and comm.get_world_size() == 1
        if self.received is None:
            self.received, self._since = number, now
            name = signal.Signals(number).name
            text = f"{name}: stopping after this step; a second signal ends at once\n"
            os.write(2, text.encode())
        elif now - self._since > (SAME_KEY_SECONDS if is_key else _SAME_SECONDS):
            release_output_lock()
            os._exit(STOPPED_EXIT_CODE if self.saved else 128 + number)

    def agreed(self) -> bool:
        """Whether any process got a signal; call it in all of them at the same point."""
        if comm.get_world_size() == 1:
            return self.received is not None
        on_gpu = torch.distributed.get_backend() == "nccl"
        flag = torch.tensor(int(self.received is not None), device="cuda" if on_gpu else "cpu")
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag.item())


# Handlers belong to the process, so what they know does, too.
_active: Optional[StopSignals] = None


class StoppableLoader:
    """A loader of an evaluation that ends with :class:`EvaluationStopped` after a signal.

    Without a training run in this process it is the loader itself.

    Args:
        loader: sized; the processes may have different numbers of batches.
    """

    def __init__(self, loader: Any):
        self.loader = loader

    def __len__(self) -> int:
        """Number of batches of this process."""
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        """Yields the batches; the processes ask each other at every batch that all of them have."""
        signals = _active
        if signals is None:
            yield from self.loader
            return
        shared = min(comm.all_gather(len(self.loader)))
        for index, batch in enumerate(self.loader):
            if index < shared and signals.agreed():
                raise EvaluationStopped
            yield batch
        if signals.agreed():
            raise EvaluationStopped


class StopHook(HookBase):
    """Ends the run after a signal: finish the step, save, leave; ``--resume`` goes on.

    Register it after checkpoints and evaluation.
    """

    def __init__(self, checkpoints: CheckpointHook):
        """
        Args:
            checkpoints: writes the checkpoint.
        """
        self.checkpoints = checkpoints
        self.signals = StopSignals()
        self._statistics: List[torch.Tensor] = []

    def before_train(self):
        """Take over the signals; go on with this process's own BatchNorm statistics."""
        self.activate()
        if len(self._statistics) == comm.get_world_size():
            set_batch_norm_statistics(self.trainer, self._statistics[comm.get_rank()])
        self._statistics = []

    def activate(self) -> None:
        """Take over the signals; once."""
        global _active
        if _active is not self.signals:
            _active = self.signals
            self.signals.install()

    def after_step(self):
        """Look whether any process got a signal."""
        # After the last iteration the final checkpoint is there, and the evaluation looks itself.
        if self.trainer.iter + 1 < self.trainer.max_iter and self.signals.agreed():
            self.stop(self.trainer.iter)

    def stop(self, iteration: int) -> None:
        """Save and leave; call it in all processes.

        Args:
            iteration: that has ended, from 0.

        Raises:
            TrainingStopped: always.
        """
        if comm.get_world_size() > 1 and self.checkpoints.last_saved != iteration:
            # An uninterrupted run would not average here.
            self._statistics = comm.gather(batch_norm_statistics(self.trainer).cpu())
            average_batch_norm(self.trainer)
        for hook in self.trainer.hooks:
            if isinstance(hook, BadSampleLog):
                hook.exchange()  # the samples are not seen again
        self.checkpoints.save_now(iteration)
        # Nobody leaves, which can make a launcher end the others, before it is on the disk.
        comm.synchronize()
        self.signals.saved = True
        logger.warning(
            "Stopped by a signal after iteration %d; continue with --resume (exit code %d).",
            *(iteration, STOPPED_EXIT_CODE),
        )
        raise TrainingStopped(iteration)

    def after_train(self):
        """Give the signals back; the trainer calls it after an error, too."""
        global _active
        if _active is self.signals:
            _active = None
        self.signals.remove()

    def state_dict(self) -> Dict[str, Any]:
        """BatchNorm statistics of each process, only in the checkpoint of a stop."""
        return {"statistics": self._statistics} if self._statistics else {}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """To be restored when the run begins."""
        self._statistics = state["statistics"]
