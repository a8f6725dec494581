"""Masks of large photos are decoded in strips of columns, where they are set."""

import tracemalloc

import numpy as np
import pycocotools.mask as mask_util
import pytest

from igvg_d2.inference import masks
from igvg_d2.inference.masks import decode_mask
from igvg_d2.io.rle import empty_rle, mask_to_rle, runs_to_rle


@pytest.mark.parametrize("strip", [1, 7, 60, 10**9])
def test_strips_give_the_same_mask(strip, monkeypatch):
    monkeypatch.setattr(masks, "_FILLED_STRIP", strip)
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


def test_a_corner_is_filled_in_place():
    corner = np.zeros((2, 30, 70), dtype=bool)
    corner[0, 15:, 35:] = True
    assert decode_mask(mask_to_rle(corner[0]), out=corner[1]) is not None
    assert np.array_equal(corner[0], corner[1])


def test_nothing_is_written_where_nothing_is_set():
    """Of a large photo's mask, pages without a pixel of the object take no memory."""
    size, written = (2000, 3000), np.full((2000, 3000), 2, dtype=np.uint8)
    decode_mask(empty_rle(size), out=written.view(bool))
    assert (written == 2).all()
    # Ten columns of ten pixels from (500, 400) on.
    runs = [500 * 2000 + 400] + [10, 1990] * 9 + [10]
    rle = runs_to_rle(size, [*runs, 2000 * 3000 - sum(runs)])
    decode_mask(rle, out=written.view(bool))
    assert (written[400:410, 500:510] == 1).all()
    assert (written == 2).sum() == 2000 * 3000 - 100 == written.size - mask_util.area(rle)
