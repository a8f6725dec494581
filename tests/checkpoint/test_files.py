"""Files written by the converters hold plain tensors and read back as they were."""

import os
import pickle

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from igvg_d2.checkpoint import (
    GroundingCheckpointer,
    read_checkpoint,
    read_metadata,
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
        with pytest.raises(ValueError, match=f"{path.name}' cannot be read"):
            read_checkpoint(str(path))


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
