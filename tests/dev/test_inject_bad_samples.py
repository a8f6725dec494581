"""dev/inject_bad_samples.py damages what it says, and its comparison sees every mistake."""

import random

import pytest

from igvg_d2.data import BadSampleError, GroundingDatasetMapper
from igvg_d2.data.datasets import load_referring
from igvg_d2.data.resize import AntialiasedResize
from igvg_d2.data.synthetic import write_shapes
from tests.scripts import load_script

injector = load_script("dev/inject_bad_samples.py")


@pytest.fixture(scope="module")
def damaged_set(tmp_path_factory):
    """Folder of 30 samples, and the 18 that are damaged: each kind twice."""
    root, rng = tmp_path_factory.mktemp("bad"), random.Random(1)
    write_shapes(str(root / "whole"), seed=1, scale=0.003, num_workers=1)
    refs, instances = injector.copy_samples(root / "whole", root / "shapes", 30, rng)
    damaged = injector.damage(refs, instances, root / "shapes", 18, rng)
    injector.write(refs, instances, root / "shapes")
    return root / "shapes", damaged


def test_exactly_the_damaged_samples_are_bad(damaged_set):
    folder, damaged = damaged_set
    files = [folder / injector.REFS_FILE, folder / injector.INSTANCES_FILE]
    samples = load_referring(*map(str, files), str(folder / injector.IMAGE_FOLDER), "train")
    mapper = GroundingDatasetMapper(
        True,
        resize=AntialiasedResize(image_size=(16, 16)),
        tokenizer=lambda text: [0, 2],
        image_format="RGB",
    )
    reports = []
    for sample in samples:
        try:
            mapper(sample)
        except BadSampleError as error:
            reports.append({key: sample[key] for key in ("sample_id", "file_name")})
            reports[-1]["reason"] = str(error)
    assert len(samples) == 30 and len(reports) == 18
    assert not any(injector.compare(reports, damaged).values())
    kinds = [kind for kind, _ in damaged.values()]
    assert all(kinds.count(kind) == 2 for kind in injector.KINDS)


def test_every_mistake_of_a_list_is_seen():
    zero_area, remove = injector._zero_area, injector._remove
    damaged = {"1_1": (zero_area, "a"), "2_1": (remove, "b"), "3_1": (remove, "c")}
    reports = [
        {"sample_id": "1_1", "file_name": "x", "reason": "no area"},
        {"sample_id": "2_1", "file_name": "b", "reason": "no area"},
        {"sample_id": "2_1", "file_name": "b", "reason": "no image file"},
        {"sample_id": "9_1", "file_name": "y", "reason": "no area"},
    ]
    assert injector.compare(reports, damaged) == {
        "missing": ["3_1"],
        "false alarms": ["9_1"],
        "named twice": ["2_1"],
        "wrong file": ["1_1"],
        "wrong reason": [],
    }
    reports = [{"sample_id": "2_1", "file_name": "b", "reason": "no area"}]
    assert injector.compare(reports, damaged)["wrong reason"] == ["2_1"]
