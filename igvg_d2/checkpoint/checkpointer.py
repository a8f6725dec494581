"""Detectron2's checkpointer, made strict and safe, plus safetensors files."""

import logging
import os
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from detectron2.checkpoint import DetectionCheckpointer
from safetensors.torch import save_file
from torch import nn

from igvg_d2.io.atomic import atomic_path, write_atomically
from igvg_d2.model_zoo import resolve_weights

from .changed import NUM_QUERIES, change_tensors, suggest_options
from .files import read_weights
from .recovery import choose_checkpoint, list_checkpoints, named_checkpoint
from .released_files import ENCODER_ONLY, adapt_checkpoint

logger = logging.getLogger(__name__)

# How many keys of each kind an error lists before it only counts them.
_LISTED_KEYS = 12


class GroundingCheckpointer(DetectionCheckpointer):
    """``DetectionCheckpointer`` that fails when weights and model do not match.

    Reads .pth and .safetensors, and runs no code that is in them. Released InstanceVG
    checkpoints and files of BEiT-3, as downloaded, are converted while they are read. BEiT-3
    initialises the encoder and leaves the other parts as they are.

    A checkpoint with averaged weights ("ema") gives those, unless a run is resumed.
    """

    def save(self, name: str, tag_last: bool = True, **kwargs: Any) -> None:
        """See ``Checkpointer.save``; whole or not at all, whenever the process is killed.

        A file appears under its name when it is complete and on the disk, and becomes the last
        checkpoint after that. So the last checkpoint can always be loaded.

        Args:
            name: of the file, without ".pth".
            tag_last: a resumed run continues from it.
            kwargs: more to be stored.

        Raises:
            OSError: see :func:`igvg_d2.io.atomic.atomic_path`.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: item.state_dict() for key, item in self.checkpointables.items()}
        self.write(name, {"model": self.model.state_dict(), **states, **kwargs})
        if tag_last:
            self.tag_last_checkpoint(f"{name}.pth")

    def write(self, name: str, data: Dict[str, Any]) -> None:
        """Write ``data`` alone, with the weights under "model"; no run continues from it."""
        if not self.save_dir or not self.save_to_disk:
            return
        path = os.path.join(self.save_dir, f"{name}.pth")
        logger.info("Saving checkpoint to %s", path)
        with atomic_path(path, count_bytes(data)) as unfinished:
            torch.save(data, unfinished)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the last checkpoint, atomically."""
        write_atomically(os.path.join(self.save_dir, "last_checkpoint"), last_filename_basename)

    def has_checkpoint(self) -> bool:
        """Whether there is one, also if ``last_checkpoint`` got lost."""
        return bool(self.get_checkpoint_file())

    def get_checkpoint_file(self) -> str:
        """Path of the last checkpoint, else of the newest one; "" when there is none."""
        last = named_checkpoint(self.save_dir)
        return last or next((path for _, path in list_checkpoints(self.save_dir)), "")

    def resume_or_load(self, path: str, *, resume: bool = True) -> Dict[str, Any]:
        """See ``Checkpointer.resume_or_load``; passes over damaged checkpoints and says so.

        Raises:
            ValueError: there are checkpoints and none can be read; see :func:`choose_checkpoint`.
        """
        found, content = None, None
        if resume:
            required = ["trainer"] if "trainer" in self.checkpointables else []
            found, content = choose_checkpoint(self.save_dir, required)
        if found is None:
            return self.load(path, checkpointables=[])
        if self.save_to_disk and found != named_checkpoint(self.save_dir):
            self.tag_last_checkpoint(os.path.basename(found))
        # The first process has read it already, to see whether it can be read.
        content = content or read_weights(found, mmap=False)
        return self._load_content(found, content, list(self.checkpointables))

    def load(self, path: str, checkpointables: Optional[List[str]] = None) -> Dict[str, Any]:
        """See ``Checkpointer.load``; an empty path loads nothing, and every key must match.

        The path may be a name of ``igvg_d2.model_zoo`` or an address (``hf://``, ``https://``).

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no checkpoint, or its keys or shapes differ from the model's.
        """
        local = find_weights(path)
        if not local:
            logger.info("No checkpoint: the model has its initial weights")
            return {}
        wanted = list(self.checkpointables) if checkpointables is None else checkpointables
        # Not mapped: a training run writes its checkpoints again.
        content = read_weights(local, mmap=False)
        return self._load_content(path, content, wanted)

    def load_changed(
        self, path: str, resize: Sequence[str] = (), reset: Sequence[str] = ()
    ) -> Tuple[List[str], str]:
        """Load weights alone, of a model with another vocabulary, number of queries or parts.

        What may differ is named by the beginnings of names of tensors; all else must fit.

        Args:
            path: see :meth:`load`.
            resize: tables of which the rows that file and model share are loaded; the model's
                others keep their initial values. "num_queries" accepts another N_q.
            reset: not taken from the file, neither what the model has nor what it lacks.

        Returns:
            a line per tensor that is resized, new or left out, and the origin of the weights
            ("BEiT-3" for an encoder without the other parts, "InstanceVG", or "").

        Raises:
            ValueError: see :meth:`load`, with the names to give; or a name matches nothing.
        """
        content = read_weights(find_weights(path), mmap=False)
        checkpoint, tensors = self._convert(path, content, [], NUM_QUERIES in resize)
        author = checkpoint.get("__author__") or ""
        model = self.model.state_dict()
        tensors, lines = change_tensors(tensors, model, resize, reset)
        try:
            self._check_tensors(path, tensors, author)
        except ValueError as error:
            if author == ENCODER_ONLY:
                model = {key: value for key, value in model.items() if key.startswith("backbone.")}
            raise ValueError(f"{error}{suggest_options(tensors, model)}") from None
        self.model.load_state_dict(tensors, strict=False)
        return lines, author

    def _load_content(self, path: str, loaded: Dict[str, Any], wanted: List[str]) -> Dict[str, Any]:
        """Load the weights and the wanted checkpointables; returns what else there is."""
        checkpoint, tensors = self._convert(path, loaded, wanted)
        self._check_tensors(path, tensors, checkpoint.get("__author__"))
        self.model.load_state_dict(tensors, strict=False)
        for key in wanted:
            if key in checkpoint:
                self.checkpointables[key].load_state_dict(checkpoint.pop(key))
        return checkpoint

    def _convert(
        self, path: str, loaded: Dict[str, Any], wanted: List[str], any_queries: bool = False
    ) -> Tuple[Dict[str, Any], Dict[str, torch.Tensor]]:
        """What a file has beside the weights, and the weights by our names."""
        logger.info("Loading from %s", path)
        average = loaded.get("ema")
        if isinstance(average, dict) and "num_updates" in average and "trainer" not in wanted:
            logger.info("'%s' has averaged weights (SOLVER.EMA): these are loaded.", path)
            loaded = {**loaded, "model": average["model"]}
        checkpoint = dict(adapt_checkpoint(loaded, path, self.model, any_queries))
        tensors = {
            key.removeprefix("module."): torch.as_tensor(value)
            for key, value in checkpoint.pop("model").items()
        }
        return checkpoint, tensors

    def _check_tensors(
        self, path: str, tensors: Dict[str, torch.Tensor], author: Optional[str]
    ) -> None:
        """Refuse a file whose keys or shapes differ from the model's; see :meth:`load`."""
        model = self.model.state_dict()
        missing = [key for key in model if key not in tensors]
        if author == ENCODER_ONLY:
            heads = [key for key in missing if not key.startswith("backbone.")]
            missing = [key for key in missing if key.startswith("backbone.")]
            if heads:
                # A warning, because an evaluation of such a model makes no sense.
                logger.warning(
                    f"{len(heads)} tensors of the model are not in the file (it has the encoder "
                    f"only; trained from their initial values): {', '.join(heads)}"
                )
        shapes = [
            f"{key}: file {tuple(value.shape)}, model {tuple(model[key].shape)}"
            for key, value in tensors.items()
            if key in model and value.shape != model[key].shape
        ]
        problems = [
            _describe("in the model but not in the file", missing),
            _describe("in the file but not in the model", [k for k in tensors if k not in model]),
            _describe("of another shape", shapes),
        ]
        broken = [
            key
            for key, value in tensors.items()
            if value.is_floating_point() and not bool(value.isfinite().all())
        ]
        if broken:
            raise ValueError(
                f"'{path}' has NaN or infinite values, so its training has diverged; use an "
                f"earlier checkpoint.\n{_describe('with such values', broken)}"
            )
        if any(problems):
            raise ValueError(
                f"'{path}' does not fit the configured model.\n"
                + "\n".join(problem for problem in problems if problem)
                + "\nUse the config the checkpoint was trained with."
            )


def find_weights(path: str) -> str:
    """Local path of ``MODEL.WEIGHTS``, downloaded if need be; empty for none.

    Raises:
        FileNotFoundError, ValueError: see :func:`igvg_d2.model_zoo.resolve_weights`.
    """
    return resolve_weights(path) if path else ""


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
        path: file to write; a ValueError if it does not end in ".safetensors".
        metadata: e.g. {"command": ..., "seed": ..., "gIoU": ...}; values are text.
    """
    if not path.endswith(".safetensors"):
        raise ValueError(f"path must end in '.safetensors', got '{path}'.")
    tensors = {name: t.detach().cpu().clone() for name, t in model.state_dict().items()}
    save_file(tensors, path, metadata=metadata)


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
