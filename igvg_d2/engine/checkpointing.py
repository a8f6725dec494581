"""When checkpoints are written, which are kept, and which model is the best."""

import glob
import logging
import math
import os
from typing import Any, Dict, List, Mapping, Optional

from detectron2.engine import HookBase
from detectron2.engine.hooks import PeriodicCheckpointer
from detectron2.utils import comm
from torch import nn

from igvg_d2.checkpoint import (
    FINAL,
    GroundingCheckpointer,
    is_numbered,
    named_checkpoint,
    read_checkpoint,
)

logger = logging.getLogger(__name__)

BEST = "model_best"


class CheckpointHook(PeriodicCheckpointer):
    """Detectron2's, with a limit on the number of files that holds across resumed runs.

    Deleted are only numbered checkpoints that this run wrote, which the checkpoints themselves
    remember; never the final one, the best model, or the one that ``last_checkpoint`` names.
    Register it in all processes; the first one writes.
    """

    def __init__(self, checkpointer: GroundingCheckpointer, period: int, keep: int = 0):
        """
        Args:
            checkpointer: of the training run.
            period: iterations between two checkpoints.
            keep: numbered checkpoints that are kept, the newest ones; 0 keeps all.
        """
        super().__init__(checkpointer, period)
        self.keep = keep
        self.written: List[str] = []
        self.last_saved: Optional[int] = None

    def before_train(self):
        """Remove what a killed process left half-written."""
        super().before_train()
        if self.trainer.start_iter > 0:
            self.last_saved = self.trainer.start_iter - 1
        folder = self.checkpointer.save_dir
        if self.checkpointer.save_to_disk and folder:
            for path in glob.glob(os.path.join(glob.escape(folder), "*.unfinished")):
                os.remove(path)

    def step(self, iteration: int) -> None:
        """Save at the end of an iteration if it is time; the final one after the last.

        Args:
            iteration: that has ended, from 0.
        """
        if (iteration + 1) % self.period == 0:
            self.save_now(iteration)
        if self.max_iter is not None and iteration >= self.max_iter - 1:
            self.checkpointer.save(FINAL.removesuffix(".pth"), iteration=iteration)
            self.last_saved = iteration

    def save_now(self, iteration: int) -> None:
        """Save at the end of an iteration, unless that was done already.

        Args:
            iteration: that has ended, from 0.
        """
        if self.last_saved == iteration:
            return
        name = f"{self.file_prefix}_{iteration:07d}"
        # Before it is written, so that it remembers itself.
        self.written = [x for x in self.written if x != f"{name}.pth"] + [f"{name}.pth"]
        self.checkpointer.save(name, iteration=iteration)
        self.last_saved = iteration
        folder = self.checkpointer.save_dir
        if self.keep == 0 or not self.checkpointer.save_to_disk or not folder:
            return
        protected = {os.path.basename(named_checkpoint(folder) or ""), *self.written[-self.keep :]}
        for name in [x for x in self.written if x not in protected]:
            path = os.path.join(folder, name)
            if os.path.isfile(path):
                os.remove(path)
            self.written.remove(name)

    def state_dict(self) -> Dict[str, Any]:
        """Names of the checkpoints that this run wrote and did not delete."""
        return {"written": list(self.written)}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Continue with the list of the run that is resumed."""
        # What a checkpoint says decides which files are deleted: no others than such.
        self.written = [name for name in state["written"] if is_numbered(name)]


class BestModelHook(HookBase):
    """Keeps the weights with the highest value of a metric in ``model_best.pth``.

    The file has what was evaluated (the moving average where there is one) under "model",
    "iteration" (from 0) and, under "best", metric and value. Value and iteration are also part of
    every checkpoint, so a resumed run compares with them. Detectron2's ``BestCheckpointer`` forgets
    them, and makes the best model the one a run is resumed from.
    """

    def __init__(self, checkpointer: GroundingCheckpointer, metric: str):
        """
        Args:
            checkpointer: of the training run.
            metric: a name of metrics.json, larger is better.
        """
        self.checkpointer = checkpointer
        self.metric = metric
        self.value: Optional[float] = None
        self.iteration: Optional[int] = None

    def update(self, results: Mapping[str, Any], iteration: int, model: nn.Module) -> None:
        """Compare an evaluation with the best one so far; call it in all processes.

        Args:
            results: metric name to value; empty in other processes than the first.
            iteration: after which the model was evaluated, from 0.
            model: that was evaluated.

        Raises:
            ValueError: there is no such metric; in all processes.
        """
        message = ""
        if comm.is_main_process() and self.metric not in results:
            message = (
                f"TEST.BEST_METRIC: no metric '{self.metric}', choose one of "
                f"{', '.join(sorted(results)) or 'none: nothing was evaluated'}"
            )
        message = comm.all_gather(message)[0]
        if message:
            raise ValueError(message)
        if not comm.is_main_process():
            return
        value = float(results[self.metric])
        best = "nothing so far"
        if self.value is not None:
            best = f"{self.value:.4f} after iteration {self.iteration}"
        if not math.isfinite(value) or (self.value is not None and value <= self.value):
            logger.info("%s is %.4f, not better than %s", self.metric, value, best)
            return
        logger.info("%s is %.4f, better than %s", self.metric, value, best)
        self.value, self.iteration = value, iteration
        model = getattr(model, "module", model)
        content = {"model": model.state_dict(), "iteration": iteration, "best": self.state_dict()}
        self.checkpointer.write(BEST, content)

    def before_train(self):
        """Learn of a best model that is younger than the checkpoint, but of this run."""
        folder = self.checkpointer.save_dir
        if self.trainer.start_iter == 0 or not comm.is_main_process() or not folder:
            return
        path = os.path.join(folder, f"{BEST}.pth")
        try:
            stored = read_checkpoint(path).get("best", {})
        except (FileNotFoundError, ValueError) as error:
            if self.value is not None:
                logger.warning("The best model is lost, the next one counts: %s", error)
            self.value = self.iteration = None
            return
        is_ours = stored.get("metric") == self.metric
        if is_ours and stored["iteration"] < self.trainer.start_iter:
            if self.value is None or stored["value"] > self.value:
                self.value, self.iteration = stored["value"], stored["iteration"]

    def state_dict(self) -> Dict[str, Any]:
        """Metric, best value and its iteration; {} before the first evaluation."""
        if self.value is None:
            return {}
        return {"metric": self.metric, "value": self.value, "iteration": self.iteration}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Continue with the best of the run that is resumed, if the metric is still the same."""
        if state["metric"] == self.metric:
            self.value, self.iteration = state["value"], state["iteration"]
        else:
            logger.warning(
                "The best model so far is that of %s; TEST.BEST_METRIC is now %s and begins anew.",
                *(state["metric"], self.metric),
            )
