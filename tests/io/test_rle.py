"""Run-length masks from elsewhere are checked before pycocotools sees them."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch

from igvg_d2.io.rle import check_rle, mask_to_rle, normalize_rle, runs_to_mask, to_json


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (480, 640)])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.5, 1.0])
def test_masks_survive_every_form(size, density):
    mask = np.random.default_rng(0).random(size) < density
    rle = mask_to_rle(mask)
    assert mask_to_rle(torch.from_numpy(mask)) == rle
    runs = check_rle(rle)[1]
    for form in (rle, to_json(rle), {"size": list(size), "counts": runs.tolist()}):
        found, runs = check_rle(form, size)
        assert found == size and (runs_to_mask(size, runs) == mask).all()
        assert normalize_rle(form, size, runs) == rle


def test_empty_runs_are_removed():
    # pycocotools' merge stops at the empty run and loses the pixels behind it.
    rle = {"size": [2, 5], "counts": [1, 2, 0, 1, 3, 2, 1]}
    size, runs = check_rle(rle)
    normal = normalize_rle(rle, size, runs)
    assert check_rle(normal)[1].tolist() == [1, 3, 3, 2, 1]
    assert (mask_util.decode(normal) == runs_to_mask(size, runs)).all()


@pytest.mark.parametrize(
    "rle",
    [
        *(None, {}, {"size": [2, 5]}, {"size": [2], "counts": [2]}, {"size": [0, 5], "counts": []}),
        *({"size": [5, 2], "counts": [10]}, {"size": [2, True], "counts": [2]}),
        *(
            {"size": [2, 5], "counts": counts}
            for counts in ([], [9], [11], [-1, 11], [2**64, 10 - 2**64], [10.0], [True] * 10, 5)
        ),
        *({"size": [2, 5], "counts": counts} for counts in ("", "\u00e4", "~", "P", "o" * 9 + "0")),
    ],
)
def test_damage_is_refused(rle):
    with pytest.raises(ValueError, match="expected"):
        check_rle(rle, (2, 5))


def test_sizes_beyond_those_of_images_are_refused():
    for side in (2**16, 2**40, 10**400):
        with pytest.raises(ValueError, match="size"):
            check_rle({"size": [side, 1], "counts": [side]})


def test_sums_beyond_64_bits_are_refused():
    # Runs that grow by 2 ** 34 - 1.
    with pytest.raises(ValueError, match=r"60000 runs of 1\d{19}"):
        check_rle({"size": [480, 640], "counts": "oooooo?" * 60000})
