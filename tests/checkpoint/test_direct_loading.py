"""``MODEL.WEIGHTS`` takes released files and files of BEiT-3, as downloaded and converted."""

import logging
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

import igvg_d2.modeling  # noqa: F401
from igvg_d2.checkpoint import GroundingCheckpointer, convert_beit3, write_checkpoint
from igvg_d2.checkpoint.beit3_conversion import MASK_TOKEN, POSITIONS
from igvg_d2.engine import setup_config
from tests.modeling.test_gradients import TINY

ROOT = Path(__file__).resolve().parents[2]

QKV = "backbone.encoder.layers.3.text.qkv.weight"
HEAD = "text_projection.weight"
ENCODER = "vis_enc."
BASE = "gRefCOCO/instancevg_beit3_base_320_released.yaml"
ONE_QUERY = "RefCOCO/instancevg_beit3_base_320_released.yaml"
LARGE = "RefCOCO/instancevg_beit3_large_320_released.yaml"
KEYS = {BASE: "grefcoco_rrefcoco_refzom", ONE_QUERY: "B-refcoco", LARGE: "L-refcoco"}


def encoder_of(released):
    return {k.removeprefix(ENCODER): v for k, v in released.items() if k.startswith(ENCODER)}


def save(path, content):
    torch.save(content, path)
    return str(path)


def test_released_file_is_loaded_directly(released_base, released_model, tmp_path):
    path = tmp_path / "released.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in released_base.items()}}, path)
    tensors = released_model.state_dict()
    expected = {name: tensors[name].clone() for name in (QKV, HEAD)}
    for name in expected:
        tensors[name].zero_()
    GroundingCheckpointer(released_model).load(str(path))
    for name, tensor in expected.items():
        assert torch.equal(released_model.state_dict()[name], tensor)
    path.unlink()


def test_beit3_as_downloaded_initialises_the_encoder_only(
    released_base, released_model, rule_input, tmp_path, caplog
):
    """224 pixels in the file, 320 in the model; every tensor left out on either side is named."""
    raw = {**encoder_of(released_base), POSITIONS: rule_input(301, (199, 768))}
    heads = {"mlm_head.weight": torch.ones(2), "mim_head.bias": torch.ones(2)}
    path = tmp_path / "beit3_base_patch16_224.zip"
    torch.save({"model": {**raw, **heads}}, path)
    tensors = released_model.state_dict()
    before = {key: tensor.clone() for key, tensor in tensors.items()}
    for key, tensor in tensors.items():
        if key.startswith("backbone."):
            tensor.zero_()
    with caplog.at_level(logging.INFO):
        GroundingCheckpointer(released_model).load(str(path))
    expected = convert_beit3(raw)[0]
    for key, tensor in tensors.items():
        assert torch.equal(tensor, expected.get(key, before[key])), key
        tensor.copy_(before[key])
    for key in (*heads, MASK_TOKEN, *(key for key in before if key not in expected)):
        assert key in caplog.text
    path.unlink()


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_converted_beit3_initialises_the_encoder_only(
    released_base, released_model, tmp_path, ending
):
    path = tmp_path / f"beit3{ending}"
    write_checkpoint(str(path), convert_beit3(encoder_of(released_base))[0], "BEiT-3")
    tensors = released_model.state_dict()
    qkv, head = tensors[QKV].clone(), tensors[HEAD].clone()
    tensors[QKV].zero_()
    GroundingCheckpointer(released_model).load(str(path))
    assert torch.equal(tensors[QKV], qkv) and torch.equal(tensors[HEAD], head)
    path.unlink()


def test_converted_beit3_must_be_complete(released_cheap, shell_model, tmp_path):
    path = str(tmp_path / "beit3.pth")
    state = convert_beit3(encoder_of(released_cheap(KEYS[BASE])))[0]
    state.pop(QKV)
    write_checkpoint(path, state, "BEiT-3")
    with pytest.raises(ValueError, match=f"1 tensors in the model but not in the file: {QKV}"):
        GroundingCheckpointer(shell_model(BASE)).load(path)


@pytest.mark.parametrize(
    "config, file",
    [(BASE, BASE), (BASE, ONE_QUERY), (ONE_QUERY, BASE), (ONE_QUERY, LARGE), (LARGE, ONE_QUERY)],
)
def test_size_and_queries_are_checked_against_the_config(
    released_cheap, shell_model, tmp_path, config, file
):
    """Published models into released presets: only their own takes them."""
    path = save(tmp_path / "released.pth", {"state_dict": released_cheap(KEYS[file])})
    checkpointer = GroundingCheckpointer(shell_model(config))
    if config == file:
        assert checkpointer.load(path)["num_queries"] == (10 if file == BASE else 1)
        return
    with pytest.raises(ValueError) as error:
        checkpointer.load(path)
    message = str(error.value)
    assert path in message
    if LARGE in (config, file):
        size = "large" if file == LARGE else "base"
        assert f"BEiT-3 {size}" in message and "MODEL.BEIT3.EMBED_DIM" in message
    else:
        queries = 10 if file == BASE else 1
        assert f"MODEL.QUERY_GENERATOR.NUM_OBJECT_QUERIES {queries}" in message


