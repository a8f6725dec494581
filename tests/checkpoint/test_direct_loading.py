"""``MODEL.WEIGHTS`` takes released files as downloaded, and converted BEiT-3 files."""

import pytest
import torch

from igvg_d2.checkpoint import GroundingCheckpointer, convert_beit3, write_checkpoint

QKV = "backbone.encoder.layers.3.text.qkv.weight"
HEAD = "text_projection.weight"
ENCODER = "vis_enc."


def encoder_of(released):
    return {k.removeprefix(ENCODER): v for k, v in released.items() if k.startswith(ENCODER)}


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


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_converted_beit3_initialises_the_encoder_only(
    released_base, released_model, tmp_path, ending
):
    path = str(tmp_path / f"beit3{ending}")
    state = convert_beit3(encoder_of(released_base))[0]
    write_checkpoint(path, state, "BEiT-3")
    tensors = released_model.state_dict()
    qkv, head = tensors[QKV].clone(), tensors[HEAD].clone()
    tensors[QKV].zero_()
    GroundingCheckpointer(released_model).load(path)
    assert torch.equal(tensors[QKV], qkv) and torch.equal(tensors[HEAD], head)
    # The encoder itself must still be complete.
    missing = {k: v for k, v in state.items() if k != QKV}
    write_checkpoint(path, missing, "BEiT-3")
    with pytest.raises(ValueError, match=QKV):
        GroundingCheckpointer(released_model).load(path)
    (tmp_path / f"beit3{ending}").unlink()


def test_raw_beit3_is_refused_with_the_way_out(released_base, released_model, tmp_path):
    path = tmp_path / "beit3_base_patch16_224.zip"
    cheap = {k: torch.zeros(1) for k in encoder_of(released_base)}
    torch.save({"model": cheap}, path)
    with pytest.raises(ValueError, match="convert-beit3-to-d2"):
        GroundingCheckpointer(released_model).load(str(path))
