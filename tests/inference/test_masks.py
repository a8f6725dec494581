"""Masks of large photos are decoded in strips of columns."""

import tracemalloc

import numpy as np
import pytest

from igvg_d2.inference import masks
from igvg_d2.inference.masks import decode_mask
from igvg_d2.io.rle import empty_rle, mask_to_rle, runs_to_rle


@pytest.mark.parametrize("strip", [1, 7, 60, 10**9])
def test_strips_give_the_same_mask(strip, monkeypatch):
    monkeypatch.setattr(masks, "_STRIP", strip)
    rng = np.random.default_rng(0)
    for share in (0.0, 0.1, 0.5, 1.0):
        mask = rng.random((7, 31)) < share
        found = decode_mask(mask_to_rle(mask))
        assert found.dtype == bool and found.flags.c_contiguous and found.flags.writeable
        assert np.array_equal(found, mask)
    rle = runs_to_rle((2, 3), [0, 3, 0, 1, 2])  # with empty runs
    assert decode_mask(rle).T.ravel().tolist() == [True] * 4 + [False] * 2
    assert not decode_mask(empty_rle((7, 31))).any()


def test_there_is_no_second_mask_in_memory():
    mask = np.zeros((3000, 4000), dtype=bool)
    mask[1000:2000, 500:3000] = True
    rle = mask_to_rle(mask)
    tracemalloc.start()
    found = decode_mask(rle)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(found, mask) and peak < 1.5 * mask.nbytes
