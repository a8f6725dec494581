"""Detectron2's checkpointer, made strict and safe, plus safetensors files."""

import logging
import os
from typing import Any, Dict, Optional

from detectron2.checkpoint import DetectionCheckpointer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from .beit3_conversion import is_beit3
from .files import read_checkpoint
from .instancevg_conversion import convert_instancevg, is_instancevg

logger = logging.getLogger(__name__)

# Origin of files that hold the encoder alone, written by tools/convert-beit3-to-d2.py.
ENCODER_ONLY = "BEiT-3"
# How many keys of each kind an error lists before it only counts them.
_LISTED_KEYS = 12


class GroundingCheckpointer(DetectionCheckpointer):
    """``DetectionCheckpointer`` that fails when weights and model do not match.

    Reads .pth, .pkl and .safetensors, and runs no code that is in them. Released InstanceVG
    checkpoints are converted while they are read. A file of tools/convert-beit3-to-d2.py
    initialises the encoder and leaves the other parts as they are.
    """

    def load(self, path: str, *args, **kwargs) -> Dict[str, Any]:
        """See ``DetectionCheckpointer.load``; an empty path loads nothing.

        Raises:
            FileNotFoundError: a local file that does not exist.
            ValueError: the file is no checkpoint, or its keys or shapes differ from the model's.
        """
        if path and "://" not in path and not os.path.isfile(path):
            raise FileNotFoundError(
                f"MODEL.WEIGHTS: no file '{path}'; train a model first, or set MODEL.WEIGHTS to a "
                "checkpoint (.pth, .pkl or .safetensors)."
            )
        self._loading = path
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> Dict[str, Any]:
        """Read a checkpoint file as a dict with the key "model"."""
        # Not mapped: a training writes its checkpoints again.
        loaded = read_checkpoint(filename, mmap=False)
        if "model" not in loaded:
            loaded = {"model": loaded}
        if filename.endswith(".safetensors"):
            loaded["__author__"] = read_metadata(filename).get("author", "")
        return _in_our_names(loaded, filename)

    def _load_model(self, checkpoint: Any):
        """Load weights; every key must match."""
        encoder_only = checkpoint.get("__author__") == ENCODER_ONLY
        incompatible = super()._load_model(checkpoint)
        if encoder_only:
            others = [key for key in incompatible.missing_keys if not key.startswith("backbone.")]
            logger.info(
                f"The file holds the encoder; {len(others)} other tensors keep their values."
            )
            incompatible.missing_keys[:] = set(incompatible.missing_keys) - set(others)
        problems = [
            _describe("in the model but not in the file", incompatible.missing_keys),
            _describe("in the file but not in the model", incompatible.unexpected_keys),
            _describe(
                "of another shape",
                [f"{key}: file {a}, model {b}" for key, a, b in incompatible.incorrect_shapes],
            ),
        ]
        problems = [problem for problem in problems if problem]
        if problems:
            raise ValueError(
                f"'{self._loading}' does not fit the configured model.\n"
                + "\n".join(problems)
                + "\nUse the config the checkpoint was trained with."
            )
        return incompatible


def _in_our_names(loaded: Dict[str, Any], filename: str) -> Dict[str, Any]:
    """Convert a released InstanceVG checkpoint; anything else passes unchanged."""
    state = loaded["model"]
    if is_beit3(loaded):
        raise ValueError(
            f"'{filename}' is a file of BEiT-3; convert it to the configured image and patch size "
            "first: tools/convert-beit3-to-d2.py."
        )
    if not isinstance(state, dict) or not is_instancevg(state.get("state_dict", state)):
        return loaded
    converted, report = convert_instancevg(state)
    logger.info(
        f"'{filename}' is a released InstanceVG checkpoint with {report.size.num_queries} "
        "queries (MODEL.QUERY_GENERATOR.NUM_OBJECT_QUERIES); "
        f"{len(report.dropped)} tensors without effect are left out."
    )
    return {"model": converted, "__author__": "InstanceVG"}


def _describe(what: str, keys) -> str:
    """One line per kind of mismatch; "" when there is none."""
    if not keys:
        return ""
    shown = ", ".join(keys[:_LISTED_KEYS])
    more = f", and {len(keys) - _LISTED_KEYS} more" if len(keys) > _LISTED_KEYS else ""
    return f"  {len(keys)} tensors {what}: {shown}{more}"


def export_safetensors(
    model: nn.Module, path: str, metadata: Optional[Dict[str, str]] = None
) -> None:
    """Write the weights of a model as safetensors, with facts about their origin in the header.

    Args:
        model: any module; tensors that share memory are stored once per name.
        path: file to write, ending in ".safetensors".
        metadata: e.g. {"command": ..., "seed": ..., "gIoU": ...}; values are text.

    Raises:
        ValueError: another file ending.
    """
    if not path.endswith(".safetensors"):
        raise ValueError(f"path must end in '.safetensors', got '{path}'.")
    tensors = {name: t.detach().cpu().clone() for name, t in model.state_dict().items()}
    save_file(tensors, path, metadata=metadata)


def read_metadata(path: str) -> Dict[str, str]:
    """The facts stored by :func:`export_safetensors`; {} when there are none."""
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}
