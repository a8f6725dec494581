"""Atomic writes, and clear errors for a full or unwritable disk."""

import contextlib
import errno
import os
import shutil
import uuid
from typing import Iterator, Optional, Union

# Ending of a file that is still being written; a killed process leaves it behind.
UNFINISHED = ".unfinished"
# Written by check_writable; a disk that cannot take it is full.
_PROBE_BYTES = 1 << 20


@contextlib.contextmanager
def atomic_path(path: str, needed_bytes: Optional[int] = None) -> Iterator[str]:
    """Context in which a file is written that takes its name when it is complete and on the disk.

    ``with atomic_path("x.pth") as unfinished: torch.save(data, unfinished)``. A file of this name
    stays as it is until the new one is complete; after an error the new one is removed.

    Args:
        path: file to write, in a folder that exists.
        needed_bytes: size of the file, as far as it is known, for the message of a full disk.

    Yields:
        the path to write to, an empty file; whoever writes closes it again.

    Raises:
        OSError: the disk is full (``errno.ENOSPC``), with the path, the bytes it takes, those that
            are free, and what to do; or whatever the system says.
    """
    unfinished = path + UNFINISHED
    try:
        with open(unfinished, "wb") as file:
            mode = os.stat(file.fileno()).st_mode
        yield unfinished
        # safetensors keeps its files from other users; this one gets the rights of any new file.
        os.chmod(unfinished, mode)
        _sync(unfinished)
        os.replace(unfinished, path)
        with contextlib.suppress(OSError):  # some network file systems cannot sync a folder
            _sync(os.path.dirname(os.path.abspath(path)))
    except (OSError, RuntimeError) as error:
        # PyTorch turns the system's error into a RuntimeError.
        remove_if_there(unfinished)
        free = shutil.disk_usage(os.path.dirname(os.path.abspath(path))).free
        code = getattr(error, "errno", None)
        if code in (errno.ENOSPC, errno.EDQUOT) or free < (needed_bytes or 0):
            raise OSError(errno.ENOSPC, _describe_full_disk(path, needed_bytes, free)) from error
        raise
    finally:
        remove_if_there(unfinished)


def write_atomically(path: str, content: Union[str, bytes]) -> None:
    """Write a small file, text as UTF-8; see :func:`atomic_path`."""
    with atomic_path(path, len(content)) as unfinished, open(unfinished, "wb") as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def remove_if_there(path: str) -> None:
    """Remove a file that may not be there."""
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)


def _sync(path: str) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _describe_full_disk(path: str, needed_bytes: Optional[int], free: int) -> str:
    """The message of a full disk."""
    needed = f"{needed_bytes:,} bytes are needed, " if needed_bytes else ""
    return (
        f"No space left to write '{path}': {needed}{free:,} bytes are free (a quota may allow "
        "less). Earlier checkpoints are complete. Free some space or move the folder (a link in "
        "its place will do), then continue with --resume; SOLVER.CHECKPOINT_KEEP limits the number "
        "of checkpoints."
    )


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