@pytest.mark.parametrize("config, name", [(BASE, "grefcoco"), (LARGE, "refcoco-large")])
def test_a_name_loads_the_released_file(released_cheap, shell_model, hub, tmp_path, config, name):
    file = {"grefcoco": "grefcoco", "refcoco-large": "L-refcoco"}[name]
    path = save(tmp_path / "released.pth", {"state_dict": released_cheap(KEYS[config])})
    content = Path(path).read_bytes()
    hub.files = {"models/Dmmm997/InstanceVG": {f"InstanceVG-{file}.pth": content}}
    loaded = GroundingCheckpointer(shell_model(config)).load(f"instancevg-{name}")
    assert loaded["num_queries"] == (10 if config == BASE else 1)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_converted_files_record_the_number_of_queries(shell_model, tmp_path, ending):
    path = str(tmp_path / f"instancevg{ending}")
    write_checkpoint(path, {HEAD: torch.zeros(256, 768)}, "InstanceVG", num_queries=1)
    with pytest.raises(ValueError, match=r"NUM_OBJECT_QUERIES 1\."):
        GroundingCheckpointer(shell_model(BASE)).load(path)
    # With one query the next error is about what else is wrong: all other tensors are missing.
    with pytest.raises(ValueError, match="in the model but not in the file"):
        GroundingCheckpointer(shell_model(ONE_QUERY)).load(path)


def test_beit3_of_the_other_size_is_named(released_cheap, shell_model, tmp_path):
    raw = encoder_of(released_cheap(KEYS[LARGE]))
    path = save(tmp_path / "beit3_large_patch16_224.zip", {"model": raw})
    with pytest.raises(ValueError, match="BEiT-3 large, of width 1024.*EMBED_DIM 1024"):
        GroundingCheckpointer(shell_model(BASE)).load(path)
    GroundingCheckpointer(shell_model(LARGE)).load(path)


def test_models_without_patches_take_no_beit3(released_cheap, tmp_path):
    path = save(tmp_path / "beit3.zip", encoder_of(released_cheap(KEYS[BASE])))
    with pytest.raises(ValueError, match="beit3.zip.*MODEL.BACKBONE.NAME to BEiT3"):
        GroundingCheckpointer(torch.nn.Linear(1, 1)).load(path)


def test_damaged_files_name_file_key_and_shapes(released_cheap, shell_model, tmp_path):
    """And the same checkpointer loads the right file afterwards."""
    checkpointer = GroundingCheckpointer(shell_model(BASE))
    raw, path = encoder_of(released_cheap(KEYS[BASE])), tmp_path / "beit3.zip"
    key = "beit3.encoder.layers.3.ffn.A.fc1.weight"
    shape = r"has shape \(3071, 768\), expected \(3072, 768\)"
    without = {k: v for k, v in raw.items() if k != key}
    for damaged, message in (
        ({**raw, key: raw[key][:-1]}, f"beit3.zip.*\n.*{key} {shape}"),
        (without, f"beit3.zip.*\n.*{key} is missing"),
        ({**raw, "decoder.weight": torch.zeros(1)}, "beit3.zip.*\n.*decoder.weight is unknown"),
        ({**raw, POSITIONS: torch.zeros(5)}, r"beit3.zip.*embed_positions.A.* shape \(5,\)"),
        ({"net.weight": torch.zeros(1)}, r"beit3.zip(.*\n)*.*net.weight"),
    ):
        save(path, {"model": damaged})
        with pytest.raises(ValueError, match=message):
            checkpointer.load(str(path))
    save(path, {"model": raw})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="beit3.zip' cannot be read.*truncated"):
        checkpointer.load(str(path))
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="beit3.zip' cannot be read"):
        checkpointer.load(str(path))
    path.write_bytes(content)
    assert checkpointer.load(str(path))["__author__"] == "BEiT-3"


def test_one_changed_key_in_a_converted_file_is_noticed(tmp_path):
    """Through files and the checkpointer, every key of a small model of the released preset."""
    config = str(ROOT / "configs" / BASE)
    small = [*TINY, "MODEL.BEIT3.DEPTH", 1, "MODEL.GROUNDING_HEAD.DEC_LAYERS", 1]
    model = build_model(setup_config(config, small))
    path, state = tmp_path / "instancevg.safetensors", model.state_dict()
    checkpointer = GroundingCheckpointer(model)
    for index, (key, tensor) in enumerate(state.items()):
        damaged = {k: v for k, v in state.items() if k != key}
        if index % 3 == 1:
            damaged[f"{key}_"] = tensor
        elif index % 3 == 2:
            damaged[key] = torch.zeros(*tensor.shape, 2)
        write_checkpoint(str(path), damaged, "InstanceVG", num_queries=4)
        with pytest.raises(ValueError, match=f"instancevg.safetensors(.*\n)*.*{key}"):
            checkpointer.load(str(path))
    write_checkpoint(str(path), state, "InstanceVG", num_queries=4)
    assert checkpointer.load(str(path))["num_queries"] == 4
