"""One run at a time writes into an output folder."""

import contextlib
import json
import logging
import os
import socket
from typing import Any, Dict, Iterator, Optional, Tuple

from igvg_d2.io.atomic import remove_if_there
from igvg_d2.io.json_stream import to_json_text

logger = logging.getLogger(__name__)

LOCK = "run.lock"
# Path, and the process that holds it: a forked one inherits this.
_held: Optional[Tuple[str, int]] = None


class FolderInUseError(RuntimeError):
    """Another run writes into the folder; the message says which one and what to do."""


@contextlib.contextmanager
def output_lock(folder: str) -> Iterator[None]:
    """Context in which this process, and those it starts, alone write into a folder.

    The file ``run.lock`` there has host, number and begin of the process. It is removed at the
    end; one that a killed process of this host left is replaced.

    Raises:
        FolderInUseError: the process of such a file runs, or may run, being of another host.
    """
    global _held
    path = os.path.join(folder, LOCK)
    _take(path)
    _held = path, os.getpid()
    try:
        yield
    finally:
        release_output_lock()


def release_output_lock() -> None:
    """Remove the file that this process holds, if any; also for an end without exceptions."""
    global _held
    if _held is not None and _held[1] == os.getpid():
        remove_if_there(_held[0])
        _held = None


def _take(path: str) -> None:
    """Write the file, or raise."""
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "begin": _begin(os.getpid())}
    while True:
        try:
            with open(path, "x") as file:
                file.write(to_json_text(owner))
            return
        except FileExistsError:
            _remove_if_stale(path)


def _remove_if_stale(path: str) -> None:
    """Remove a file whose process is known to have ended, or raise."""
    try:
        with open(path, "rb") as file:
            found: Dict[str, Any] = json.loads(file.read(1000))
        host, pid, begin = found["host"], int(found["pid"]), found["begin"]
    except FileNotFoundError:
        return
    except (ValueError, TypeError, KeyError):
        host, pid, begin = "of unknown name", 0, None
    is_known = host == socket.gethostname() and pid > 0
    if is_known and _begin(pid) not in (begin, "unknown"):
        logger.warning("'%s' is of process %d, which has ended: it is replaced.", path, pid)
        remove_if_there(path)
        return
    remedy = f" If that run ended without removing '{path}', as in a crash, remove the file."
    raise FolderInUseError(
        f"OUTPUT_DIR '{os.path.dirname(path)}' is in use by process {pid} on host {host!r}; wait "
        f"for that run, end it, or set another OUTPUT_DIR.{'' if is_known else remedy}"
    )


def _begin(pid: int) -> Optional[str]:
    """When a process began, so that another one of its number is not taken for it; None if ended.

    Linux tells clock ticks since the machine was started; elsewhere it is "unknown".
    """
    with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
        # A zombie has ended, and waits for its parent to ask.
        return None if fields[0] == "Z" else fields[19]
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        pass  # of another user
    return "unknown"
