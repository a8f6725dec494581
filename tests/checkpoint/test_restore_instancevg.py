"""Weights of ours in the released format: the round trip loses nothing that has an effect."""

import pytest
import torch

from igvg_d2.checkpoint import convert_instancevg, read_checkpoint, restore_instancevg
from igvg_d2.checkpoint.instancevg_keys import DEAD_KEYS, DEAD_PARTS


@pytest.fixture(scope="module")
def restored(released_base):
    """(our weights, released weights made from them, report)."""
    ours = convert_instancevg(released_base)[0]
    return ours, *restore_instancevg({"model": ours})


def test_round_trip_from_ours_is_exact(restored):
    ours, released, _ = restored
    again = convert_instancevg({"state_dict": released})[0]
    assert set(again) == set(ours)
    for key, tensor in ours.items():
        assert again[key].dtype == tensor.dtype and torch.equal(again[key], tensor), key


def test_round_trip_from_the_release_changes_dead_weights_only(restored, released_base):
    _, released, report = restored
    assert set(released) == set(released_base)
    changed = {k for k, t in released_base.items() if not torch.equal(released[k], t)}
    # The deterministic weights give empty_weight the value that the release builds it with.
    settings = {"head.detrloss.criterion.empty_weight"}
    assert changed == {*DEAD_KEYS, *DEAD_PARTS} - settings
    assert set(report.dropped) == {*DEAD_KEYS, *DEAD_PARTS}
    for key in set(DEAD_KEYS) - settings:
        assert not released[key].any()
    for key in DEAD_PARTS:
        kept = released[key] == released_base[key]
        assert (kept | (released[key] == 0)).all()


def test_number_of_queries_is_the_callers(restored):
    ours = restored[0]
    released, report = restore_instancevg(ours, num_queries=1)
    assert released["head.query_generation.query_embed.weight"].shape == (1, 256)
    assert report.size.num_queries == 1


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_tool_restores_the_recorded_number_of_queries(
    released_cheap, convert_tool, tmp_path, ending
):
    """From the release and back, by the tool alone, through every kind of file."""
    tool = convert_tool("convert-instancevg-to-d2")
    released = released_cheap("B-refcoco")
    source, ours = tmp_path / "released.pth", tmp_path / f"ours{ending}"
    back = tmp_path / "back.pth"
    torch.save({"state_dict": released}, source)
    tool.main([str(source), str(ours)])
    tool.main(["--to-released", str(ours), str(back)])
    written = read_checkpoint(str(back))["state_dict"]
    shapes = {key.removeprefix("module."): tuple(t.shape) for key, t in written.items()}
    assert shapes == {key: tuple(tensor.shape) for key, tensor in released.items()}
    for path in (source, ours, back):
        path.unlink()


def test_other_models_have_no_released_format(restored):
    ours = restored[0]
    positions = "backbone.vision_embed.positions"
    shift = "grounding_head.reference.shift.bias"
    for damaged, message in (
        ({k: v for k, v in ours.items() if k != shift}, f"{shift} is missing"),
        ({**ours, "stem": torch.zeros(1)}, "stem is unknown"),
        ({**ours, shift: torch.zeros(3)}, r"shape \(3,\), expected \(2,\)"),
        ({**ours, positions: torch.zeros(1, 401, 768)}, "square position table"),
        ({**ours, "image_projection.weight": torch.zeros(256, 32, 1, 1)}, "found width 32"),
        ({"a": torch.zeros(1)}, "are missing"),
    ):
        with pytest.raises(ValueError, match=message):
            restore_instancevg(damaged)


def test_every_missing_parameter_is_noticed(restored):
    cheap = {k: torch.zeros((), dtype=t.dtype).expand(t.shape) for k, t in restored[0].items()}
    for key in cheap:
        with pytest.raises(ValueError) as error:
            restore_instancevg({k: v for k, v in cheap.items() if k != key})
        assert key in str(error.value)


def test_tool_writes_the_released_container(restored, convert_tool, tmp_path):
    source, output = tmp_path / "ours.pth", tmp_path / "released.pth"
    torch.save({"model": restored[0]}, source)
    convert_tool("convert-instancevg-to-d2").main(["--to-released", str(source), str(output)])
    written = read_checkpoint(str(output))["state_dict"]
    assert set(written) == {f"module.{key}" for key in restored[1]}
    name = "head.class_embed.2.weight"
    assert torch.equal(written[f"module.{name}"], restored[1][name])
    source.unlink()
    output.unlink()
