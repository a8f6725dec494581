"""metrics.json and TensorBoard of a resumed run are those of an uninterrupted one."""

import json
import os
from collections import defaultdict
from typing import Any, Dict, List, Optional

from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, TensorboardXWriter, get_event_storage

from igvg_d2.io.atomic import write_atomically

# Values over which writers take a median, as Detectron2's do.
WINDOW = 20
# Seconds of a step are of the process that measured them; Detectron2 begins after three steps.
_STEP_TIME = "time"


def read_metrics(path: str) -> Dict[int, Dict[str, Any]]:
    """Scalars of a ``metrics.json`` by iteration, ascending; {} if there is no such file.

    Lines about one iteration are put together. A line that is no JSON, as a killed process can
    leave at the end, is passed over; so are lines without an iteration.
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


class MetricsWriter(EventWriter):
    """One JSON object per iteration, as Detectron2's ``JSONWriter``; can go back to an iteration.

    Attributes:
        last: iteration of the newest line, from 0; -1 before the first one.
    """

    def __init__(self, path: str):
        """
        Args:
            path: of ``metrics.json``.
        """
        self.path = path
        self.last = -1

    def continue_at(self, start_iter: int) -> int:
        """Drop what was written about this and later iterations; call it before the first line.

        The file of a run that begins anew is kept as ``metrics.json.previous``.

        Args:
            start_iter: first iteration that will run, from 0.

        Returns:
            :attr:`last`.
        """
        if start_iter > 0 and os.path.isfile(self.path):
            kept = [r for i, r in read_metrics(self.path).items() if i < start_iter]
            lines = "".join(json.dumps(record, sort_keys=True) + "\n" for record in kept)
            write_atomically(self.path, lines)
            self.last = kept[-1]["iteration"] if kept else -1
        elif os.path.isfile(self.path) and os.path.getsize(self.path):
            os.replace(self.path, f"{self.path}.previous")
        return self.last

    def write(self):
        """Append what is newer than the last line."""
        news: Dict[int, Dict[str, Any]] = defaultdict(dict)
        latest = get_event_storage().latest_with_smoothing_hint(WINDOW)
        for name, (value, iteration) in latest.items():
            if iteration > self.last:
                news[iteration][name] = value
        if not news:
            return
        with open(self.path, "a") as file:
            for iteration, scalars in sorted(news.items()):
                file.write(json.dumps({**scalars, "iteration": iteration}, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.last = max(news)


class EventFileWriter(EventWriter):
    """Detectron2's TensorBoard writer; a resumed run hides the points that it makes again."""

    def __init__(self, log_dir: str):
        """
        Args:
            log_dir: folder of the event files.
        """
        self.log_dir = log_dir
        self.writer: Optional[TensorboardXWriter] = None

    def continue_at(self, start_iter: int, last: int) -> None:
        """Begin; hide what earlier processes wrote about this and later iterations.

        Args:
            start_iter: first iteration that will run, from 0.
            last: iteration up to which everything is written.
        """
        # Flushed after two minutes by default, which is what a kill would lose.
        purge = start_iter or None
        self.writer = TensorboardXWriter(self.log_dir, flush_secs=20, purge_step=purge)
        self.writer._last_write = last

    def write(self):
        """Write what is new."""
        self.writer.write()

    def close(self):
        """Close the file."""
        self.writer.close()


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
        start_iter, last = self.trainer.start_iter, -1
        for writer in self.writers:
            if isinstance(writer, MetricsWriter):
                last = writer.continue_at(start_iter)
        for writer in self.writers:
            if isinstance(writer, EventFileWriter):
                writer.continue_at(start_iter, last)
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


class WriterHook(HookBase):
    """Lets the writers write now and then, first what an interrupted run was about to write."""

    def __init__(self, writers: List[EventWriter], period: int = 20):
        """
        Args:
            writers: of the first process.
            period: iterations.
        """
        self.writers = writers
        self.period = period

    def before_train(self):
        """The last process may have ended between a checkpoint and its line in metrics.json."""
        done, storage = self.trainer.start_iter, self.trainer.storage
        due = done > 0 and (done % self.period == 0 or done == self.trainer.max_iter)
        written = [w.last for w in self.writers if isinstance(w, MetricsWriter)]
        if due and comm.is_main_process() and all(last < done - 1 for last in written):
            storage.iter = done - 1
            self._write()
            storage.iter = done

    def after_step(self):
        """Write if it is time."""
        done = self.trainer.iter + 1
        if done % self.period == 0 or done == self.trainer.max_iter:
            self._write()

    def after_train(self):
        """Write what came after the last step, and close."""
        self._write()
        self.close()

    def _write(self) -> None:
        for writer in self.writers:
            writer.write()

    def close(self) -> None:
        """Close the writers; what is not written yet is in the checkpoint."""
        for writer in self.writers:
            writer.close()
