"""Configs out of files, out of the header of weights and by name: plain YAML within limits."""

import contextlib
import itertools
import math
import os
from typing import Any, Dict, Iterator, List, Optional

import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.utils.file_io import PathManager

import igvg_d2
from igvg_d2.checkpoint import read_metadata
from igvg_d2.io.hub import BEIT3_TOKENIZER, parse_address
from igvg_d2.model_zoo import MODELS, resolve_weights

# Characters of a config file, also its values with aliases (*name) written out, and files that it
# may lead to by _BASE_.
_LARGEST_FILE = 200_000
_MOST_FILES = 50
# What merging raises for options that are unknown, of another type or not of the form of a config.
_UNFIT = (AssertionError, AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError)
_UNFIT += (yaml.YAMLError,)
# Also in an installed package: a link in a checkout.
_CONFIGS = os.path.join(os.path.dirname(igvg_d2.__file__), "configs")


def find_config_file(name_or_file: str) -> str:
    """Path of the config file that a name stands for; "" where the config is in a header."""
    model = MODELS.get(name_or_file)
    if model is not None:
        return os.path.join(_CONFIGS, model.config) if model.config else ""
    is_hub = name_or_file.startswith("hf://")
    path = parse_address(name_or_file).path if is_hub else name_or_file
    return "" if path.endswith((".safetensors", ".onnx")) else name_or_file


def merge_config(cfg: CfgNode, name_or_file: str) -> None:
    """Merge a config into another, in place.

    Args:
        name_or_file: YAML file; or a name of `igvg_d2.model_zoo`, or a file of safetensors or ONNX
            with a config in its header, and ``MODEL.WEIGHTS`` becomes that.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the config does not fit, or the header has none.
    """
    path = find_config_file(name_or_file)
    if path:
        _merge_file(cfg, path)
    else:
        _merge_header(cfg, resolve_weights(name_or_file))
    if path != name_or_file:
        cfg.MODEL.WEIGHTS = name_or_file


def config_for_header(cfg: CfgNode) -> str:
    """A config as YAML text for the header of its weights, without paths and devices of here."""
    portable = cfg.clone()
    portable.defrost()
    _remove_places(portable)
    return portable.dump()


def _remove_places(cfg: CfgNode) -> None:
    """Empty what names files, addresses and devices, but for the public tokenizer."""
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE, cfg.OUTPUT_DIR = "", "", get_cfg().OUTPUT_DIR
    cfg.DATASETS.EXPRESSION_FILES, cfg.TEST.CALIBRATION = (), ""
    is_beit3 = cfg.INPUT.TOKENIZER.NAME == "BEiT3Tokenizer"
    cfg.INPUT.TOKENIZER.FILE = BEIT3_TOKENIZER if is_beit3 else ""


def _merge_header(cfg: CfgNode, path: str) -> None:
    """Merge what `config_for_header` wrote, as carefully as a file."""
    try:
        text = read_metadata(path).get("config")
    except Exception as error:
        kind = "file of ONNX" if path.endswith(".onnx") else "file of safetensors"
        raise ValueError(f"'{path}' is not a whole {kind}: {error}") from error
    if text is None:
        raise ValueError(
            f"'{path}' has no config in its header: it was not written by tools/export.py or by "
            "an older one; pass its config file, and this file as MODEL.WEIGHTS"
        )
    with explained(f"the config in the header of '{path}'"):
        _check_text(text, path)
        header = CfgNode.load_cfg(text)
        # It said nothing, and nobody can mend a header: no warning of a removed key.
        if header.get("TEST", {}).get("NO_TARGET_THRESHOLD") == 0.0:
            del header.TEST["NO_TARGET_THRESHOLD"]
        cfg.merge_from_other_cfg(header)
    # Whoever made the file decides neither what is downloaded nor where is written.
    _remove_places(cfg)


def _merge_file(cfg: CfgNode, config_file: str) -> None:
    """``cfg.merge_from_file`` of plain YAML: tags, also those of a ``_BASE_``, could run code."""
    if not PathManager.isfile(config_file):
        raise FileNotFoundError(
            f"no config file '{config_file}'; those of the project are in configs/, models have "
            f"the names {', '.join(MODELS)}"
        )
    with explained(f"config file '{config_file}' or its _BASE_"):
        _check_file(config_file, [], [])
        cfg.merge_from_file(config_file, allow_unsafe=False)


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Context in which a config is merged: an error becomes a ValueError of one line."""
    try:
        yield
    except _UNFIT as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        fault = "is not plain YAML" if isinstance(error, yaml.YAMLError) else "does not fit"
        raise ValueError(f"{what} {fault}; mend this: {reason}") from error


def _check_file(path: str, above: List[str], read: List[str]) -> None:
    """Refuse what would take memory or time without end when it is merged, also in a ``_BASE_``.

    ``above`` are the files that include it, ``read`` all that were looked at; it is added there.
    """
    resolved = os.path.realpath(path)
    read.append(resolved)
    if resolved in above:
        raise ValueError(f"'{path}': it is its own _BASE_; name another file there")
    if len(read) > _MOST_FILES:
        raise ValueError(f"expected _BASE_ to lead to at most {_MOST_FILES} files, found more")
    if not PathManager.isfile(path):
        raise FileNotFoundError(f"'{path}', named as _BASE_, is not there")
    with PathManager.open(path, "r") as file:
        content = _check_text(file.read(_LARGEST_FILE + 1), path)
    bases = content.get("_BASE_", [])
    for base in [bases] if isinstance(bases, str) else bases:
        # As fvcore finds it.
        base = os.path.expanduser(base)
        if not base.startswith(("/", "https://", "http://")):
            base = os.path.join(os.path.dirname(path), base)
        _check_file(base, [*above, resolved], read)


def _check_text(text: str, path: str) -> Dict[str, Any]:
    """The content of a config; what would take memory or time without end is refused."""
    if len(text) > _LARGEST_FILE:
        raise ValueError(f"'{path}': expected at most {_LARGEST_FILE} characters, found more")
    # A file of ten lines can be a billion values. Dumped configs have aliases, but few.
    if _num_values(yaml.compose(text, yaml.SafeLoader), {}) > _LARGEST_FILE:
        raise ValueError(
            f"'{path}': expected at most {_LARGEST_FILE} values, found more by aliases (*name); "
            "write values out"
        )
    content = yaml.safe_load(text)
    if not isinstance(content, dict):
        raise ValueError(f"'{path}': expected lines of KEY: VALUE, found {str(content)!r:.40}")
    return content


def _num_values(node: Optional[yaml.Node], known: Dict[int, float]) -> float:
    """Values of a YAML document, those of an alias as often as it stands there."""
    if isinstance(node, yaml.CollectionNode) and id(node) not in known:
        known[id(node)] = math.inf  # stays for an alias within itself
        parts = itertools.chain(*node.value) if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_num_values(part, known) for part in parts)
    return known.get(id(node), 1)
