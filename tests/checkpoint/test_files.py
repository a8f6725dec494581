"""Files written by the converters hold plain tensors and read back as they were."""

import argparse
import collections
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from safetensors.torch import save_file
from torch import nn

from igvg_d2.checkpoint import (
    GroundingCheckpointer,
    read_checkpoint,
    read_metadata,
    read_weights,
    write_checkpoint,
)

STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}


def test_detectron2_reads_what_is_written(tmp_path):
    path = str(tmp_path / "weights.pth")
    write_checkpoint(path, STATE, "somebody")
    model = nn.Linear(3, 2)
    DetectionCheckpointer(model).load(path)
    assert torch.equal(model.weight, STATE["weight"]) and torch.equal(model.bias, STATE["bias"])


def test_safetensors_and_container(tmp_path):
    path = str(tmp_path / "weights.safetensors")
    write_checkpoint(path, {**STATE, "t": STATE["weight"].clone().t()}, "somebody")
    assert read_metadata(path) == {"author": "somebody"}
    assert torch.equal(read_checkpoint(path)["t"], STATE["weight"].t())
    path = str(tmp_path / "weights.pth")
    write_checkpoint(path, STATE, "somebody", container="state_dict")
    assert set(read_checkpoint(path)) == {"state_dict", "__author__"}


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("ending", ["", ".zip", ".pkl", ".bin"])
def test_content_decides_not_the_ending(tmp_path, kind, ending):
    path = tmp_path / f"weights{ending}"
    if kind == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "zip")
    read = read_checkpoint(str(path))
    assert set(read) == set(STATE)
    assert all(torch.equal(read[key], tensor) for key, tensor in STATE.items())


@pytest.mark.parametrize("zipped", [True, False])
def test_settings_and_metrics_beside_the_tensors_do_no_harm(tmp_path, zipped):
    """As releases store them: numpy scalars, a scheduler's counter, parsed arguments."""
    path = tmp_path / "released.pth"
    others = {
        "det_best": np.float64(0.5),
        "epoch": np.int64(7),
        "scheduler": {"milestones": collections.Counter({7: 1})},
        "args": argparse.Namespace(lr=0.1),
        "state": collections.defaultdict(dict),
    }
    torch.save({"state_dict": STATE, **others}, path, _use_new_zipfile_serialization=zipped)
    if not zipped:
        # What NumPy 1 calls them; the archive of the new format has a checksum.
        names = (b"numpy._core.multiarray", b"numpy.core.multiarray")
        path.write_bytes(path.read_bytes().replace(*names))
    read = read_checkpoint(str(path))
    assert torch.equal(read["state_dict"]["weight"], STATE["weight"])
    assert read["det_best"] == 0.5 and read["args"].lr == 0.1 and read["epoch"] == 7


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    write_checkpoint(str(path), STATE, "somebody")
    before = path.read_bytes()

    def fail(content, file):
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(str(path), STATE, "somebody")
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_number_of_queries_is_recorded(tmp_path, ending):
    path = str(tmp_path / f"weights{ending}")
    write_checkpoint(path, STATE, "somebody", num_queries=1)
    read = read_weights(path)
    other = tmp_path / "other"
    other.touch()
    assert os.stat(path).st_mode == other.stat().st_mode
    assert read["num_queries"] == 1 and read["__author__"] == "somebody"
    assert torch.equal(read["model"]["bias"], STATE["bias"])


def test_errors_name_the_file(tmp_path):
    with pytest.raises(ValueError, match="must end in"):
        write_checkpoint(str(tmp_path / "weights.bin"), STATE, "somebody")
    with pytest.raises(FileNotFoundError, match="absent.pth"):
        read_checkpoint(str(tmp_path / "absent.pth"))
    whole, cut = tmp_path / "whole.pth", tmp_path / "cut.pth"
    torch.save(STATE, whole)
    cut.write_bytes(whole.read_bytes()[:-100])
    code = tmp_path / "code.pth"
    torch.save({"model": nn.Linear(1, 1)}, code)
    for path in (cut, code):
        with pytest.raises(ValueError, match=f"{path.name}' cannot be read") as error:
            read_checkpoint(str(path))
        # PyTorch's own message recommends to read the file unsafely.
        assert "weights_only" not in str(error.value) and "\n" not in str(error.value)
    tensor = tmp_path / "tensor.pth"
    torch.save(torch.ones(1), tensor)
    with pytest.raises(ValueError, match="tensor.pth.*expected a dict of tensors, found a Tensor"):
        read_checkpoint(str(tensor))


