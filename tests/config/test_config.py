"""Every config merges into the keys that exist, and the small ones build a model."""

import re
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.modeling import build_model

import igvg_d2.modeling  # noqa: F401
from igvg_d2.config import add_igvg_config
from igvg_d2.engine import setup_config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml")) + sorted((ROOT / "projects").rglob("*.yaml"))
# The example of an outside project has keys of its own; tests/projects covers it.
CONFIGS = [path for path in CONFIGS if "example_extension" not in path.parts]
SMALL = [path for path in CONFIGS if "Shapes" in str(path) or "ablations" in str(path)]


def name_of(path):
    return str(path.relative_to(ROOT))


def test_there_are_configs():
    assert len(SMALL) >= 15 and len(CONFIGS) > len(SMALL)


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_config_merges_and_keeps_no_target_samples(path):
    cfg = setup_config(str(path))
    assert not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    assert cfg.INPUT.RANDOM_FLIP == "none"
    assert path.read_text().startswith("#")


@pytest.mark.parametrize("path", SMALL, ids=name_of)
def test_small_config_builds(path):
    model = build_model(setup_config(str(path), ["MODEL.DEVICE", "cpu"]))
    assert sum(p.numel() for p in model.parameters()) < 2.6e6


@pytest.mark.parametrize("path", [p for p in CONFIGS if p not in SMALL], ids=name_of)
def test_large_config_builds_with_one_encoder_layer(path):
    opts = ["MODEL.DEVICE", "cpu", "MODEL.BEIT3.DEPTH", 1, "MODEL.BEIT3.VOCAB_SIZE", 100]
    cfg = setup_config(str(path), opts)
    model = build_model(cfg)
    assert model.backbone.embed_dim == cfg.MODEL.BEIT3.EMBED_DIM >= 768


def flatten(node, prefix=""):
    for key, value in node.items():
        if hasattr(value, "items"):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_no_default_of_detectron2_is_changed():
    before = dict(flatten(get_cfg()))
    cfg = get_cfg()
    add_igvg_config(cfg)
    after = dict(flatten(cfg))
    assert {key: after[key] for key in before} == before


def test_every_key_has_a_comment():
    lines = (ROOT / "igvg_d2" / "config.py").read_text().splitlines()
    is_key = [bool(re.match(r"    cfg\.[\w.]+ = (?!CN)", line)) for line in lines]
    for number, line in enumerate(lines):
        if not is_key[number]:
            continue
        # A comment may head a group of keys that it names together.
        above = number - 1
        while is_key[above]:
            above -= 1
        assert lines[above].strip().startswith("#"), f"no comment above: {line.strip()}"
