"""Files written by the converters hold plain tensors and read back as they were."""

import argparse
import collections
import os
import pickle
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


@pytest.mark.parametrize("ending", [".pth", ".pkl"])
def test_detectron2_reads_what_is_written(tmp_path, ending):
    path = str(tmp_path / f"weights{ending}")
    write_checkpoint(path, STATE, "somebody")
    model = nn.Linear(3, 2)
    DetectionCheckpointer(model).load(path)
    assert torch.equal(model.weight, STATE["weight"]) and torch.equal(model.bias, STATE["bias"])


def test_pickle_holds_arrays_and_origin(tmp_path):
    path = tmp_path / "weights.pkl"
    write_checkpoint(str(path), STATE, "somebody")
    content = pickle.loads(path.read_bytes())
    assert content["__author__"] == "somebody" and content["model"]["bias"].tolist() == [1.0, 1.0]


def test_safetensors_and_container(tmp_path):
    path = str(tmp_path / "weights.safetensors")
    write_checkpoint(path, {**STATE, "t": STATE["weight"].clone().t()}, "somebody")
    assert read_metadata(path) == {"author": "somebody"}
    assert torch.equal(read_checkpoint(path)["t"], STATE["weight"].t())
    path = str(tmp_path / "weights.pth")
    write_checkpoint(path, STATE, "somebody", container="state_dict")
    assert set(read_checkpoint(path)) == {"state_dict", "__author__"}


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "numpy"])
@pytest.mark.parametrize("ending", ["", ".zip", ".pkl", ".bin"])
def test_content_decides_not_the_ending(tmp_path, kind, ending):
    path = tmp_path / f"weights{ending}"
    if kind == "safetensors":
        save_file(STATE, path)
    elif kind == "numpy":
        path.write_bytes(pickle.dumps({key: tensor.numpy() for key, tensor in STATE.items()}))
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
        "mean": np.arange(3.0, dtype=np.float32),
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
    assert read["det_best"] == 0.5 and read["args"].lr == 0.1


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


@pytest.mark.parametrize("ending", [".pth", ".pkl", ".safetensors"])
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


@pytest.mark.parametrize("ending", [".pth", ".pkl", ".safetensors"])
def test_our_checkpointer_reads_what_is_written(tmp_path, ending):
    path = str(tmp_path / f"weights{ending}")
    write_checkpoint(path, STATE, "somebody")
    model = nn.Linear(3, 2)
    GroundingCheckpointer(model).load(path)
    assert torch.equal(model.weight, STATE["weight"]) and torch.equal(model.bias, STATE["bias"])
