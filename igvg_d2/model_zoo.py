"""Models by name: config, weights and tokenizer file together.

    python -m igvg_d2.model_zoo --list

A name is accepted as ``MODEL.WEIGHTS`` and in place of a config file, by every script. What is not
on this machine is downloaded when a model is loaded, never before.
"""

import argparse
import os
import sys
import urllib.error
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Union

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from tabulate import tabulate

from .io.hub import BEIT3_INDOMAIN, BEIT3_TOKENIZER, KNOWN_SHA256, find_cached

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
_RELEASED = "hf://Dmmm997/InstanceVG/InstanceVG-{}.pth"
_SHAPES_TINY = "weights/igvg_tiny_shapes.safetensors"
_SHAPES_TINY_SHA256 = "48a13e58c4e8e8b2036a52028b86dc393776bf83df1633fba531a02480db2a6e"


class Model(NamedTuple):
    """One entry.

    Attributes:
        weights: an address that begins with "hf://", or a path below the package.
        config: a path below ``igvg_d2/configs``; "" where the weights carry their config.
        tokenizer: address of the tokenizer's file; "" where it needs none.
        note: what the model is.
        size: of the weights in bytes, None where it is not known before a download.
    """

    weights: str
    config: str
    tokenizer: str
    note: str
    size: Optional[int] = None

    @property
    def sha256(self) -> Optional[str]:
        """Of the weights, 64 hexadecimal digits; None where it is not known."""
        return (
            _SHAPES_TINY_SHA256 if self.weights == _SHAPES_TINY else KNOWN_SHA256.get(self.weights)
        )

    def find(self) -> Optional[str]:
        """Local path of the weights if they are on this machine."""
        if self.weights.startswith("hf://"):
            return find_cached(self.weights)
        path = os.path.join(_PACKAGE, self.weights)
        return path if os.path.isfile(path) else None


def _released(file: str, config: str, note: str) -> Model:
    return Model(_RELEASED.format(file), config, BEIT3_TOKENIZER, f"released InstanceVG, {note}")


_BASE = "instancevg_beit3_base_320_released.yaml"
_ENCODER = "Photos/igvg_beit3_base_320_custom.yaml"
MODELS: Dict[str, Model] = {
    "instancevg-grefcoco": _released("grefcoco", f"gRefCOCO/{_BASE}", "gRefCOCO"),
    "instancevg-refzom": _released("refzom", f"Ref-ZOM/{_BASE}", "Ref-ZOM"),
    "instancevg-rrefcoco": _released("rrefcoco", f"R-RefCOCO/{_BASE}", "R-RefCOCO, +, g"),
    "instancevg-refcoco-base": _released("B-refcoco", f"RefCOCO/{_BASE}", "RefCOCO, +, g"),
    "instancevg-refcoco-large": _released(
        "L-refcoco", "RefCOCO/instancevg_beit3_large_320_released.yaml", "RefCOCO, +, g, large"
    ),
    # Where a copy of it lies has not been seen: the repository is searched when it is asked for.
    "beit3-base": Model(
        "hf://linhuixiao/OneRef/beit3_checkpoints/beit3_base_patch16_224.pth",
        _ENCODER,
        BEIT3_TOKENIZER,
        "encoder to train from, that of the paper",
    ),
    "beit3-base-indomain": Model(
        BEIT3_INDOMAIN,
        _ENCODER,
        BEIT3_TOKENIZER,
        "encoder to train from, in-domain",
        554_000_000,
    ),
    "shapes-tiny": Model(_SHAPES_TINY, "", "", "trained here, knows coloured shapes only"),
}


def names() -> List[str]:
    """All names, released models first."""
    return list(MODELS)


def get(name: str) -> Model:
    """The entry of a name; a ValueError that lists the names if there is none."""
    if name not in MODELS:
        raise ValueError(f"no model '{name}'; the names are {', '.join(MODELS)}")
    return MODELS[name]


