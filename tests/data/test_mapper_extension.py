"""What an outside project builds on the mapper: targets of its own."""

import numpy as np
import pytest
import torch

from igvg_d2.data import AntialiasedResize, GroundingDatasetMapper, LetterboxResize
from tests.data import test_dataset_mapper as common
from tests.data.test_dataset_mapper import HEIGHT, LEFT, RIGHT, WIDTH

make_sample = common.make_sample
tokenizer = common.tokenizer


class LabelMapper(GroundingDatasetMapper):
    """As an outside project writes it: a label map of the image is transformed with it."""

    def add_targets(self, sample, transform):
        """Adds "labels"."""
        labels = transform.apply_segmentation(sample.pop("label_map"))
        sample["labels"] = torch.from_numpy(np.ascontiguousarray(labels))


@pytest.mark.parametrize("letterbox", [False, True])
@pytest.mark.parametrize("axis", ["horizontal", "vertical"])
def test_a_subclass_transforms_maps_of_its_own(make_sample, axis, letterbox):
    sample = make_sample([LEFT, RIGHT])
    sample["label_map"] = np.zeros((HEIGHT, WIDTH), np.uint8)
    for label, (x0, y0, x1, y1) in ((7, LEFT), (9, RIGHT)):
        sample["label_map"][y0:y1, x0:x1] = label
    rule = LetterboxResize if letterbox else AntialiasedResize
    arguments = {"tokenizer": tokenizer, "image_format": "RGB", f"{axis}_flip_prob": 1.0}
    mapper = LabelMapper(True, resize=rule(image_size=(32, 48)), **arguments)
    mapped = mapper(sample)
    assert "label_map" not in mapped and mapped["labels"].shape == (32, 48)
    # Nearest sampling and area coverage may differ by a border of pixels, not more.
    for mask, label in zip(mapped["instances"].gt_masks.tensor, (7, 9)):
        assert mask.any() and (mask != (mapped["labels"] == label)).float().mean() < 0.05
