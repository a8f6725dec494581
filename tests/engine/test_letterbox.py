"""Aspect-preserving resize: into the network input and back to the original image."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from igvg_d2.data import AntialiasedResize, LetterboxResize, ReleasedResize, build_resize
from igvg_d2.modeling.letterbox import crop_outputs
from igvg_d2.modeling.postprocessing import PostprocessOptions, grounding_postprocess
from igvg_d2.testing import random_batch, tiny_cfg

NETWORK = (64, 64)
SIZES = [(60, 200), (200, 60), (64, 64), (31, 97), (1, 300)]
OPTIONS = PostprocessOptions(
    score_thresh=0.5,
    mask_thresh=0.5,
    output_mask="instance",
    weight_scores=False,
    mask_resize="logits",
    no_target_test="softmax",
    align_corners=False,
)


def make_sample(size):
    """Image, box XYXY and mask (height, width, 1) of a box that touches the far corner."""
    height, width = size
    box = np.array([[width // 3, height // 3, width, height]], np.float64)
    mask = np.zeros((height, width, 1), np.uint8, order="F")
    mask[height // 3 :, width // 3 :] = 1
    return np.full((height, width, 3), 200, np.uint8), box, mask


@pytest.mark.parametrize("size, content", list(zip(SIZES, [(19, 64), (64, 19), NETWORK, (20, 64)])))
def test_images_keep_their_shape(size, content):
    resize = LetterboxResize(image_size=NETWORK, fill=(10.4, 20, 30))
    assert resize.content_size(size) == content
    image = resize.resize_image(make_sample(size)[0])
    assert image.shape == (*NETWORK, 3) and image.dtype == np.uint8
    rows, columns = content
    assert (image[:rows, :columns] == 200).all()
    assert (image[rows:] == [10, 20, 30]).all() and (image[:, columns:] == [10, 20, 30]).all()


@pytest.mark.parametrize("rule", [AntialiasedResize, ReleasedResize])
@pytest.mark.parametrize("size", SIZES)
def test_padding_is_never_foreground(rule, size):
    resize = LetterboxResize(image_size=NETWORK, rule=rule)
    rows, columns = resize.content_size(size)
    everything = np.ones((*size, 2), np.uint8, order="F")
    masks = resize.resize_masks(everything)
    assert masks[:, :rows, :columns].all() and masks.sum() == 2 * rows * columns
    boxes = resize.resize_boxes(np.array([[-5.0, -5.0, 999.0, 999.0]]), size)
    assert boxes[0, 2] <= columns and boxes[0, 3] <= rows and (boxes >= 0).all()
    categories = resize.resize_numbers(np.full(size, 7, np.uint8))
    assert (categories > 0).sum() == rows * columns


@pytest.mark.parametrize("mask_resize", ["logits", "binary"])
@pytest.mark.parametrize("size", SIZES[:4])
def test_boxes_masks_and_points_return_to_the_image(size, mask_resize):
    height, width = size
    resize = LetterboxResize(image_size=NETWORK)
    _, box, mask = make_sample(size)
    network_box = torch.from_numpy(resize.resize_boxes(box, size)) / 64
    center, extent = (network_box[:, :2] + network_box[:, 2:]) / 2, network_box[:, 2:] - (
        network_box[:, :2]
    )
    # A model that predicts the ground truth of the padded input, and is sure of it outside too.
    masks = torch.from_numpy(resize.resize_masks(mask))[None].float() * 20 - 10
    outputs = {
        "no_target_logits": torch.tensor([[5.0, 0.0]]),
        "sem_seg": torch.full((1, 1, 16, 16), 10.0),
        "pred_logits": torch.tensor([[[5.0, 0.0]]]),
        "pred_boxes": torch.cat([center, extent], dim=1)[None],
        "pred_masks": masks,
        "pred_points": center[None],
        "attention_map": torch.rand(1, 4, 4),
    }
    content = resize.content_size(size)
    options = replace(OPTIONS, mask_resize=mask_resize)
    cropped = crop_outputs(outputs, 0, NETWORK, content)
    result = grounding_postprocess(cropped, content, [size], options, [(48,)])[0]
    found = result["instances"]
    assert np.allclose(found.pred_boxes.tensor.numpy(), box, atol=1e-3)
    middle = (box[0, :2] + box[0, 2:]) / 2
    assert np.allclose(found.pred_points[0].numpy(), middle, atol=1e-3)
    expected = mask[:, :, 0] > 0
    iou = (found.pred_masks[0].numpy() & expected).sum() / (
        found.pred_masks[0].numpy() | expected
    ).sum()
    assert iou > 0.88 and result["mask"].shape == size
    assert result["sem_seg"].shape == (1, *size) and result["resized_masks"][48].shape == (48, 48)
    # The far corner of the image, not the padding, ends up in the far corner of the frame.
    assert result["resized_masks"][48][-1, -1] and not result["resized_masks"][48][0, 0]
    cells = result["attention_map"].shape
    assert cells == tuple(-(-4 * n // 64) for n in content)


def test_an_input_without_padding_is_not_changed():
    model = build_model(tiny_cfg()).eval()
    batch = random_batch([1, 2])
    with torch.no_grad():
        plain = model(batch)
        same = model([{**x, "content_size": (64, 64)} for x in batch])
        padded = model([{**batch[0], "content_size": (32, 64), "height": 32}, batch[1]])
        asked = model([{**batch[0], "frame_sizes": (48, 20)}, batch[1]])
    assert {k: v.shape for k, v in asked[0]["resized_masks"].items()} == {
        48: (48, 48),
        20: (20, 20),
    }
    assert "resized_masks" not in asked[1]
    for a, b in zip(plain, same):
        assert torch.equal(a["candidates"].pred_boxes.tensor, b["candidates"].pred_boxes.tensor)
    assert torch.equal(plain[1]["sem_seg"], padded[1]["sem_seg"])
    assert padded[0]["sem_seg"].shape == (1, 32, 64)
    boxes = padded[0]["candidates"].pred_boxes.tensor
    assert (boxes[:, 3] <= 32).all()
    # Pixels of the image are those of the network input.
    expected = plain[0]["candidates"].pred_boxes.tensor.clamp(max=torch.tensor([64, 32, 64, 32.0]))
    torch.testing.assert_close(boxes, expected)


def test_build_resize_selects_the_mode():
    options = {"IMAGE_SIZE": (8, 6), "RESIZE": "cv2", "RESIZE_MODE": "letterbox"}
    cfg = CfgNode({"INPUT": options, "MODEL": {"PIXEL_MEAN": [1.6, 2.0, 3.0]}})
    resize = build_resize(cfg)
    assert isinstance(resize, LetterboxResize) and resize.rule is ReleasedResize
    assert resize.fill.tolist() == [2, 2, 3]
    cfg.INPUT.RESIZE_MODE = "crop"
    with pytest.raises(ValueError, match="INPUT.RESIZE_MODE: expected .*'crop'"):
        build_resize(cfg)
