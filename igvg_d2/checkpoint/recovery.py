"""Which checkpoint does a run continue from, when the last one may be damaged?"""

import logging
import os
import re
import zipfile
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from detectron2.utils import comm

from .files import read_weights

logger = logging.getLogger(__name__)

_NUMBERED = re.compile(r"model_(\d{7,})\.pth")
FINAL = "model_final.pth"


class Choice(NamedTuple):
    """A checkpoint to continue from.

    Attributes:
        path: the file.
        content: what is in it; None in processes other than the first.
    """

    path: str
    content: Optional[Dict[str, Any]]


def named_checkpoint(folder: str) -> Optional[str]:
    """Path of the checkpoint that ``last_checkpoint`` names; None if it names none."""
    try:
        with open(os.path.join(folder, "last_checkpoint"), errors="replace") as file:
            name = file.read().strip()
    except OSError:
        return None
    # A name in full, since a damaged file can hold anything.
    return os.path.join(folder, name) if name.isprintable() and name.endswith(".pth") else None


def list_checkpoints(folder: str) -> List[Tuple[Optional[int], str]]:
    """Checkpoints of a training, newest first.

    Args:
        folder: of the run.

    Returns:
        (iteration from 0, path). The final one, whose name has no number, comes first when it
        cannot be read, with None.
    """
    names = os.listdir(folder) if os.path.isdir(folder) else []
    found: List[Tuple[Optional[int], str]] = []
    for name in names:
        match = _NUMBERED.fullmatch(name)
        if match:
            found.append((int(match.group(1)), os.path.join(folder, name)))
    if FINAL in names:
        path = os.path.join(folder, FINAL)
        found.append((read_iteration(path), path))

    def order(item):
        return float("inf") if item[0] is None else item[0], item[1].endswith(FINAL)

    return sorted(found, key=order, reverse=True)


def read_iteration(path: str) -> Optional[int]:
    """The iteration at whose end a checkpoint was written; None if it cannot be read."""
    try:
        return int(read_weights(path)["iteration"])
    except (KeyError, TypeError, ValueError, OSError):
        return None


def find_fault(path: str, required: Sequence[str] = ()) -> Tuple[str, Optional[Dict[str, Any]]]:
    """Read a checkpoint as a whole.

    Args:
        path: the file.
        required: keys it must have besides "model".

    Returns:
        (what is wrong with it, or ""; its content, if nothing is).
    """
    try:
        if zipfile.is_zipfile(path):
            # PyTorch writes check sums but does not look at them.
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                return f"its part {damaged} is damaged (wrong check sum)", None
        content = read_weights(path, mmap=False)
    except FileNotFoundError:
        return "it is not there", None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        return str(error).splitlines()[0], None
    missing = [key for key in ("model", *required) if key not in content]
    return (f"it has no {missing}", None) if missing else ("", content)


def choose_checkpoint(folder: str, required: Sequence[str] = ()) -> Optional[Choice]:
    """The checkpoint to continue from: the last one, or the newest older one that is whole.

    The first process looks, and all processes get its answer. What is passed over is logged with
    the reason and the number of iterations that have to be repeated.

    Args:
        folder: of the run.
        required: keys a checkpoint must have besides "model".

    Returns:
        None when there is no checkpoint.

    Raises:
        ValueError: there are checkpoints and none of them can be read; in all processes.
    """
    content, message = None, ""
    path: Optional[str] = None
    if comm.is_main_process():
        path, content, message = _choose(folder, required)
    path, message = comm.all_gather((path, message))[0]
    if message:
        raise ValueError(message)
    return None if path is None else Choice(path, content)


def _choose(folder: str, required: Sequence[str]):
    """(path, content, error message) of :func:`choose_checkpoint`, in one process."""
    last = named_checkpoint(folder)
    candidates = list_checkpoints(folder)
    if last is None:
        if not candidates:
            return None, None, ""
        logger.warning(
            "'%s' is missing or names no file; looking for the newest checkpoint instead.",
            os.path.join(folder, "last_checkpoint"),
        )
    else:
        newest = dict((path, iteration) for iteration, path in candidates).get(last)
        if newest is None and not last.endswith(FINAL):
            match = _NUMBERED.fullmatch(os.path.basename(last))
            newest = int(match.group(1)) if match else None
        # Newer ones belong to another run in the same folder, or were abandoned on purpose.
        older = [x for x in candidates if x[1] != last and _is_older(x[0], newest)]
        candidates = [(newest, last), *older]
    faults = []
    for iteration, path in candidates:
        fault, content = find_fault(path, required)
        if not fault:
            if faults:
                _report(faults, path, content.get("iteration", iteration))
            return path, content, ""
        faults.append((iteration, path, fault))
    lines = "\n".join(f"  '{path}': {fault}" for _, path, fault in faults)
    return (
        None,
        None,
        f"--resume: '{folder}' has no checkpoint that can be read:\n{lines}\nNothing was changed. "
        "Restore one of them, or start again without --resume in another OUTPUT_DIR.",
    )


def _is_older(iteration: Optional[int], newest: Optional[int]) -> bool:
    """Whether a checkpoint may stand in for a damaged one; an unknown number is no obstacle."""
    return iteration is None or newest is None or iteration <= newest


def _report(faults, path: str, iteration: Optional[int]) -> None:
    """Say which checkpoints were passed over, and what is lost."""
    for number, damaged, fault in faults:
        logger.warning("Checkpoint '%s' cannot be used: %s", damaged, fault)
    newest = faults[0][0]
    lost = "an unknown number of" if None in (newest, iteration) else str(newest - iteration)
    logger.warning("Continuing from '%s' instead: %s iterations are repeated.", path, lost)
