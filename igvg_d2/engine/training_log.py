"""metrics.json and TensorBoard of a resumed training are those of an uninterrupted one."""

import json
import logging
import os
from functools import cached_property
from typing import Any, Dict, List, Optional

from detectron2.engine import HookBase
from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter

from igvg_d2.checkpoint import write_whole

logger = logging.getLogger(__name__)

# Values over which Detectron2's writers take a median.
_WINDOW = 20
# Seconds of a step are of the process that measured them; Detectron2 begins after three steps.
_STEP_TIME = "time"


def read_metrics(path: str) -> Dict[int, Dict[str, Any]]:
    """Scalars of a ``metrics.json`` by iteration, ascending.

    Lines about one iteration are put together. A line that is no JSON, as a killed process can
    leave at the end, is passed over; so are lines without an iteration.

    Args:
        path: of the file; {} if there is none.
    """
    records: Dict[int, Dict[str, Any]] = {}
    if not os.path.isfile(path):
        return records
    with open(path, errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
                records.setdefault(int(record["iteration"]), {}).update(record)
            except (ValueError, KeyError, TypeError):
                continue
    return dict(sorted(records.items()))


class MetricsWriter(JSONWriter):
    """Detectron2's ``JSONWriter`` that opens its file late and can go back to an iteration."""

    def __init__(self, path: str):
        """
        Args:
            path: of ``metrics.json``.
        """
        self.path = path
        self._window_size = _WINDOW
        self._last_write = -1

    @cached_property
    def _file_handle(self):
        """The file, opened at the first line; Detectron2 opens it before anybody can mend it."""
        return open(self.path, "a")

    def continue_at(self, start_iter: int) -> None:
        """Drop what was written about this and later iterations; call it before the first line.

        The file of a run that begins anew is kept as ``metrics.json.previous``.

        Args:
            start_iter: first iteration that will run, from 0.
        """
        if not os.path.isfile(self.path):
            return
        if start_iter == 0:
            if os.path.getsize(self.path):
                os.replace(self.path, f"{self.path}.previous")
            return
        kept = [r for i, r in read_metrics(self.path).items() if i < start_iter]
        lines = "".join(json.dumps(record, sort_keys=True) + "\n" for record in kept)
        write_whole(self.path, lambda file: file.write(lines.encode()))
        self._last_write = kept[-1]["iteration"] if kept else -1

    def close(self):
        """Close the file if it was opened."""
        if "_file_handle" in self.__dict__:
            super().close()


class EventFileWriter(TensorboardXWriter):
    """Detectron2's TensorBoard writer; a resumed training hides the points it makes again."""

    def __init__(self, log_dir: str):
        """
        Args:
            log_dir: folder of the event files.
        """
        # The default of two minutes is what a kill would lose.
        super().__init__(log_dir, flush_secs=20)

    def continue_at(self, start_iter: int) -> None:
        """Hide what earlier processes wrote about this and later iterations.

        Args:
            start_iter: first iteration that will run, from 0.
        """
        self._writer_args["purge_step"] = start_iter


class TrainingLogHook(HookBase):
    """Brings log files and unwritten scalars back to where the checkpoint was written.

    The last values of every scalar are part of a checkpoint: writers show medians, and evaluations
    may wait to be written. Register it before all hooks that log.
    """

    def __init__(self, writers: Optional[List[EventWriter]] = None):
        """
        Args:
            writers: of the first process.
        """
        self.writers = writers or []
        self._scalars: Dict[str, Any] = {}

    def before_train(self):
        """Mend the files and restore the scalars."""
        start_iter = self.trainer.start_iter
        written = -1
        for writer in self.writers:
            if hasattr(writer, "continue_at") and (start_iter or isinstance(writer, JSONWriter)):
                writer.continue_at(start_iter)
            if isinstance(writer, JSONWriter):
                written = writer._last_write
        for writer in self.writers:
            if isinstance(getattr(writer, "_last_write", None), int):
                writer._last_write = written
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
            name: ([(float(v), int(i)) for v, i in history.values()[-_WINDOW:]], hints[name])
            for name, history in storage.histories().items()
            if name != _STEP_TIME
        }

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """To be restored when the training begins."""
        self._scalars = state


class ResumedWriter(PeriodicWriter):
    """Detectron2's ``PeriodicWriter``; writes first what an interrupted run was about to write."""

    def before_train(self):
        """The last process may have ended between a checkpoint and its line in metrics.json."""
        done, storage = self.trainer.start_iter, self.trainer.storage
        due = done > 0 and (done % self._period == 0 or done == self.trainer.max_iter)
        written = [w._last_write for w in self._writers if isinstance(w, JSONWriter)]
        if due and comm.is_main_process() and all(last < done - 1 for last in written):
            storage.iter = done - 1
            for writer in self._writers:
                writer.write()
            storage.iter = done

    def close(self):
        """Close the writers; what is not written yet is in the checkpoint."""
        for writer in self._writers:
            writer.close()
