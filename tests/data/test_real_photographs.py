"""Readers and mapper on real photographs with real expressions, in the releases' file formats."""

import os
from functools import partial

import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.structures import pairwise_iou

from igvg_d2.data import AntialiasedResize, GroundingDatasetMapper, ReleasedResize
from igvg_d2.data.datasets import load_referring

load_refcoco = partial(load_referring, target_rule="refcoco")

BENCHMARKS = {
    "grefcoco": ("grefs(unc).json", load_referring, "testB", 21),
    "refcoco": ("refs(unc).p", load_refcoco, "val", 36),
    "refcoco+": ("refs(unc).p", load_refcoco, "testB", 24),
    "refcocog": ("refs(umd).p", load_refcoco, "val", 15),
}
# Boxes of COCO against tight boxes of the masks: rasterising a polygon loses the thin spikes that
# its box includes, up to 10 pixels in these data.
MIN_BOX_IOU = 0.85


@pytest.fixture(params=list(BENCHMARKS))
def samples(request, shared_dir):
    """Dataset dicts of one split of one benchmark."""
    file, loader, split, count = BENCHMARKS[request.param]
    root = shared_dir / "data/coco_ref_overlap"
    folder = root / "official_schema_rebuilt" / request.param
    files = (folder / file, folder / "instances.json", root / "train2014")
    samples = loader(*map(str, files), split)
    assert len(samples) == count
    targets = {len(sample["annotations"]) for sample in samples}
    assert targets == ({0, 1, 2, 3} if request.param == "grefcoco" else {1})
    return samples


def test_boxes_are_those_of_the_masks(samples):
    for sample in samples:
        assert os.path.isfile(sample["file_name"])
        for item in sample["annotations"]:
            tight = mask_util.toBbox(item["segmentation"])
            assert mask_util.iou([tight], [item["bbox"]], [0]) > MIN_BOX_IOU


@pytest.mark.parametrize("rule", [AntialiasedResize, ReleasedResize])
def test_mapped_targets_stay_together(samples, rule):
    settings = {
        "tokenizer": lambda expression: [0, *map(len, expression.split()), 2],
        "image_format": "RGB",
        "resize": rule(image_size=(320, 256)),
    }
    plain = GroundingDatasetMapper(True, **settings)
    flipping = GroundingDatasetMapper(True, horizontal_flip_prob=1.0, **settings)
    for sample in samples[::3]:
        mapped, flipped = plain(sample), flipping(sample)
        instances = mapped["instances"]
        assert mapped["image"].shape == (3, 320, 256)
        assert len(instances) == len(sample["annotations"])
        assert mapped["expression"] == sample["expression"]
        tight = instances.gt_masks.get_bounding_boxes()
        assert (pairwise_iou(tight, instances.gt_boxes).diagonal() > MIN_BOX_IOU).all()
        assert torch.equal(flipped["image"], mapped["image"].flip(-1))
        masks = flipped["instances"].gt_masks
        assert torch.equal(masks.tensor, instances.gt_masks.tensor.flip(-1))
        boxes = flipped["instances"].gt_boxes
        assert (pairwise_iou(masks.get_bounding_boxes(), boxes).diagonal() > MIN_BOX_IOU).all()
