"""Checkpoint files of any accepted kind, read and written as plain tensors."""

import os
import pickle
from typing import Any, Dict

import torch
from safetensors.torch import load_file, save_file

OUTPUT_ENDINGS = (".pth", ".pkl", ".safetensors")


# What pickled numpy arrays name, in numpy 1 and 2; nothing of it runs code of the file's choosing.
_ARRAY_NAMES = {
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays in plain containers; refuses whatever else a pickle names."""

    def find_class(self, module: str, name: str) -> Any:
        """Called by pickle for every name in the file."""
        if (module, name) not in _ARRAY_NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def read_checkpoint(path: str, mmap: bool = True) -> Dict[str, Any]:
    """The content of a checkpoint file; no code in it is run, whatever its ending.

    Args:
        path: .safetensors or .pkl (numpy arrays, as Detectron2's) by its ending, any other is read
            as PyTorch's.
        mmap: leave PyTorch's tensors in the file until they are used. Not for a file that may be
            written again while its tensors live, as a training's own checkpoint is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint of plain tensors.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"No file '{path}'.")
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        if path.endswith(".pkl"):
            with open(path, "rb") as file:
                return _ArrayUnpickler(file, encoding="latin1").load()
        # Files from before PyTorch 1.6, as BEiT-3's may be, cannot be mapped.
        mmap = mmap and _is_zip(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        raise ValueError(
            f"'{path}' cannot be read as a checkpoint of plain tensors (truncated, not a PyTorch "
            f"file, or holding pickled objects, which are refused): {error}"
        ) from error


def write_checkpoint(
    path: str, state: Dict[str, torch.Tensor], author: str, container: str = "model"
) -> None:
    """Write tensors, with their origin.

    Args:
        path: .pth and .pkl hold {container: state, "__author__": author}, .pkl with numpy arrays as
            Detectron2's; .safetensors holds the tensors, and the author in its header.
        state: tensors by name; none may share memory with another.
        author: who trained the weights.
        container: key of the state dict in .pth and .pkl.

    Raises:
        ValueError: another ending.
    """
    check_output(path)
    if path.endswith(".safetensors"):
        save_file({k: v.contiguous() for k, v in state.items()}, path, metadata={"author": author})
    elif path.endswith(".pth"):
        torch.save({container: state, "__author__": author}, path)
    else:
        arrays = {key: tensor.numpy() for key, tensor in state.items()}
        with open(path, "wb") as file:
            pickle.dump({container: arrays, "__author__": author}, file)


def check_output(path: str) -> None:
    """Refuse a file name that :func:`write_checkpoint` would refuse, before any work is done.

    Raises:
        ValueError: unknown ending.
    """
    if not path.endswith(OUTPUT_ENDINGS):
        raise ValueError(f"The output must end in one of {OUTPUT_ENDINGS}, got '{path}'.")


def _is_zip(path: str) -> bool:
    """Whether a file has PyTorch's format since 1.6, a zip archive."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"
