"""Training losses that are not finite, and samples that cannot be used: stopped at, or skipped."""

import json
import logging
import math
import os
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import nn

from igvg_d2.data import REPORT_KEY
from igvg_d2.io.atomic import write_atomically
from igvg_d2.io.json_stream import to_json_text

logger = logging.getLogger(__name__)

_Report = Dict[str, Any]

# Share of the training set that may be bad.
_MAX_RATIO = 0.5


class BadSampleLog(HookBase):
    """Writes ``bad_samples.jsonl``: one line per bad sample, however often it was met.

    The loaders send their reports along with the batches (see
    :class:`igvg_d2.data.bad_samples.BadSampleSkipper`), so what is listed was met in training and
    not by a loader that ran ahead. A resumed run continues the file.
    """

    def __init__(
        self,
        model: nn.Module,
        output_dir: str,
        periods: Sequence[int] = (20,),
    ):
        """
        Args:
            model: takes the batches; not wrapped for several processes.
            output_dir: folder of the run.
            periods: iterations between two exchanges with the other processes, and between two
                checkpoints, after which a resumed run does not see the samples again.
        """
        self.path = os.path.join(output_dir, "bad_samples.jsonl")
        self.periods = periods
        self.found: Dict[str, _Report] = {}
        self.dataset_size = 0
        self._pending: List[_Report] = []
        model.register_forward_pre_hook(self._collect)

    def __deepcopy__(self, memo):
        """A copy of the model shares its log."""
        return self

    def _collect(self, model: nn.Module, inputs) -> None:
        """Take the reports out of a batch."""
        if model.training:
            for sample in inputs[0]:
                self._pending += sample.pop(REPORT_KEY, [])

    def add_batch(self, batch: Sequence[_Report], reason: str) -> None:
        """List the samples of a batch that was passed over; they do not count as bad.

        Args:
            batch: ``sample_id`` and ``file_name`` of each.
            reason: what was wrong with the batch as a whole.
        """
        self._pending += [{**sample, "reason": reason, "batch": True} for sample in batch]

    @property
    def num_bad(self) -> int:
        """Different bad samples so far, over all processes."""
        return sum("batch" not in report for report in self.found.values())

    def before_train(self):
        """Continue the list of the run that is resumed, or begin a new one."""
        if comm.is_main_process() and os.path.isfile(self.path):
            if self.trainer.start_iter > 0:
                with open(self.path) as file:
                    # A killed run may have left half a line.
                    reports = [json.loads(line) for line in file if line.endswith("\n")]
                self.found = {_key(report): report for report in reports}
            write_atomically(self.path, _to_lines(self.found))
        self.found = comm.all_gather(self.found)[0]

    def after_step(self):
        """Exchange, log and write what is new, now and then.

        Raises:
            ValueError: more than half of the data set is bad.
        """
        done = self.trainer.iter + 1
        if any(done % period == 0 for period in self.periods) or done == self.trainer.max_iter:
            self.exchange()
        self.trainer.storage.put_scalar("bad_samples", self.num_bad, smoothing_hint=False)

    def after_train(self):
        """Say how many there were."""
        if self.found and comm.is_main_process():
            logger.warning(
                "%d bad samples were replaced, %d samples were in batches passed over; see %s",
                *(self.num_bad, len(self.found) - self.num_bad, self.path),
            )

    def exchange(self) -> None:
        """All processes learn what each of them found; the first one writes it down."""
        reports = [report for part in comm.all_gather(self._pending) for report in part]
        self._pending = []
        new: Dict[str, _Report] = {}
        for report in reports:
            self.dataset_size = report.pop("dataset_size", self.dataset_size)
            if _key(report) not in self.found:
                new.setdefault(_key(report), {**report, "iteration": self.trainer.iter})
        self.found.update(new)
        if comm.is_main_process() and new:
            with open(self.path, "a") as file:
                file.write(_to_lines(new))
            for report in new.values():
                if "batch" not in report:  # the guard has logged those
                    logger.warning(
                        "Bad sample, replaced by %s: %s", report["replaced_by"], report["reason"]
                    )
        if self.num_bad > _MAX_RATIO * max(self.dataset_size, 1):
            raise ValueError(
                f"{self.num_bad} of {self.dataset_size} training samples are bad, more than the "
                f"share of {_MAX_RATIO} that is skipped; {self.path} lists them"
            )


