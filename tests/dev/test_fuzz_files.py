"""A short run of dev/fuzz_files.py, and a proof that it sees what it looks for."""

import pickle

import numpy as np
import pytest
import torch

from tests.scripts import load_script

fuzzer = load_script("dev/fuzz_files.py")


@pytest.mark.parametrize(
    "kind, count, refused, loaded",
    [
        ("weights", 60, 30, 2),
        ("configs", 60, 15, 1),
        ("images", 150, 50, 10),
        ("pickles", 200, 90, 2),
    ],
)
def test_files_are_refused_by_name_or_load_what_they_hold(tmp_path, kind, count, refused, loaded):
    outcomes, failures = fuzzer.fuzz(kind, count, 1, tmp_path)
    assert failures == []
    assert outcomes["refused"] >= refused and outcomes["loaded"] >= loaded


def test_code_and_wrong_answers_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzzer, "loads_plain", lambda content, _: pickle.loads(content))
    failures = fuzzer.fuzz("pickles", 60, 1, tmp_path)[1]
    assert any("code was run" in text for text in failures)
    monkeypatch.setattr(fuzzer, "read_metadata", lambda _: {})
    assert "AssertionError()" in fuzzer.fuzz("configs", 60, 1, tmp_path)[1][0]
    monkeypatch.setattr(fuzzer, "read_image", lambda *_: np.zeros((3, 3)))
    assert len(fuzzer.fuzz("images", 5, 1, tmp_path)[1]) == 5
    weights = fuzzer.Weights(tmp_path)
    damaged = {key: torch.zeros_like(value) for key, value in weights.state.items()}
    weights.model.load_state_dict(damaged)
    with pytest.raises(AssertionError, match="other weights than in the file"):
        weights.check(tmp_path / "weights.pth", None, weights.state)
