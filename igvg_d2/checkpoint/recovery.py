"""Which checkpoint does a run continue from, when the last one may be damaged?"""

import logging
import os
import re
from typing import Any, Dict, List, Optional, Sequence, Tuple

from detectron2.utils import comm

from .files import read_weights

logger = logging.getLogger(__name__)

_NUMBERED = re.compile(r"model_(\d{7,})\.pth")
FINAL = "model_final.pth"


def is_numbered(name: Any) -> bool:
    """Whether a file name is that of a checkpoint with its iteration, in no other folder."""
    return isinstance(name, str) and _NUMBERED.fullmatch(name) is not None


def named_checkpoint(folder: str) -> Optional[str]:
    """Path of the checkpoint that ``last_checkpoint`` names; None if it names none."""
    try:
        with open(os.path.join(folder, "last_checkpoint"), errors="replace") as file:
            name = file.read().strip()
    except OSError:
        return None
    # A damaged or foreign file can hold anything; a run continues from its own folder only.
    is_own = name.isprintable() and name.endswith(".pth") and os.path.basename(name) == name
    return os.path.join(folder, name) if is_own else None


def list_checkpoints(folder: str) -> List[Tuple[Optional[int], str]]:
    """Checkpoints of a run, newest first.

    Returns:
        (iteration from 0, path). The final one, whose name has no number, comes first when it
        cannot be read, with None.
    """
    found: List[Tuple[Optional[int], str]] = []
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        match, path = _NUMBERED.fullmatch(name), os.path.join(folder, name)
        if match:
            found.append((int(match.group(1)), path))
        elif name == FINAL:
            found.append((_read_iteration(path), path))

    def order(item):
        return float("inf") if item[0] is None else item[0], item[1].endswith(FINAL)

    return sorted(found, key=order, reverse=True)


def _read_iteration(path: str) -> Optional[int]:
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
        content = read_weights(path, mmap=False)
    except FileNotFoundError:
        return "it is not there", None
    except (OSError, ValueError) as error:
        return str(error).splitlines()[0], None
    missing = [key for key in ("model", *required) if key not in content]
    return (f"it has no {missing}", None) if missing else ("", content)


def choose_checkpoint(
    folder: str, required: Sequence[str] = ()
) -> Tuple[Optional[str], Optional[Dict[str, Any]]]:
    """The checkpoint to continue from: the last one, or the newest older one that is whole.

    The first process looks, and all processes get its answer. What is passed over is logged with
    the reason and the number of iterations that have to be repeated.

    Args:
        folder: of the run.
        required: keys a checkpoint must have besides "model".

    Returns:
        (its path, None when there is no checkpoint; its content, in the first process only).

    Raises:
        ValueError: there are checkpoints and none of them can be read; in all processes.
    """
    path, content, message = None, None, ""
    if comm.is_main_process():
        path, content, message = _choose(folder, required)
    path, message = comm.all_gather((path, message))[0]
    if message:
        raise ValueError(message)
    return path, content


def _choose(folder: str, required: Sequence[str]):
    """(path, content, error message) of :func:`choose_checkpoint`, in one process."""
    faults = []
    for iteration, path in _candidates(folder):
        fault, content = find_fault(path, required)
        if not fault:
            if faults:
                newest, iteration = faults[0][0], content.get("iteration", iteration)
                known = None not in (newest, iteration)
                lost = str(newest - iteration) if known else "an unknown number of"
                logger.warning(
                    "Continuing from '%s' instead: %s iterations are repeated.", path, lost
                )
            return path, content, ""
        logger.warning("Checkpoint '%s' cannot be used: %s", path, fault)
        faults.append((iteration, f"  '{path}': {fault}"))
    if not faults:
        return None, None, ""
    lines = "\n".join(line for _, line in faults)
    return (
        None,
        None,
        f"--resume: '{folder}' has no checkpoint that can be read:\n{lines}\nNothing was changed. "
        "Restore one of them, or start again without --resume in another OUTPUT_DIR.",
    )


def _candidates(folder: str) -> List[Tuple[Optional[int], str]]:
    """(iteration, path) of the checkpoints that a run may continue from, the last one first."""
    last, found = named_checkpoint(folder), list_checkpoints(folder)
    if last is None:
        if found:
            logger.warning(
                "'%s' is missing or names no file; looking for the newest checkpoint instead.",
                os.path.join(folder, "last_checkpoint"),
            )
        return found
    newest = {path: iteration for iteration, path in found}.get(last)
    match = _NUMBERED.fullmatch(os.path.basename(last))
    if newest is None and match:
        newest = int(match.group(1))
    # Newer ones belong to another run in the same folder, or were abandoned on purpose; an unknown
    # number is no obstacle.
    older = [
        (iteration, path)
        for iteration, path in found
        if path != last and (iteration is None or newest is None or iteration <= newest)
    ]
    return [(newest, last), *older]