class LossGuard:
    """Looks at every training loss of a model, between the forward and the backward pass.

    It hangs on the model, not on the training loop, so it sees every micro-batch of an accumulated
    one, and "batch" means one of these. All processes decide alike: a loss that is not finite in
    one of them concerns all.

    Without a log it raises, in all processes, before the optimizer's step: nothing of the batch
    reaches weights, optimizer or a checkpoint. With a log the batch is passed over instead: its
    losses are replaced by zeros that leave every parameter a zero gradient, and the running
    statistics of normalisation layers are put back.

    Attributes:
        deferred: no forward pass waits for the device; the training loop asks :meth:`is_bad` and
            calls :meth:`settle` before each step of the optimizer. Not with a log.
    """

    def __init__(
        self, model: nn.Module, log: Optional[BadSampleLog] = None, max_in_a_row: int = 10
    ):
        """
        Args:
            model: returns a dict of scalar losses in training; not wrapped for several processes.
            log: is told the samples of a batch of this process that is passed over.
            max_in_a_row: so many batches are passed over; one more raises.
        """
        self.log = log
        self.max_in_a_row = max_in_a_row
        self.deferred = False
        self.in_a_row = 0
        self._batch: List[Dict[str, str]] = []
        # Samples, names of the losses and float (losses,), of batches that were not looked at.
        self._pending: List[Tuple[List[Dict[str, str]], List[str], torch.Tensor]] = []
        self._keys: Optional[List[str]] = None
        self._buffers: List[torch.Tensor] = []
        model.register_forward_pre_hook(self._before_forward)
        model.register_forward_hook(self._after_forward)

    def __deepcopy__(self, memo):
        """A copy of the model, such as moving averages, shares its guard."""
        return self

    def _before_forward(self, model: nn.Module, inputs) -> None:
        """Remember the batch and, to undo it, the floating-point buffers."""
        if not model.training:
            return
        self._batch = [
            {key: str(sample.get(key, "?")) for key in ("sample_id", "file_name")}
            for sample in inputs[0]
        ]
        if self.log is not None:
            self._buffers = [b.clone() for b in model.buffers() if b.is_floating_point()]

    def _after_forward(self, model: nn.Module, inputs, losses: Dict[str, torch.Tensor]):
        """Check the losses; returns zeros in their place when the batch is passed over."""
        if not model.training:
            return None
        if self._keys is None:
            self._check_keys(losses)
        values = torch.stack([value.detach().float() for value in losses.values()])
        self._pending.append((self._batch, list(losses), values))
        if self.deferred:
            return None
        is_bad = bool(self.is_bad().item())
        if self.log is None or not is_bad:
            self.in_a_row = 0
            return self.settle(is_bad)
        message = self._describe()
        self.in_a_row += 1
        if self.in_a_row > self.max_in_a_row:
            raise FloatingPointError(
                f"{message}This is batch {self.in_a_row} of this kind in a row, of which "
                f"{self.max_in_a_row} are skipped: training has diverged."
            )
        logger.warning("%sThe batch is passed over (DATALOADER.SKIP_BAD_SAMPLES).", message)
        if not torch.isfinite(values).all():
            self.log.add_batch(self._batch, message.splitlines()[0])
        floating = [b for b in model.buffers() if b.is_floating_point()]
        for buffer, before in zip(floating, self._buffers):
            buffer.copy_(before)
        # Every parameter stays in the graph, which DistributedDataParallel waits for.
        zero = sum((0.0 * p).sum().float() for p in model.parameters() if p.requires_grad)
        return {key: zero if i == 0 else zero.detach() for i, key in enumerate(losses)}

    def is_bad(self) -> torch.Tensor:
        """float scalar on the device: 1 if a loss since the last :meth:`settle` is not finite.

        The processes exchange it, so all have to call it.
        """
        values = torch.cat([values for _, _, values in self._pending])
        is_bad = (~torch.isfinite(values)).any().float()
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(is_bad, torch.distributed.ReduceOp.MAX)
        return is_bad

    def settle(self, is_bad: bool) -> None:
        """Forget the batches since the last call.

        Args:
            is_bad: what :meth:`is_bad` said.

        Raises:
            FloatingPointError: it is; the message names iteration, losses and samples.
        """
        if is_bad:
            message = self._describe()
            raise FloatingPointError(message + "The weights are those of the iteration before.")
        self._pending = []

    def _check_keys(self, losses: Dict[str, torch.Tensor]) -> None:
        """Detectron2 trains on every value of the dict, and averages over the keys of process 0."""
        keys = sorted(losses)
        wrong = [key for key in keys if not key.startswith("loss_")]
        if wrong:
            raise ValueError(
                f"the model returned {wrong} among its losses; everything in that dict is trained "
                "on, so it takes only loss_*; put other numbers in get_event_storage()"
            )
        for rank, other in enumerate(comm.all_gather(keys)):
            if other != keys:
                raise ValueError(
                    f"process {rank} has losses {other}, process {comm.get_rank()} has {keys}; the "
                    "keys must not depend on the data"
                )
        self._keys = keys

    def _describe(self) -> str:
        """Iteration, and for each process the losses that are not finite and their samples."""
        mine = []
        for batch, keys, values in self._pending:
            found = zip(keys, values.tolist())
            mine.append(({k: v for k, v in found if not math.isfinite(v)}, batch))
        self._pending = []
        iteration = get_event_storage().iter if has_event_storage() else "?"
        lines = [f"Loss became infinite or NaN at iteration={iteration}!"]
        for rank, batches in enumerate(comm.all_gather(mine)):
            for bad, batch in [x for x in batches if x[0]] or batches[-1:]:
                names = ", ".join(f"{x['sample_id']} ('{x['file_name']}')" for x in batch)
                text = ", ".join(f"{key} = {value}" for key, value in bad.items())
                lines.append(f"rank {rank}: {text or 'all losses finite'}; samples {names}")
        return "\n".join(lines) + "\n"


def _key(report: _Report) -> str:
    """What makes two reports one."""
    return f"{report['sample_id']} {report['file_name']}"


def _to_lines(reports: Dict[str, _Report]) -> str:
    return "".join(to_json_text(report) + "\n" for report in reports.values())
