"""The key table covers every released tensor, and any damaged file is noticed."""

import json

import pytest
import torch

from igvg_d2.checkpoint import GroundingCheckpointer, convert_instancevg, is_instancevg
from igvg_d2.checkpoint.instancevg_conversion import _measure
from igvg_d2.checkpoint.instancevg_keys import (
    DEAD_KEYS,
    DEAD_PARTS,
    dead_shapes,
    released_aliases,
    released_rules,
)

KEY_FILES = ("grefcoco_rrefcoco_refzom", "B-refcoco", "L-refcoco")


@pytest.fixture(scope="module", params=KEY_FILES)
def released_shapes(request, fixtures_dir):
    """Keys and shapes of a released model."""
    keys = json.loads((fixtures_dir / f"state_dict_{request.param}.json").read_text())
    return {key: tuple(shape) for key, (shape, _) in keys.items()}


@pytest.fixture(scope="module")
def cheap_state(released_cheap):
    """A released state dict of zeros that takes no memory."""
    return released_cheap(KEY_FILES[0])


def test_table_names_every_released_key_once(released_shapes):
    size = _measure({key: torch.empty(s, device="meta") for key, s in released_shapes.items()})
    rules = released_rules(size)
    shapes = {key: shape for rule in rules for key, shape in rule.sources.items()}
    live = set(shapes)
    assert not live & set(DEAD_KEYS) and not live & set(released_aliases())
    shapes.update(dead_shapes(size))
    shapes.update({alias: shapes[key] for alias, key in released_aliases().items()})
    assert shapes == released_shapes
    targets = [rule.target for rule in rules]
    assert len(targets) == len(set(targets))


def test_every_element_is_carried_over_or_named_as_dead(released_shapes):
    state = {key: torch.empty(s, device="meta") for key, s in released_shapes.items()}
    size = _measure(state)
    made = sum(r.make(*(state[k] for k in r.sources)).numel() for r in released_rules(size))
    total = sum(t.numel() for k, t in state.items() if k not in released_aliases())
    dead = sum(state[key].numel() for key in DEAD_KEYS)
    # Two position rows of both modalities; all but the value bias of the constant self-attention.
    parts = 4 * size.embed_dim + 3 * 256 * 256 + 2 * 256
    assert made == total - dead - parts
    assert set(DEAD_PARTS) < set(state)


def damage(state, key, kind):
    """A copy of a state dict with one key changed."""
    tensor, damaged = state[key], dict(state)
    if kind == "missing":
        damaged.pop(key)
    elif kind == "renamed":
        damaged[f"{key}_"] = damaged.pop(key)
    elif kind == "added":
        damaged[f"{key}_"] = tensor
    elif kind == "reshaped":
        wider = (*tensor.shape[:-1], tensor.shape[-1] + 1) if tensor.dim() else (1,)
        damaged[key] = torch.zeros((), dtype=tensor.dtype).expand(wider)
    else:
        other = torch.int64 if tensor.is_floating_point() else torch.float32
        damaged[key] = torch.zeros((), dtype=other).expand(tensor.shape)
    return damaged


DAMAGES = ("missing", "renamed", "added", "reshaped", "retyped")


@pytest.mark.parametrize("kind", DAMAGES)
def test_conversion_is_strict_about_every_key(cheap_state, kind):
    """697 keys, each damaged on its own: always an error that names it."""
    for key in cheap_state:
        with pytest.raises(ValueError) as error:
            convert_instancevg(damage(cheap_state, key, kind))
        assert key in str(error.value)


@pytest.mark.parametrize("name", KEY_FILES[1:])
def test_other_published_models_are_as_strict(released_cheap, name):
    """Every key of them, with one kind of damage after the other."""
    state = released_cheap(name)
    for index, key in enumerate(state):
        with pytest.raises(ValueError) as error:
            convert_instancevg(damage(state, key, DAMAGES[index % len(DAMAGES)]))
        assert key in str(error.value)


@pytest.mark.parametrize("name", KEY_FILES)
def test_aliases_must_be_equal(released_cheap, name):
    """One changed number in one of the sixteen copies is enough."""
    state = released_cheap(name)
    for alias, key in released_aliases().items():
        changed = state[alias].clone()
        changed.view(-1)[-1] = 1e-6
        with pytest.raises(ValueError, match=f"{alias} differs from {key}"):
            convert_instancevg({**state, alias: changed})


def test_prefix_and_container_do_not_matter(cheap_state):
    prefixed = {f"module.{key}": tensor for key, tensor in cheap_state.items()}
    assert is_instancevg(prefixed) and is_instancevg(cheap_state)
    report = convert_instancevg({"state_dict": prefixed, "epoch": 10})[1]
    assert report.size.config_options() == [
        "MODEL.BEIT3.EMBED_DIM", 768, "MODEL.BEIT3.DEPTH", 12, "MODEL.BEIT3.FFN_DIM", 3072,
        "MODEL.BEIT3.NUM_HEADS", 12, "MODEL.BEIT3.PRETRAIN_IMAGE_SIZE", (320, 320),
        "MODEL.QUERY_GENERATOR.NUM_OBJECT_QUERIES", 10,
    ]  # fmt: skip
    assert set(report.dropped) == {*DEAD_KEYS, *DEAD_PARTS}


def test_other_files_are_refused():
    for other in ({"model": {}}, {"state_dict": {"conv.weight": torch.zeros(1)}}, [1, 2]):
        with pytest.raises(ValueError, match="no released InstanceVG checkpoint"):
            convert_instancevg(other)
    with pytest.raises(ValueError, match="are no tensors"):
        convert_instancevg({"vis_enc.beit3.text_embed.weight": "text"})


def test_tool_writes_what_the_checkpointer_reads(
    released_base, released_model, convert_tool, tmp_path
):
    source, output = tmp_path / "released.pth", tmp_path / "ours.safetensors"
    torch.save({"state_dict": {f"module.{k}": v for k, v in released_base.items()}}, source)
    convert_tool("convert-instancevg-to-d2").main([str(source), str(output)])
    before = released_model.state_dict()
    with torch.no_grad():
        for name in ("text_projection.weight", "backbone.encoder.layers.3.text.qkv.weight"):
            kept = before[name].clone()
            before[name].zero_()
            GroundingCheckpointer(released_model).load(str(output))
            assert torch.equal(released_model.state_dict()[name], kept)
    # A gigabyte each, and pytest keeps its temporary folders.
    source.unlink()
    output.unlink()


def test_tool_says_what_is_wrong(convert_tool, tmp_path):
    tool = convert_tool("convert-instancevg-to-d2")
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(SystemExit, match="damaged.pth.*cannot be read"):
        tool.main([str(damaged), str(tmp_path / "out.pth")])
    with pytest.raises(SystemExit, match="must end in"):
        tool.main([str(damaged), str(tmp_path / "out.bin")])
    with pytest.raises(SystemExit, match="no file"):
        tool.main([str(tmp_path / "absent.pth"), str(tmp_path / "out.pth")])
