"""Bad samples are named, and replaced only where that was asked for."""

import pickle

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import MapDataset
from detectron2.structures import BoxMode
from PIL import Image
from torch.utils.data import DataLoader

from igvg_d2.data import AntialiasedResize, BadSampleError, GroundingDatasetMapper
from igvg_d2.data.bad_samples import BadSampleSkipper, CheckedMapper
from igvg_d2.data.loader import ErrorsAsSamples, UnpackingLoader, pack_batch
from igvg_d2.data.sampling import VisitDataset

SIZE = (20, 30)  # height, width


@pytest.fixture
def make_sample(tmp_path):
    """Callable: number -> dataset dict with one target, its image on disk."""

    def _make_sample(number):
        file_name = str(tmp_path / f"{number}.jpg")
        pixels = np.random.default_rng(number).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file_name)
        mask = np.zeros(SIZE, np.uint8, order="F")
        mask[5:10, 5:15] = 1
        target = {
            "bbox": [5.0, 5.0, 10.0, 5.0],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": 0,
            "segmentation": mask_util.encode(mask),
            "iscrowd": 0,
        }
        return {
            "file_name": file_name,
            "height": SIZE[0],
            "width": SIZE[1],
            "image_id": number,
            "sample_id": f"{number}_0",
            "expression": "one",
            "annotations": [target],
        }

    return _make_sample


def make_mapper(is_train=True):
    return GroundingDatasetMapper(
        is_train,
        resize=AntialiasedResize(image_size=(16, 16)),
        tokenizer=split_words,
        image_format="RGB",
    )


def truncate(sample):
    with open(sample["file_name"], "r+b") as file:
        file.truncate(200)


def no_image(sample):
    with open(sample["file_name"], "w") as file:
        file.write("not an image")


def remove(sample):
    sample["file_name"] += ".gone"


def nan_pixels(sample):
    sample["file_name"] = sample["file_name"].replace(".jpg", ".tiff")
    pixels = np.full(SIZE, 7, np.float32)
    pixels[3, 4] = np.nan
    Image.fromarray(pixels).save(sample["file_name"])


def zero_area_box(sample):
    sample["annotations"][0]["bbox"] = [5.0, 5.0, 0.0, 5.0]


def box_outside(sample):
    sample["annotations"][0]["bbox"] = [31.0, 5.0, 4.0, 5.0]


def nan_box(sample):
    sample["annotations"][0]["bbox"] = [5.0, float("nan"), 4.0, 5.0]


def empty_mask(sample):
    empty = np.zeros(SIZE, np.uint8, order="F")
    sample["annotations"][0]["segmentation"] = mask_util.encode(empty)


def no_polygon(sample):
    sample["annotations"][0]["segmentation"] = []


def other_size(sample):
    sample["height"] = SIZE[0] + 1


def no_token(sample):
    sample["expression"] = "?!"


def half_a_character(sample):
    sample["expression"] = "the \ud800 dog"


def split_words(text):
    """A tokenizer."""
    if not text.strip("?!"):
        raise ValueError("no token")
    return [0, *map(len, text.split()), 2]


DAMAGES = {
    no_token: "expression of .*no token",
    half_a_character: "expression of .*half a character",
    truncate: "cannot decode",
    no_image: "cannot decode",
    remove: "no image file",
    nan_pixels: "no range is known",
    zero_area_box: "no area",
    box_outside: "no area",
    nan_box: "no area",
    empty_mask: "no pixels",
    no_polygon: "segmentation of",
    other_size: "height, width",
}


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_bad_sample_is_an_error_with_sample_and_file(make_sample, damage, is_train):
    sample = make_sample(3)
    assert make_mapper(is_train)(sample)["sample_id"] == "3_0"
    damage(sample)
    with pytest.raises(BadSampleError, match=DAMAGES[damage]) as error:
        make_mapper(is_train)(sample)
    assert "3_0" in str(error.value) and sample["file_name"] in str(error.value)
    # It travels from a loader's worker.
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


def test_an_error_of_a_worker_is_one_message(make_sample):
    samples = [make_sample(i) for i in range(3)]
    remove(samples[2])
    dataset = MapDataset(samples, ErrorsAsSamples(CheckedMapper(make_mapper(is_train=False))))
    loader = UnpackingLoader(DataLoader(dataset, num_workers=1, collate_fn=pack_batch))
    batches = iter(loader)
    assert [next(batches)[0]["sample_id"] for _ in range(2)] == ["0_0", "1_0"]
    with pytest.raises(BadSampleError, match=r"^no image file for sample 2_0 [^\n]*$"):
        next(batches)


def test_the_output_of_any_mapper_is_looked_at():
    def mapper(sample):
        return {**sample, "image": torch.full((3, 4, 4), float("inf"))}

    with pytest.raises(BadSampleError, match=r"sample 5 \('b.jpg'\)"):
        CheckedMapper(mapper)({"sample_id": 5, "file_name": "b.jpg"})


def test_a_target_that_sticks_out_of_the_image_is_fine(make_sample):
    sample = make_sample(1)
    sample["annotations"][0]["bbox"] = [-3.0, 5.0, 10.0, 40.0]
    assert len(make_mapper()(sample)["instances"]) == 1
    sample["annotations"] = []
    assert len(make_mapper()(sample)["instances"]) == 0


def skipped(samples, seed=0):
    """All samples of an epoch, bad ones replaced."""
    dataset = VisitDataset(samples, BadSampleSkipper(make_mapper(), samples), seed)
    return [dataset[0, i] for i in range(len(samples))]


def test_skipping_replaces_and_reports(make_sample):
    samples = [make_sample(i) for i in range(12)]
    for i, damage in {2: truncate, 5: zero_area_box, 11: remove}.items():
        damage(samples[i])
    mapped = skipped(samples)
    used = [x["sample_id"] for x in mapped]
    assert [used[i] for i in range(12) if i not in (2, 5, 11)] == [
        f"{i}_0" for i in range(12) if i not in (2, 5, 11)
    ]
    for i in (2, 5, 11):
        reports = mapped[i]["bad_samples"]
        assert reports[0]["sample_id"] == f"{i}_0"
        assert reports[0]["file_name"] == samples[i]["file_name"]
        assert f"{i}_0" in reports[0]["reason"] and reports[0]["dataset_size"] == 12
        assert all(report["replaced_by"] == used[i] for report in reports)
        assert used[i] not in ("2_0", "5_0", "11_0")
    assert sum("bad_samples" in x for x in mapped) == 3
    # A function of seed, epoch and item: the order of the calls does not matter.
    again = VisitDataset(samples, BadSampleSkipper(make_mapper(), samples), 0)
    assert [again[0, i]["sample_id"] for i in (11, 5, 2)] == [used[i] for i in (11, 5, 2)]
    assert any([x["sample_id"] for x in skipped(samples, seed)] != used for seed in range(1, 4))


def test_a_wholly_bad_set_stops(make_sample):
    samples = [make_sample(i) for i in range(3)]
    for sample in samples:
        truncate(sample)
    with pytest.raises(BadSampleError, match="0_0.*19 samples tried in its place are all bad"):
        skipped(samples)
