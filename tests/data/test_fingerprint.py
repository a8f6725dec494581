"""The hash that says which data set a number was measured on."""

import copy

import pytest
from detectron2.structures import BoxMode

from igvg_d2.data.datasets import fingerprint


def target(ann_id=1, counts=b"PP<"):
    """A dataset dict's annotation."""
    rle = {"size": [4, 6], "counts": counts}
    box = {"bbox": [0.0, 1.0, 2.0, 2.0], "bbox_mode": BoxMode.XYWH_ABS}
    return {"id": ann_id, **box, "segmentation": rle, "iscrowd": 0, "category_id": 0}


@pytest.fixture
def samples():
    one, two = target(1), target(2)
    return [
        {
            "sample_id": f"{i}_0",
            "expression": f"thing {i}",
            "image_id": 7,
            "file_name": "here/7.jpg",
            "height": 4,
            "width": 6,
            "annotations": annotations,
        }
        for i, annotations in enumerate(([one, two], [one], []))
    ]


def test_order_folder_and_storage_do_not_matter(samples):
    expected = fingerprint(samples)
    assert len(expected) == 64 and int(expected, 16)
    other = copy.deepcopy(samples[::-1])
    other[-1]["annotations"].reverse()
    for sample in other:
        sample["file_name"] = "there/7.jpg"
        sample["kind"] = "new"
    other[1]["annotations"][0]["segmentation"]["counts"] = "PP<"
    assert fingerprint(other) == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.pop(),
        lambda s: s[0].update(sample_id="9_0"),
        lambda s: s[0].update(expression="Thing 0"),
        lambda s: s[0].update(image_id=8),
        lambda s: s[0].update(file_name="here/8.jpg"),
        lambda s: s[0].update(width=7),
        lambda s: s[0]["annotations"].pop(),
        lambda s: s[1]["annotations"][0].update(id=5),
        lambda s: s[1]["annotations"][0].update(iscrowd=1),
        lambda s: s[1]["annotations"][0].update(bbox=[0.0, 1.0, 2.0, 2.5]),
        lambda s: s[1]["annotations"][0]["segmentation"].update(counts=b"PP;"),
    ],
)
def test_every_fact_matters(samples, change):
    changed = copy.deepcopy(samples)
    change(changed)
    assert fingerprint(changed) != fingerprint(samples)
