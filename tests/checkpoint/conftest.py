"""Released checkpoints rebuilt by the deterministic rule, and the reference fixtures."""

import importlib.util
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_model

import igvg_d2.modeling  # noqa: F401
from igvg_d2.checkpoint import convert_instancevg
from igvg_d2.engine import setup_config

ROOT = Path(__file__).resolve().parents[2]
BASE_CONFIG = ROOT / "configs/gRefCOCO/instancevg_beit3_base_320_released.yaml"
BASE_KEYS = "state_dict_grefcoco_rrefcoco_refzom.json"


def normal(seed, shape):
    """The inputs rule: float32 standard normal numbers of numpy's legacy generator."""
    x = np.random.RandomState(seed).standard_normal(tuple(shape)).astype(np.float32)
    return torch.from_numpy(np.asarray(x))


def rule_tensor(key, shape):
    """The weights rule: the released tensor ``key``, a function of its name alone."""
    for prefix in ("head.class_embed", "head.bbox_embed"):
        for layer in (1, 2):
            key = key.replace(f"{prefix}.{layer}.", f"{prefix}.0.")
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if key.endswith("empty_weight"):
        return torch.tensor([1.0, 0.1])
    if key == "head.decoder_transformer.reference_points.bias":
        return torch.full(tuple(shape), -4.0)
    x = normal(zlib.crc32(key.encode()), shape)
    if key.endswith("running_mean"):
        return 0.1 * x
    if key.endswith("running_var"):
        return 1 + 0.2 * x.abs()
    if len(shape) >= 2:
        return x / np.float32(np.sqrt(x.numel() / shape[0]))
    return 1 + 0.1 * x if key.endswith(".weight") else 0.1 * x


def cheap_copy(tensors):
    """Zeros of the same shapes and types that take no memory, nor space in a file of PyTorch."""
    return {k: torch.zeros((), dtype=t.dtype).expand(t.shape) for k, t in tensors.items()}


@pytest.fixture(scope="session")
def released_cheap(fixtures_dir):
    """Callable (name of a key file) -> that released state dict, as zeros without memory."""

    def build(name):
        keys = json.loads((fixtures_dir / f"state_dict_{name}.json").read_text())
        types = {
            key: getattr(torch, kind.removeprefix("torch.")) for key, (_, kind) in keys.items()
        }
        return {
            key: torch.zeros((), dtype=types[key]).expand(tuple(shape))
            for key, (shape, _) in keys.items()
        }

    return build


@pytest.fixture(scope="session")
def shell_model():
    """Callable (config file below configs/, options) -> IGVG without memory for its parameters."""

    def build(config, options=()):
        cfg = setup_config(str(ROOT / "configs" / config), ["MODEL.DEVICE", "cpu", *options])
        with torch.device("meta"):
            return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)

    return build


@pytest.fixture(scope="session")
def rule_input():
    """Callable (seed, shape) -> the input tensor that a fixture was made from."""
    return normal


@pytest.fixture(scope="session")
def convert_tool():
    """Callable (name of a script in tools/) -> its module."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def fixtures_dir(shared_dir):
    folder = shared_dir / "reference" / "fixtures"
    if not folder.is_dir():
        pytest.skip(f"numerical fixtures not found: {folder}")
    return folder


@pytest.fixture(scope="session")
def released_base(fixtures_dir):
    """State dict of the released gRefCOCO model with deterministic weights."""
    keys = json.loads((fixtures_dir / BASE_KEYS).read_text())
    return {key: rule_tensor(key, shape) for key, (shape, _) in keys.items()}


@pytest.fixture(scope="session")
def released_model(released_base):
    """IGVG as the released preset builds it, strictly loaded; eval mode."""
    state, report = convert_instancevg({"state_dict": released_base})
    cfg = setup_config(str(BASE_CONFIG), ["MODEL.DEVICE", "cpu", *report.size.config_options()])
    model = build_model(cfg)
    model.load_state_dict(state, strict=True)
    return model.eval()
