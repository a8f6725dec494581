"""Image, masks and boxes of the released presets on real photographs: the release's, to the bit.

The expected arrays are made step by step from the release's specification: OpenCV, BGR, float32.
"""

from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import detection_utils
from detectron2.modeling import build_model

import igvg_d2.modeling  # noqa: F401
from igvg_d2.data import GroundingDatasetMapper
from igvg_d2.data.datasets import load_referring
from igvg_d2.engine import GroundingPredictor, setup_config
from tests.modeling.test_gradients import TINY

load_refcoco = partial(load_referring, target_rule="refcoco")

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PRESETS = sorted(str(p.relative_to(CONFIGS)) for p in CONFIGS.glob("*/instancevg_*_released.yaml"))
MEAN, STD = (np.float32(x) for x in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
SIDE = 320
OPTIONS = [
    "MODEL.WEIGHTS",
    "",
    *TINY,
    "INPUT.IMAGE_SIZE",
    (SIDE, SIDE),
    "INPUT.TOKENIZER.NAME",
    "ShapesTokenizer",
    "MODEL.BEIT3.VOCAB_SIZE",
    512,
]


def released_image(bgr):
    """float32 (3, 320, 320) in RGB order, normalised, from a decoded image."""
    resized = cv2.resize(bgr, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    return ((cv2.cvtColor(resized, cv2.COLOR_BGR2RGB) - MEAN) / STD).transpose(2, 0, 1)


@pytest.fixture(scope="module")
def samples(shared_dir):
    """All of them, with 0 to 3 targets."""
    root = shared_dir / "data/coco_ref_overlap"
    if not root.is_dir():
        pytest.skip(f"photographs not found: {root}")
    samples = []
    for name, file, loader, split in (
        ("grefcoco", "grefs(unc).json", load_referring, "testB"),
        ("refcoco", "refs(unc).p", load_refcoco, "val"),
    ):
        folder = root / "official_schema_rebuilt" / name
        files = (folder / file, folder / "instances.json", root / "train2014")
        samples += loader(*map(str, files), split)
    return samples


@pytest.fixture(scope="module", params=PRESETS)
def preset(request):
    """Config of a released preset, with a tiny network and a tokenizer without a file."""
    return setup_config(str(CONFIGS / request.param), OPTIONS)


def test_network_input_is_the_release_s_to_the_bit(samples, preset):
    mapper, model = GroundingDatasetMapper(preset, is_train=False), build_model(preset)
    sizes = set()
    for sample in samples[::3]:
        mapped = mapper(sample)
        bgr = detection_utils.read_image(sample["file_name"], "BGR")
        sizes.add(bgr.shape[:2])
        network = model.preprocess_image([mapped])[0].contiguous().numpy()
        assert network.dtype == np.float32
        assert np.array_equal(network, released_image(bgr)), sample["file_name"]
    assert len(sizes) > 3


def test_predictor_sees_the_same(samples, preset):
    predictor = GroundingPredictor(preset)
    seen = []
    predictor.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0]))
    path = samples[0]["file_name"]
    predictor(path, samples[0]["expression"])
    network = predictor.model.preprocess_image(seen)[0].contiguous().numpy()
    expected = released_image(detection_utils.read_image(path, "BGR"))
    assert np.array_equal(network, expected)


def test_targets_are_the_release_s(samples, preset):
    """Masks to the bit: decoded, then nearest neighbour; boxes clipped to the last pixel."""
    mapper = GroundingDatasetMapper(preset, is_train=True)
    for sample in samples[::3]:
        height, width = sample["height"], sample["width"]
        instances = mapper(sample)["instances"]
        annotations = sample["annotations"]
        assert len(instances) == len(annotations)
        masks = instances.gt_masks.tensor
        for item, mask in zip(annotations, masks):
            assert np.array_equal(mask.numpy(), released_mask([item["segmentation"]]))
        if annotations:
            union = released_mask([item["segmentation"] for item in annotations])
            assert np.array_equal(masks.any(dim=0).numpy(), union)
            x, y, w, h = np.array([item["bbox"] for item in annotations], dtype=np.float64).T
            x1, x2 = (np.clip(c, 0, width - 1) * SIDE / width for c in (x, x + w))
            y1, y2 = (np.clip(c, 0, height - 1) * SIDE / height for c in (y, y + h))
            expected = torch.tensor(np.stack([x1, y1, x2, y2], axis=1), dtype=torch.float32)
            torch.testing.assert_close(instances.gt_boxes.tensor, expected, atol=1e-4, rtol=0)


def released_mask(segmentations):
    """bool (320, 320): merged at the original size, then resized."""
    mask = mask_util.decode(mask_util.merge(segmentations))
    return cv2.resize(mask, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST) > 0
