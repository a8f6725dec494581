"""Counts and lists the bad samples that all data loaders of all processes came across."""

import json
import logging
import os
from typing import Any, Dict, List, Optional, Sequence

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from igvg_d2.data import REPORT_KEY
from igvg_d2.io.atomic import write_atomically

from .loss_guard import LossGuard

logger = logging.getLogger(__name__)

_Report = Dict[str, Any]


def watch_batches(cfg: CfgNode, model: nn.Module) -> Optional["BadSampleLog"]:
    """Guard a model's training losses, and list bad samples if they are to be skipped.

    Args:
        cfg: with ``DATALOADER.SKIP_BAD_SAMPLES``.
        model: before it is wrapped for several processes.

    Returns:
        the hook that lists them, to be registered with the trainer; None if the first one stops it.
    """
    if not cfg.DATALOADER.SKIP_BAD_SAMPLES:
        LossGuard(model)
        return None
    log = BadSampleLog(model, cfg.OUTPUT_DIR, periods=(20, cfg.SOLVER.CHECKPOINT_PERIOD))
    LossGuard(model, skip=True, report=log.add_batch)
    return log


class BadSampleLog(HookBase):
    """Writes ``bad_samples.jsonl``: one line per bad sample, however often it was met.

    The loaders send their reports along with the batches (see
    :class:`igvg_d2.data.bad_samples.BadSampleSkipper`), so what is listed was met by the training
    itself and not by a loader that ran ahead. A resumed training continues the file.
    """

    def __init__(
        self,
        model: nn.Module,
        output_dir: str,
        max_ratio: float = 0.5,
        periods: Sequence[int] = (20,),
    ):
        """
        Args:
            model: takes the batches; not wrapped for several processes.
            output_dir: folder of the run.
            max_ratio: share of the training set that may be bad.
            periods: iterations between two exchanges with the other processes, and between two
                checkpoints, after which a resumed training does not see the samples again.
        """
        self.path = os.path.join(output_dir, "bad_samples.jsonl")
        self.max_ratio = max_ratio
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
            lines = "".join(json.dumps(report) + "\n" for report in self.found.values())
            write_atomically(self.path, lines)
        self.found = comm.all_gather(self.found)[0]

    def after_step(self):
        """Exchange, log and write what is new, now and then.

        Raises:
            ValueError: more of the data set is bad than ``max_ratio``.
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
                file.write("".join(json.dumps(report) + "\n" for report in new.values()))
            for report in new.values():
                if "batch" not in report:  # the guard has logged those
                    logger.warning(
                        "Bad sample, replaced by %s: %s", report["replaced_by"], report["reason"]
                    )
        if self.num_bad > self.max_ratio * max(self.dataset_size, 1):
            raise ValueError(
                f"{self.num_bad} of {self.dataset_size} training samples are bad, more than the "
                f"share of {self.max_ratio} that is skipped; {self.path} lists them"
            )


def _key(report: _Report) -> str:
    """What makes two reports one."""
    return f"{report['sample_id']} {report['file_name']}"
