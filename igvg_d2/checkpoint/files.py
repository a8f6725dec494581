"""Checkpoint files of any accepted kind, read and written as plain tensors."""

import argparse
import collections
import contextlib
import os
import pickle
import pickletools
import re
import zipfile
from typing import IO, Any, Dict, List, Optional

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from igvg_d2.io.atomic import atomic_path
from igvg_d2.io.onnx_header import read_onnx_metadata

OUTPUT_ENDINGS = (".pth", ".safetensors")

# First bytes of PyTorch's files: a zip archive since 1.6, before it a pickled number.
_ZIP = b"PK\x03\x04"
_LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
_LONGEST_HEADER = 100_000_000  # bytes, safetensors' own limit

# Pickles at the start of a file from before 1.6: number, version, system, content, names.
_LEGACY_PICKLES = 5
# Values in a tuple, those of its tuples included; a key is hashed by walking through all of them.
_LARGEST_TUPLE = 10_000


class _NumberType:
    """Stands in for ``numpy.dtype``, which a file could turn into one of objects."""

    def __init__(self, name: str, align: bool = False, copy: bool = False):
        if name not in ("f2", "f4", "f8", "i4", "i8", "u1", "b1"):
            raise ValueError(f"it has numbers of the unusual type {name!r:.20}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple) -> None:
        if state[1] not in ("<", "|"):
            raise ValueError(f"it has numbers of the unusual byte order {state[1]!r:.20}")


def _number(kind: _NumberType, content: bytes) -> Any:
    """Stands in for ``numpy.core.multiarray.scalar``."""
    return np.frombuffer(content, kind.dtype, count=1)[0].item()


# What other projects leave beside the tensors, as settings, metrics or a scheduler's state: plain
# containers and single numbers of numpy. None of it runs code when it is read.
_HARMLESS_TYPES = [
    *(argparse.Namespace, collections.Counter, collections.defaultdict, dict, list, int, float),
    *((_NumberType, name) for name in ("numpy.dtype", f"{__name__}._NumberType")),
    *((_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def read_checkpoint(path: str, mmap: bool = True) -> Dict[str, Any]:
    """The content of a checkpoint file; no code in it is run.

    What kind of file it is shows in its first bytes, so that the ending does not matter: BEiT-3's
    files end in .zip, for instance.

    Args:
        path: a file of PyTorch (new or from before 1.6) or of safetensors.
        mmap: leave PyTorch's tensors in the file until they are used. Not for a file that may be
            written again while its tensors live, as a run's own checkpoint is.

    Returns:
        what the file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not a checkpoint of plain tensors; names the file.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"No file '{path}'.")
    if path.endswith(".onnx"):
        raise ValueError(
            f"'{path}' is a graph, which the predictor, demo.py, app.py and benchmark.py --backend "
            "run; here name the weights that it was made of"
        )
    try:
        content = _read(path, mmap)
    except Exception as error:
        raise ValueError(
            f"'{path}' cannot be read as a checkpoint of plain tensors (its "
            f"{os.path.getsize(path):,} bytes are truncated, not a PyTorch file, or hold pickled "
            f"objects, which are refused; download or write it again): {_reason(error)}"
        ) from error
    try:
        _check_content(content)
    except ValueError as error:
        raise ValueError(
            f"'{path}' cannot be read as a checkpoint: {error}; choose another file, or save the "
            "model's state dict again"
        ) from None
    return content


def _check_content(content: Any) -> None:
    """Refuse what nothing could be loaded from."""
    _check_dict(content, "a dict of tensors")
    average = content.get("ema")
    if isinstance(average, dict) and "num_updates" in average:
        _check_dict(average.get("model"), "averaged tensors as 'model' of 'ema'")
        check_tensors(average["model"], "of 'ema' ")
    for name in ("model", "state_dict"):
        if name in content:
            _check_dict(content[name], f"a dict of tensors as '{name}'")
            check_tensors(content[name])
    if not all(isinstance(key, str) for key in content):
        raise ValueError("expected names of text")
    queries = content.get("num_queries")
    if queries is not None and (type(queries) is not int or queries < 1):
        raise ValueError(f"expected a number from 1 as 'num_queries', found {queries!r:.40}")


def _check_dict(found: Any, wanted: str) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"expected {wanted}, found a {type(found).__name__}")


def check_tensors(state: Dict[Any, Any], where: str = "") -> None:
    """Refuse, by ValueError, a state dict with something else than tensors with values."""
    for key, value in state.items():
        usable = isinstance(value, torch.Tensor) and value.layout == torch.strided
        if not isinstance(key, str) or not usable or value.is_meta or value.is_quantized:
            kind = type(value).__name__ if not isinstance(value, torch.Tensor) else value.layout
            kind = "a tensor without values" if getattr(value, "is_meta", False) else f"a {kind}"
            raise ValueError(f"expected plain tensors by name, found {kind} {where}as {key!r:.80}")


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
            queries = facts["num_queries"]
            if not re.fullmatch("[1-9][0-9]{0,5}", queries):
                raise ValueError(
                    f"'{path}': expected a number from 1 as 'num_queries' in the header, found "
                    f"{queries!r:.40}"
                )
            loaded["num_queries"] = int(queries)
    return loaded


def read_metadata(path: str) -> Dict[str, str]:
    """Facts in the header of a file of safetensors, or in an ONNX file (``.onnx``), as text."""
    if path.endswith(".onnx"):
        return read_onnx_metadata(path)
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
    if not zipped and start != _LEGACY:
        raise ValueError("it is no file of PyTorch or safetensors; pickles of arrays are not read")
    _check_parts(path, zipped)
    with _harmless_types_allowed():
        # Old files cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipped)


def _check_parts(path: str, zipped: bool) -> None:
    """Look at the check sums, which PyTorch writes and does not read, and at the pickles."""
    if not zipped:
        with open(path, "rb") as file:
            for _ in range(_LEGACY_PICKLES):
                _check_pickle(file)
        return
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"its part {damaged} is damaged (wrong check sum)")
        for name in archive.namelist():
            if name.endswith(".pkl"):
                with archive.open(name) as file:
                    _check_pickle(file)


def _check_pickle(file: IO[bytes]) -> None:
    """Refuse tuples whose hash would overflow the stack or never end, as keys could be.

    Follows one pickle without building anything: every value is the number of values in it as far
    as hashing it walks, which is 1 but for tuples.
    """
    stack: List[Optional[int]] = []  # None is a mark
    memo: Dict[int, Optional[int]] = {}

    def pop(kinds) -> int:
        total = 0
        for kind in reversed(kinds):
            value = stack.pop()
            while kind is pickletools.stackslice and value is not None:
                total += value
                value = stack.pop()
            total += value or 0
        return total

    for code, argument, _ in pickletools.genops(file):
        name = code.name
        if name.endswith("PUT") or name == "MEMOIZE":
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name.endswith("GET"):
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(None)
        else:
            # A mark below a slice is popped with it.
            before = [kind for kind in code.stack_before if kind is not pickletools.markobject]
            size = pop(before) + 1
            stack.extend([size if "TUPLE" in name else 1] * len(code.stack_after))
            if "TUPLE" in name and size > _LARGEST_TUPLE:
                raise ValueError(f"it has a tuple of more than {_LARGEST_TUPLE} values")


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


def write_checkpoint(
    path: str,
    state: Dict[str, torch.Tensor],
    author: str,
    container: str = "model",
    num_queries: Optional[int] = None,
) -> None:
    """Write tensors, with their origin. The file appears under its name when it is complete.

    Args:
        path: .pth holds {container: state, "__author__": author}; .safetensors holds the tensors,
            and the author in its header.
        state: tensors by name; none may share memory with another.
        author: who trained the weights.
        container: key of the state dict in .pth.
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
        else:
            torch.save({container: state, **facts}, unfinished)


def check_output(path: str) -> None:
    """Refuse a file name that :func:`write_checkpoint` would refuse, before any work is done.

    Raises:
        ValueError: unknown ending.
    """
    if not path.endswith(OUTPUT_ENDINGS):
        raise ValueError(f"The output must end in one of {OUTPUT_ENDINGS}, got '{path}'.")
