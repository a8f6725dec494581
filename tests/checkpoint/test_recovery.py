"""A run continues from the newest whole checkpoint, whatever happened to the last one."""

import os
import shutil

import pytest
import torch

from igvg_d2.checkpoint import GroundingCheckpointer, list_checkpoints
from igvg_d2.checkpoint.checkpointer import count_bytes


class Counter:
    """The trainer of these tests."""

    iteration = -1

    def state_dict(self):
        return {"iteration": self.iteration}

    def load_state_dict(self, state):
        self.iteration = state["iteration"]


def make(folder):
    model = torch.nn.Linear(8, 8)
    trainer = Counter()
    return GroundingCheckpointer(model, str(folder), trainer=trainer), trainer


def save(checkpointer, trainer, *iterations, final=False):
    for iteration in iterations:
        trainer.iteration = iteration
        torch.nn.init.constant_(checkpointer.model.weight, iteration)
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
    if final:
        checkpointer.save("model_final", iteration=iteration)


def resume(folder):
    checkpointer, trainer = make(folder)
    checkpointer.resume_or_load("", resume=True)
    if trainer.iteration >= 0:
        assert (checkpointer.model.weight == trainer.iteration).all()
    return trainer.iteration


def truncate(path):
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) // 2)


def flip_byte(path):
    """In the weights: PyTorch reads such a file without a word."""
    with open(path, "rb") as file:
        content = bytearray(file.read())
    weights = torch.load(path, weights_only=True)["model"]["weight"].numpy().tobytes()
    content[content.index(weights)] ^= 1
    with open(path, "wb") as file:
        file.write(content)


def zero(path):
    size = os.path.getsize(path)
    with open(path, "wb") as file:
        file.write(bytes(size))


def forget_trainer(path):
    torch.save({"model": torch.load(path, weights_only=True)["model"]}, path)


@pytest.mark.parametrize("damage", [truncate, flip_byte, zero, forget_trainer, os.remove])
def test_damaged_last_checkpoint_falls_back(tmp_path, caplog, damage):
    save(*make(tmp_path), 9, 19, 29)
    damage(tmp_path / "model_0000029.pth")
    assert resume(tmp_path) == 19
    assert "model_0000029.pth' cannot be used: " in caplog.text
    assert "model_0000019.pth' instead: 10 iterations are repeated" in caplog.text
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000019.pth"


def test_damaged_final_checkpoint_falls_back(tmp_path):
    save(*make(tmp_path), 9, 19, final=True)
    truncate(tmp_path / "model_final.pth")
    assert resume(tmp_path) == 19


def test_without_a_whole_checkpoint_nothing_is_changed(tmp_path):
    save(*make(tmp_path), 9, 19)
    for path in tmp_path.glob("*.pth"):
        truncate(path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="no checkpoint that can be read(.|\n)*0000019(.|\n)*0009"):
        resume(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("content", [None, "", "\0\0\0", "nonsense"])
def test_lost_name_of_the_last_checkpoint(tmp_path, caplog, content):
    save(*make(tmp_path), 9, 19)
    os.remove(tmp_path / "last_checkpoint")
    if content is not None:
        (tmp_path / "last_checkpoint").write_text(content)
    assert make(tmp_path)[0].has_checkpoint() and resume(tmp_path) == 19
    assert "last_checkpoint' is missing or names no file" in caplog.text


def test_newer_files_of_another_run_are_left_alone(tmp_path):
    save(*make(tmp_path), 9, 99, 19)
    truncate(tmp_path / "model_0000019.pth")
    assert resume(tmp_path) == 9


def test_empty_folder_starts_anew(tmp_path):
    assert resume(tmp_path) == -1 and not make(tmp_path)[0].has_checkpoint()
    save(*make(tmp_path), 5)
    assert [i for i, _ in list_checkpoints(str(tmp_path))] == [5]
    # Weights that do not fit are a wrong config, not damage.
    other = GroundingCheckpointer(torch.nn.Linear(3, 3), str(tmp_path), trainer=Counter())
    with pytest.raises(ValueError, match="does not fit the configured model"):
        other.resume_or_load("", resume=True)


def test_full_disk_says_what_is_needed(tmp_path, monkeypatch):
    checkpointer, trainer = make(tmp_path)
    save(checkpointer, trainer, 1)
    before = (tmp_path / "model_0000001.pth").read_bytes()
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    def fail(data, file):
        # What PyTorch makes of the system's error.
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="model_0000001.pth': 288 bytes are needed, 100 bytes are"):
        save(checkpointer, trainer, 1)
    assert (tmp_path / "model_0000001.pth").read_bytes() == before
    assert not list(tmp_path.glob("*.unfinished"))


def test_bytes_of_shared_tensors_count_once():
    x = torch.zeros(10)
    assert count_bytes({"a": x, "b": [x[:5], (torch.zeros(2, dtype=torch.int64), 3)]}) == 56