class Hostile:
    """Creates a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("ending", [".pkl", ".pth"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, ending):
    path, folder = tmp_path / f"hostile{ending}", tmp_path / "made_by_the_file"
    path.write_bytes(pickle.dumps({"model": Hostile(str(folder)), "__author__": "somebody"}))
    with pytest.raises(ValueError, match=path.name):
        GroundingCheckpointer(nn.Linear(3, 2)).load(str(path))
    assert not folder.exists()


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_our_checkpointer_reads_what_is_written(tmp_path, ending):
    path = str(tmp_path / f"weights{ending}")
    write_checkpoint(path, STATE, "somebody")
    model = nn.Linear(3, 2)
    GroundingCheckpointer(model).load(path)
    assert torch.equal(model.weight, STATE["weight"]) and torch.equal(model.bias, STATE["bias"])


def _number_without_its_flags() -> bytes:
    """A pickle whose number is an object at an address of the file's choice, were it believed."""
    dtype = b"cnumpy\ndtype\n(X\x02\x00\x00\x00O8K\x00K\x01tR"
    state = b"(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    scalar = b"cnumpy.core.multiarray\nscalar\n"
    return (
        b"\x80\x02}X\x05\x00\x00\x00model"
        + scalar
        + b"("
        + dtype
        + state
        + b"C\x08"
        + b"0" * 8
        + b"tRs."
    )


HOSTILE_PICKLES = {
    "code": pickle.dumps({"model": Hostile("made_by_the_file")}, 2),
    "objects of numpy": _number_without_its_flags(),
    "array": pickle.dumps({"model": {"x": np.zeros(3)}}, 2),
    "deep key": b"\x80\x02})" + b"\x85" * 10**6 + b"K\x01s.",
    "doubling key": b"\x80\x02})"
    + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
    + b"K\x01s.",
    "memo of nothing": b"\x80\x02}h\x07K\x01s.",
    "empty": b"\x80\x02",
}


@pytest.mark.parametrize("name", sorted(HOSTILE_PICKLES))
@pytest.mark.parametrize("kind", ["plain", "zip", "legacy"])
def test_hostile_pickles_are_refused(tmp_path, monkeypatch, name, kind):
    monkeypatch.chdir(tmp_path)
    path, content = tmp_path / "hostile.pth", HOSTILE_PICKLES[name]
    if kind == "plain":
        path.write_bytes(content)
    elif kind == "zip":
        torch.save({}, path)
        with zipfile.ZipFile(path) as archive:
            parts = {part: archive.read(part) for part in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for part, old in parts.items():
                archive.writestr(part, content if part.endswith("data.pkl") else old)
    else:
        torch.save({}, path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes().replace(pickle.dumps({}, 2), content))
        assert content in path.read_bytes()
    with pytest.raises(ValueError, match=r"hostile\.pth' cannot be read"):
        read_checkpoint(str(path))
    assert [file.name for file in tmp_path.iterdir()] == ["hostile.pth"]


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i4", "i8", "u1", "b1"])
def test_numbers_of_numpy_are_read_and_nothing_else(tmp_path, kind):
    path = str(tmp_path / "file.pth")
    torch.save({"model": STATE, "number": np.ones(1, kind)[0]}, path)
    assert read_checkpoint(path)["number"] == 1
    for odd in (np.ones(1, kind), np.complex64(1), np.array(["a"])[0], np.dtype(">f4").type):
        torch.save({"model": STATE, "number": odd}, path)
        with pytest.raises(ValueError, match="file.pth"):
            read_checkpoint(path)


ODD_CONTENTS = {
    "model a tensor": {"model": torch.zeros(3)},
    "model text": {"model": "x"},
    "model a list": {"model": [torch.zeros(3)]},
    "no value": {"model": {"weight": None}},
    "a number": {"state_dict": {"weight": 3}},
    "names of numbers": {"model": {3: torch.zeros(3)}},
    "numbers as names": {3: torch.zeros(3)},
    "meta": {"model": {"weight": torch.zeros(3, device="meta")}},
    "sparse": {"model": {"weight": torch.zeros(3).to_sparse()}},
    "average without model": {"model": STATE, "ema": {"num_updates": 1}},
    "odd average": {"model": STATE, "ema": {"num_updates": 1, "model": {"weight": 1}}},
    "queries inf": {"model": STATE, "num_queries": float("inf")},
    "queries text": {"model": STATE, "num_queries": "ten"},
    "queries 0": {"model": STATE, "num_queries": 0},
    "a list": [STATE],
    "not finite": {"model": {**STATE, "bias": torch.tensor([1.0, float("nan")])}},
}


@pytest.mark.parametrize("name", sorted(ODD_CONTENTS))
def test_odd_contents_are_named(tmp_path, name):
    path = str(tmp_path / "odd.pth")
    torch.save(ODD_CONTENTS[name], path)
    with pytest.raises(ValueError, match="odd.pth'"):
        GroundingCheckpointer(nn.Linear(3, 2)).load(path)


def test_odd_header_of_safetensors_is_named(tmp_path):
    path = str(tmp_path / "odd.safetensors")
    for queries in ("abc", "-1", "0", "9" * 5000):
        save_file(STATE, path, metadata={"num_queries": queries})
        with pytest.raises(ValueError, match="odd.safetensors'.*num_queries"):
            GroundingCheckpointer(nn.Linear(3, 2)).load(path)


def test_a_changed_byte_is_found(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"model": STATE}, path)
    content = path.read_bytes()
    start = content.index(STATE["weight"].numpy().tobytes())
    path.write_bytes(content[: start + 5] + bytes([content[start + 5] ^ 1]) + content[start + 6 :])
    with pytest.raises(ValueError, match="weights.pth.*damaged"):
        GroundingCheckpointer(nn.Linear(3, 2)).load(str(path))