def resolve_weights(name_or_file: str) -> str:
    """Local path of weights, downloaded if need be.

    Args:
        name_or_file: a name of `MODELS`, a path, or an address (``hf://``, ``https://``).

    Raises:
        FileNotFoundError: there is no such file; says what to do.
        ValueError: a file of the hub has another SHA-256 than it should; for errors of a download
            see :func:`igvg_d2.io.hub.download`.
    """
    model = MODELS.get(name_or_file)
    address = model.weights if model else name_or_file
    if "://" in address:
        try:
            return PathManager.get_local_path(address)
        except urllib.error.URLError as error:
            raise FileNotFoundError(f"'{address}' was not downloaded: {error}") from error
    path = os.path.join(_PACKAGE, address) if model else address
    if os.path.isfile(path):
        return path
    if model:
        remedy = "this installation lacks it: take demo/igvg_tiny_shapes.safetensors of a checkout"
    elif os.path.basename(path).startswith(("beit3_base", "beit3_large")):
        remedy = (
            "download that file of BEiT-3 (github.com/microsoft/unilm, folder beit3, 'Pretrained "
            "models') and set MODEL.WEIGHTS to where it is, or for the base size to "
            'beit3-base-indomain, which is downloaded; MODEL.WEIGHTS "" trains from random weights'
        )
    else:
        remedy = (
            "train a model first, or set it to a checkpoint (.pth or .safetensors), an address "
            f"hf://owner/repo/path or a name ({', '.join(MODELS)})"
        )
    raise FileNotFoundError(f"MODEL.WEIGHTS: no file '{path}'; {remedy}.")


def load(
    name_or_file: Union[str, os.PathLike],
    device: str = "auto",
    opts: Sequence[str] = (),
    add_config: Sequence[Callable[[CfgNode], None]] = (),
) -> CfgNode:
    """The complete config of a model, with everything that it needs on this machine.

    Args:
        name_or_file: a name of `MODELS`, or a file of safetensors or ONNX that carries its config
            (path or address), or a checkpoint in the folder of its training run, beside
            ``config.yaml``; also a config file, which names its weights itself.
        device: "auto" (a GPU if there is one), or as ``MODEL.DEVICE``: "cpu", "cuda", "cuda:1",
            "mps".
        opts: KEY VALUE pairs, the strongest.
        add_config: see :func:`igvg_d2.engine.setup_config`.

    Returns:
        CfgNode, not frozen, whose ``MODEL.WEIGHTS`` and ``INPUT.TOKENIZER.FILE`` are local paths
        (or empty).

    Raises:
        FileNotFoundError, ValueError: see :func:`resolve_weights` and
            :func:`igvg_d2.engine.setup_config`.
    """
    # Late: engine joins all rooms, and the rooms may know this file.
    from .engine.setup import setup_config

    name_or_file = os.fspath(name_or_file)
    chosen = [] if device == "auto" else ["MODEL.DEVICE", device]
    if name_or_file.endswith(".pth"):
        chosen += ["MODEL.WEIGHTS", resolve_weights(name_or_file)]
        name_or_file = os.path.join(os.path.dirname(name_or_file), "config.yaml")
    cfg = setup_config(name_or_file, [*chosen, *opts], add_config)
    if cfg.MODEL.WEIGHTS:
        cfg.MODEL.WEIGHTS = resolve_weights(cfg.MODEL.WEIGHTS)
    if cfg.INPUT.TOKENIZER.FILE:
        cfg.INPUT.TOKENIZER.FILE = PathManager.get_local_path(cfg.INPUT.TOKENIZER.FILE)
    return cfg


def describe() -> str:
    """A table of all files: name, size, SHA-256, whether on this machine, address."""
    tokenizer = Model(BEIT3_TOKENIZER, "", "", "tokenizer file of all others but shapes-tiny")
    rows = []
    for name, model in {**MODELS, "(tokenizer)": tokenizer}.items():
        path = model.find()
        size = os.path.getsize(path) if path else model.size
        size_text = f"{size / 1e6:.1f} MB" if size else "unknown"
        cached = "yes" if path else "no"
        rows.append((name, size_text, model.sha256 or "unknown", cached, model.weights))
    return tabulate(rows, ("name", "size", "SHA-256", "cached", "file"))


def main(argv: Optional[Sequence[str]] = None) -> None:
    """List the models; downloads nothing."""
    parser = argparse.ArgumentParser(
        prog="python -m igvg_d2.model_zoo", description="Models that are known by name."
    )
    parser.add_argument(
        "--list", action="store_true", required=True, help="print them, with hashes"
    )
    parser.parse_args(argv)
    sys.stdout.write(f"{describe()}\n")


if __name__ == "__main__":
    main()
