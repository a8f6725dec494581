"""Files that are there as a whole or not at all, and what a full disk has to say about it."""

import contextlib
import errno
import os
import shutil
import uuid
from typing import Any, BinaryIO, Callable, Optional

import torch

# Written by check_writable; a disk that cannot take it is full.
_PROBE_BYTES = 1 << 20


def write_whole(
    path: str, write: Callable[[BinaryIO], Any], needed_bytes: Optional[int] = None
) -> None:
    """Let ``write`` fill a file that takes its name when it is complete and on the disk.

    Args:
        path: file to write; one of this name stays as it is until the new one is complete.
        write: called with a binary file.
        needed_bytes: size of the file, as far as it is known, for the message of a full disk.

    Raises:
        OSError: the disk is full (``errno.ENOSPC``), with the path, the bytes it takes, those that
            are free, and what to do; or whatever the system says.
    """
    unfinished = f"{path}.unfinished"
    try:
        with open(unfinished, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        _sync_folder(path)
    except (OSError, RuntimeError) as error:
        # PyTorch turns the system's error into one of its own.
        _remove(unfinished)
        free = shutil.disk_usage(os.path.dirname(os.path.abspath(path))).free
        code = getattr(error, "errno", None)
        if code in (errno.ENOSPC, errno.EDQUOT) or free < (needed_bytes or 0):
            raise OSError(errno.ENOSPC, _describe_full_disk(path, needed_bytes, free)) from error
        raise
    finally:
        # Still there only when writing failed, e.g. on a full disk.
        _remove(unfinished)


def _remove(path: str) -> None:
    """Remove a file that may not be there."""
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)


def _sync_folder(path: str) -> None:
    """Bring the name of a file to the disk; its content is there already."""
    folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError:
        pass  # some network file systems cannot, and lose at most the newest name
    finally:
        os.close(folder)


def _describe_full_disk(path: str, needed_bytes: Optional[int], free: int) -> str:
    """The message of a full disk."""
    needed = f"{needed_bytes:,} bytes are needed, " if needed_bytes else ""
    return (
        f"No space left to write '{path}': {needed}{free:,} bytes are free (a quota may allow "
        "less). Earlier checkpoints are complete. Free some space or move the folder (a link in "
        "its place will do), then continue with --resume; SOLVER.CHECKPOINT_KEEP limits the number "
        "of checkpoints."
    )


def count_bytes(data: Any) -> int:
    """Bytes of all tensors in nested dicts, lists and tuples; shared memory counts once."""
    storages = {}

    def visit(item):
        if isinstance(item, torch.Tensor) and item.layout == torch.strided:
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(item, dict):
            for value in item.values():
                visit(value)
        elif isinstance(item, (list, tuple)):
            for value in item:
                visit(value)

    visit(data)
    return sum(storages.values())


def check_writable(folder: str) -> None:
    """Make a folder and write a file of 1 MiB there, before hours of work depend on it.

    Args:
        folder: of a run, ``OUTPUT_DIR``.

    Raises:
        OSError: one line with the folder, the reason and what to do.
    """
    probe = os.path.join(folder, f".writable_{uuid.uuid4().hex}")
    try:
        os.makedirs(folder, exist_ok=True)
        try:
            with open(probe, "wb") as file:
                file.write(bytes(_PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())
        finally:
            with contextlib.suppress(OSError):
                os.remove(probe)
    except OSError as error:
        raise OSError(
            error.errno,
            f"OUTPUT_DIR '{os.path.abspath(folder)}' cannot be written: {error.strerror}; set "
            "OUTPUT_DIR to a folder that you may write to and that has space.",
        ) from error
