"""The study of the reasoner: what it is fed, and how it counts."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from igvg_d2.data.synthetic.generator import SPLITS
from igvg_d2.data.tokenizer import ShapesTokenizer

SCRIPT = Path(__file__).resolve().parents[2] / "dev" / "study_reasoning.py"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("study_reasoning", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def samples(study):
    return study.load(SPLITS[1], share=0.02)


class Both:
    """A random generator that always flips."""

    def random(self):
        return 0.0


def test_flips_move_objects_and_swap_words(study, samples):
    tokenizer = ShapesTokenizer(max_tokens=40)
    left, right = tokenizer.word_ids["left"], tokenizer.word_ids["right"]
    plain, wanted = study.collate(samples, tokenizer)
    flipped, still_wanted = study.collate(samples, tokenizer, Both())
    exists = plain[2]
    torch.testing.assert_close(flipped[1][exists], 1 - plain[1][exists])
    assert torch.equal(flipped[0], plain[0]) and torch.equal(still_wanted, wanted)
    assert torch.equal((flipped[3] == right), (plain[3] == left)) and (plain[3] == left).any()
    counts = [len(targets) for _, _, _, targets, _ in samples]
    assert wanted.sum(dim=1).tolist() == counts and not wanted[~exists].any()


def test_only_exactly_right_sets_count(study, samples):
    tokenizer = ShapesTokenizer(max_tokens=40)
    _, wanted = study.collate(samples, tokenizer)
    right = study.evaluate(lambda *_: wanted - 0.5, samples, tokenizer)
    assert set(right.values()) == {100.0} and {"ALL", "T", "N"} < right.keys()
    nothing = study.evaluate(lambda *_: -torch.ones_like(wanted), samples, tokenizer)
    share = 100 * float(np.mean([not targets for _, _, _, targets, _ in samples]))
    assert nothing["ALL"] == pytest.approx(share, abs=0.1)
    assert nothing["T"] == 0 and nothing["N"] == 100
