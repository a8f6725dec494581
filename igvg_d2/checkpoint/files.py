"""Checkpoint files of any accepted kind, read and written as plain tensors."""

import argparse
import collections
import contextlib
import os
import pickle
import re
from typing import Any, Dict, Optional

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from igvg_d2.io.atomic import atomic_path
from igvg_d2.io.pickles import ARRAY_NAMES, RestrictedUnpickler

OUTPUT_ENDINGS = (".pth", ".pkl", ".safetensors")

# First bytes of PyTorch's files: a zip archive since 1.6, before it a pickled number.
_ZIP = b"PK\x03\x04"
_LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
_LONGEST_HEADER = 100_000_000  # bytes, safetensors' own limit

# What other projects leave beside the tensors, as settings, metrics or a scheduler's state: plain
# containers and numpy scalars. None of it runs code when it is read.
_ARRAY_MAKER = np.zeros(0).__reduce__()[0]
_SCALAR_MAKER = np.float64(0).__reduce__()[0]
_HARMLESS_TYPES = [
    *(argparse.Namespace, collections.Counter, collections.defaultdict, dict, list, int, float),
    *(np.dtype, np.ndarray),
    *(type(np.dtype(name)) for name in ("f2", "f4", "f8", "i4", "i8", "u1", "?")),
    *((_ARRAY_MAKER, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_SCALAR_MAKER, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def read_checkpoint(path: str, mmap: bool = True) -> Dict[str, Any]:
    """The content of a checkpoint file; no code in it is run.

    What kind of file it is shows in its first bytes, so that the ending does not matter: BEiT-3's
    files end in .zip, for instance.

    Args:
        path: a file of PyTorch (new or from before 1.6), of safetensors, or a pickle of numpy
            arrays as Detectron2's .pkl.
        mmap: leave PyTorch's tensors in the file until they are used. Not for a file that may be
            written again while its tensors live, as a run's own checkpoint is.

    Returns:
        what the file holds, numpy arrays as tensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint of plain tensors.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"No file '{path}'.")
    try:
        content = _read(path, mmap)
    except Exception as error:
        raise ValueError(
            f"'{path}' cannot be read as a checkpoint of plain tensors (its "
            f"{os.path.getsize(path):,} bytes are truncated, not a PyTorch file, or hold pickled "
            f"objects, which are refused; download or write it again): {_reason(error)}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"'{path}' cannot be read as a checkpoint: expected a dict of tensors, found a "
            f"{type(content).__name__}."
        )
    return content


def read_weights(path: str, mmap: bool = True) -> Dict[str, Any]:
    """As :func:`read_checkpoint`, with what a file of safetensors has in its header.

    Returns:
        the file's dict; of safetensors, one with the tensors under "model", "__author__" and, where
        it was recorded, "num_queries".
    """
    loaded = read_checkpoint(path, mmap)
    if is_safetensors(path):
        facts = read_metadata(path)
        loaded = {"model": loaded, "__author__": facts.get("author", "")}
        if "num_queries" in facts:
            loaded["num_queries"] = int(facts["num_queries"])
    return loaded


def read_metadata(path: str) -> Dict[str, str]:
    """Facts in the header of a file of safetensors, as text; {} when there are none."""
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def is_safetensors(path: str) -> bool:
    """Whether a file has the safetensors format, by its name or else by its first bytes."""
    if path.endswith(".safetensors"):
        return True
    with open(path, "rb") as file:
        start = file.read(9)
    header = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and header <= min(_LONGEST_HEADER, os.path.getsize(path) - 8)


def _read(path: str, mmap: bool) -> Any:
    """See :func:`read_checkpoint`; raises whatever the libraries raise."""
    with open(path, "rb") as file:
        start = file.read(len(_LEGACY))
    if is_safetensors(path):
        return load_file(path)
    zipped = start.startswith(_ZIP)
    if zipped or start == _LEGACY:
        with _harmless_types_allowed():
            # Old files cannot be mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipped)
    with open(path, "rb") as file:
        return _as_tensors(RestrictedUnpickler(file, ARRAY_NAMES).load())


def _reason(error: Exception) -> str:
    """One line of a library's error; PyTorch's goes on with advice to read the file unsafely."""
    refused = re.search(r"GLOBAL (\S+)", str(error))
    if refused:
        return f"it names {refused.group(1)}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _harmless_types_allowed() -> Any:
    """Context in which ``torch.load`` takes ``_HARMLESS_TYPES`` too, from PyTorch 2.6 on."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < (2, 6):
        return contextlib.nullcontext()
    return torch.serialization.safe_globals(_HARMLESS_TYPES)


def _as_tensors(content: Any) -> Any:
    """Numpy arrays of numbers in nested dicts, as tensors; they share memory."""
    if isinstance(content, dict):
        return {key: _as_tensors(value) for key, value in content.items()}
    is_numeric = isinstance(content, (np.ndarray, np.generic)) and content.dtype.kind in "fiub"
    return torch.as_tensor(content) if is_numeric else content


def write_checkpoint(
    path: str,
    state: Dict[str, torch.Tensor],
    author: str,
    container: str = "model",
    num_queries: Optional[int] = None,
) -> None:
    """Write tensors, with their origin. The file appears under its name when it is complete.

    Args:
        path: .pth and .pkl hold {container: state, "__author__": author}, .pkl with numpy arrays as
            Detectron2's; .safetensors holds the tensors, and the author in its header.
        state: tensors by name; none may share memory with another.
        author: who trained the weights.
        container: key of the state dict in .pth and .pkl.
        num_queries: N_q of the model, which no parameter shows; written as "num_queries".

    Raises:
        ValueError: another ending.
    """
    check_output(path)
    facts = {"__author__": author}
    if num_queries is not None:
        facts["num_queries"] = num_queries
    with atomic_path(path) as unfinished:
        if path.endswith(".safetensors"):
            header = {key.strip("_"): str(value) for key, value in facts.items()}
            contiguous = {key: tensor.contiguous() for key, tensor in state.items()}
            save_file(contiguous, unfinished, metadata=header)
        elif path.endswith(".pth"):
            torch.save({container: state, **facts}, unfinished)
        else:
            arrays = {key: tensor.numpy() for key, tensor in state.items()}
            with open(unfinished, "wb") as file:
                # Older protocols copy every array, and hold the copies until the end.
                pickle.dump({container: arrays, **facts}, file, protocol=5)


def check_output(path: str) -> None:
    """Refuse a file name that :func:`write_checkpoint` would refuse, before any work is done.

    Raises:
        ValueError: unknown ending.
    """
    if not path.endswith(OUTPUT_ENDINGS):
        raise ValueError(f"The output must end in one of {OUTPUT_ENDINGS}, got '{path}'.")
