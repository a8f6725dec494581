"""BEiT-3's own files: the encoder alone, with resized positions and patches."""

import pytest
import torch
import torch.nn.functional as F

from igvg_d2.checkpoint import convert_beit3, convert_instancevg, is_beit3, read_checkpoint
from igvg_d2.checkpoint.beit3_conversion import MASK_TOKEN, POSITIONS
from igvg_d2.modeling.backbone.beit3 import interpolate_positions

ENCODER = "vis_enc."
HEADS = {"mlm_head.weight": torch.zeros(2), "mim_head.bias": torch.zeros(2)}


@pytest.fixture(scope="module")
def raw(released_base, rule_input):
    """A BEiT-3 base file of 224 pixels: the deterministic encoder with a 14 x 14 table."""
    state = {k.removeprefix(ENCODER): v for k, v in released_base.items() if k.startswith(ENCODER)}
    return {**state, POSITIONS: rule_input(301, (199, 768))}


@pytest.fixture(scope="module")
def cheap_raw(raw):
    """The same keys and shapes with zeros that take no memory."""
    return {key: torch.zeros(()).expand(tensor.shape) for key, tensor in raw.items()}


def test_encoder_is_the_one_of_the_release(raw, released_base):
    ours, report = convert_beit3({"model": {**raw, **HEADS}})
    reference = convert_instancevg(released_base)[0]
    names = {key for key in reference if key.startswith("backbone.")}
    assert set(ours) == names
    tables = {"backbone.vision_embed.positions", "backbone.vision_embed.cls_position"}
    for key in names - tables:
        assert torch.equal(ours[key], reference[key]), key
    assert set(report.dropped) == {*HEADS, MASK_TOKEN, POSITIONS}
    assert (report.size.embed_dim, report.size.depth) == (768, 12)


def test_positions_are_resized_and_the_first_rows_are_not(raw):
    """The resized table itself is compared with the release's in test_released_parity.py."""
    ours, table = convert_beit3(raw)[0], raw[POSITIONS]
    expected = interpolate_positions(table[None, 3:], (14, 14), (20, 20))
    assert torch.equal(ours["backbone.vision_embed.positions"], expected)
    assert torch.equal(ours["backbone.vision_embed.cls_position"][0, 0], table[2])


def test_sizes_are_free(raw):
    same = convert_beit3(raw, image_size=(224, 224))[0]
    assert torch.equal(same["backbone.vision_embed.positions"][0], raw[POSITIONS][3:])
    assert torch.equal(
        same["backbone.vision_embed.proj.weight"], raw["beit3.vision_embed.proj.weight"]
    )
    other = convert_beit3(raw, image_size=(384, 640), patch_size=32)[0]
    assert other["backbone.vision_embed.positions"].shape == (1, 12 * 20, 768)
    kernel = F.interpolate(
        raw["beit3.vision_embed.proj.weight"], (32, 32), mode="bicubic", align_corners=False
    )
    assert torch.equal(other["backbone.vision_embed.proj.weight"], kernel)
    with pytest.raises(ValueError, match="no multiple"):
        convert_beit3(raw, image_size=(320, 330))


@pytest.mark.parametrize("container", ["model", "module", None])
def test_containers_do_not_matter(cheap_raw, container):
    file = {container: cheap_raw, "epoch": 3} if container else cheap_raw
    assert is_beit3(file)
    assert convert_beit3(file)[1].size.image_size == (224, 224)


@pytest.mark.parametrize("prefix", ["", "module.", "module.beit3."])
def test_prefixes_do_not_matter(cheap_raw, prefix):
    """Without "beit3.": the state dict of torchscale's class; "module.": distributed training."""
    renamed = {prefix + key.removeprefix("beit3."): tensor for key, tensor in cheap_raw.items()}
    heads = {f"{prefix.removesuffix('beit3.')}{key}": tensor for key, tensor in HEADS.items()}
    assert is_beit3({"model": renamed})
    ours, report = convert_beit3({"model": {**renamed, **heads}})
    assert set(ours) == set(convert_beit3(cheap_raw)[0])
    assert set(report.dropped) == {*HEADS, MASK_TOKEN, POSITIONS}
    twice = {**cheap_raw, f"module.{MASK_TOKEN}": cheap_raw[MASK_TOKEN]}
    with pytest.raises(ValueError, match="with and without the prefix"):
        convert_beit3(twice)


def test_conversion_is_strict_about_every_key(cheap_raw):
    """Each key missing, misspelt or of another shape: always an error that names it."""
    for key, tensor in cheap_raw.items():
        rest = {k: v for k, v in cheap_raw.items() if k != key}
        wider = torch.zeros(()).expand(*tensor.shape[:-1], tensor.shape[-1] + 1)
        for damaged in (rest, {**rest, f"{key}_": tensor}, {**rest, key: wider}):
            with pytest.raises(ValueError) as error:
                convert_beit3(damaged)
            assert key in str(error.value)


def test_other_files_are_refused(cheap_raw):
    assert not is_beit3({"model": {"conv.weight": torch.zeros(1)}})
    for file, message in (
        ({"model": {"conv.weight": torch.zeros(1)}}, "expected 'beit3"),
        ({**cheap_raw, "args": "text"}, "are no tensors"),
        ([1, 2], "a dict of tensors"),
        ({**cheap_raw, "decoder.weight": torch.zeros(1)}, "decoder.weight is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            convert_beit3(file)


@pytest.mark.parametrize("zipped", [True, False])
def test_tool_reads_any_ending(raw, convert_tool, tmp_path, zipped):
    source, output = tmp_path / "beit3_base_patch16_224.zip", tmp_path / "ours.safetensors"
    torch.save({"model": raw}, source, _use_new_zipfile_serialization=zipped)
    convert_tool("convert-beit3-to-d2").main([str(source), str(output)])
    written, expected = read_checkpoint(str(output)), convert_beit3(raw)[0]
    assert set(written) == set(expected)
    name = "backbone.encoder.layers.5.vision.qkv.weight"
    assert torch.equal(written[name], expected[name])
    source.unlink()
    output.unlink()


def test_tool_says_what_is_wrong(convert_tool, tmp_path):
    tool = convert_tool("convert-beit3-to-d2")
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(SystemExit, match="damaged.zip.*cannot be read"):
        tool.main([str(damaged), str(tmp_path / "out.pth")])
    with pytest.raises(SystemExit, match="no file"):
        tool.main([str(tmp_path / "absent.zip"), str(tmp_path / "out.pth")])
