"""Direction words, flips, colour jitter and the two resize rules."""

import json
import re

import cv2
import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from igvg_d2.data import (
    AntialiasedResize,
    GeometricTransform,
    ReleasedResize,
    build_resize,
    is_flippable,
    jitter_color,
    swap_direction_words,
)

HORIZONTAL = [
    ("the left man", "the right man"),
    ("LEFT guy, rightmost dog.", "RIGHT guy, leftmost dog."),
    ("Left-hand cup", "Right-hand cup"),
    ("the Leftmost one (upper-right)", "the Rightmost one (upper-left)"),
    ("lefthand side's topright", "righthand side's topleft"),
    ("top of the brightest lefty", "top of the brightest righty"),
    ("L guy, rt side of the R couch", "R guy, lt side of the L couch"),
    ("they'r on the left's", "they'r on the right's"),
    ("", ""),
]
VERTICAL = [
    ("the second ring from the top", "the second ring from the bottom"),
    ("above the upper-left star", "below the lower-left star"),
    ("Topmost, highest; under", "Bottommost, lowest; over"),
    ("the bottomleft stop", "the topleft stop"),
    ("left tower", "left tower"),
]


@pytest.mark.parametrize(
    "axis, before, after",
    [("horizontal", *pair) for pair in HORIZONTAL] + [("vertical", *pair) for pair in VERTICAL],
)
def test_direction_words_are_swapped_and_back(axis, before, after):
    assert swap_direction_words(before, axis) == after
    assert swap_direction_words(after, axis) == before


def test_expressions_with_unknown_directions_are_not_flipped():
    assert is_flippable("the left man", "horizontal")
    assert not is_flippable("cup at 3 O'Clock", "horizontal")
    assert not is_flippable("ball beneath the chair", "vertical")
    assert is_flippable("ball beneath the chair", "horizontal")
    assert is_flippable("the small cup", "vertical")


@pytest.mark.parametrize(
    "expression",
    [
        *("the right man", "man on the right", "second from left to right", "which is left of it"),
        *("girl with bright red shirt on l", "a left-handed batter", "R guy", "lefty", "right one"),
        *(
            "chair on right, next to the wall",
            "that is right of the tree",
            "leftovers on the plate",
        ),
        *(
            "upright left bike",
            "right front wheel",
            "far left",
            "person looking left",
            "right person",
        ),
    ],
)
def test_sides_of_the_image_are_flippable(expression):
    assert is_flippable(expression, "horizontal")


@pytest.mark.parametrize(
    "expression",
    [
        *("right behind the man", "right next to the car", "all right guys", "right in front"),
        *(
            "right to the left of him",
            "the right answer",
            "the slice that is left",
            "he left the bus",
        ),
        *(
            "pizza left over",
            "the wrong one, right cup",
            "player number five",
            "12",
            "player 7 left",
        ),
        *("the letter A on the left", 'bus that says "LONDON"', "text on left", "at three o'clock"),
        *(
            "sign with writing, right",
            "left fielder",
            "right near us",
            "L shaped couch",
            "toys r us bag",
        ),
        *("man on the rigth", "leftish cow", "guy onleft", "driver side of the car", "facing east"),
    ],
)
def test_what_may_be_no_side_is_not_flipped(expression):
    assert not is_flippable(expression, "horizontal")


def test_real_expressions(shared_dir):
    """Nearly all expressions of RefCOCO that name a side can be used, and all are restored."""
    path = shared_dir / "data" / "refer_sample_expressions" / "sample_expressions_testB.json"
    if not path.is_file():
        pytest.skip("no sample expressions")
    texts = [item["sent"] for item in json.loads(path.read_text())["predictions"]]
    sided = [text for text in texts if re.search("left|right", text)]
    usable = [text for text in sided if is_flippable(text, "horizontal")]
    assert len(sided) > 1000 and 0.9 < len(usable) / len(sided) <= 1.0
    for text in texts:
        assert swap_direction_words(swap_direction_words(text, "horizontal"), "horizontal") == text
    for text in usable:
        assert swap_direction_words(text, "horizontal") != text or re.search("bright|upright", text)


@pytest.mark.parametrize("function", [swap_direction_words, is_flippable])
def test_unknown_axis_is_refused(function):
    with pytest.raises(ValueError, match="axis: expected one of .* found 'diagonal'"):
        function("left", "diagonal")


def test_flips_move_image_box_mask_and_numbers_alike():
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    masks = np.zeros((4, 6, 1), np.uint8, order="F")
    masks[1:3, 0:2] = 1
    boxes = np.array([[0, 1, 2, 3]], np.float64)
    resize = AntialiasedResize(image_size=(4, 6))
    for flips, box, rows, columns in (
        ([], [0, 1, 2, 3], slice(None), slice(None)),
        (["horizontal"], [4, 1, 6, 3], slice(None), slice(None, None, -1)),
        (["vertical"], [0, 1, 2, 3], slice(None, None, -1), slice(None)),
        (["horizontal", "vertical"], [4, 1, 6, 3], slice(None, None, -1), slice(None, None, -1)),
    ):
        transform = GeometricTransform(resize, (4, 6), flips)
        assert (transform.apply_image(image) == image[rows, columns]).all()
        assert (transform.apply_segmentation(image[..., 0]) == image[rows, columns, 0]).all()
        found = transform.apply_masks(masks)
        assert found.dtype == bool and (found[0] == masks[rows, columns, 0]).all()
        assert transform.apply_box(boxes).tolist() == [box] and boxes.tolist() == [[0, 1, 2, 3]]
        assert transform.apply_masks(masks[..., :0]).shape == (0, 4, 6)
        assert transform.apply_box(boxes[:0]).shape == (0, 4)
    with pytest.raises(ValueError, match="axis: expected one of .* found 'diagonal'"):
        GeometricTransform(resize, (4, 6), ["diagonal"])


def test_jitter_color_by_hand():
    image = np.array([[[0] * 3, [200] * 3]], np.uint8)  # mean 100
    assert (jitter_color(image, 1.0, 1.0) == image).all()
    assert jitter_color(image, 1.0, 0.5)[0, :, 0].tolist() == [50, 150]
    assert jitter_color(image, 1.5, 1.0)[0, :, 0].tolist() == [0, 255]
    assert image[0, :, 0].tolist() == [0, 200]


@pytest.mark.parametrize("size", [(32, 48), (100, 20), (150, 200)])
def test_images_are_those_of_detectron2_and_of_opencv(size):
    image = np.random.RandomState(0).randint(0, 256, (90, 120, 3), np.uint8)
    ours = AntialiasedResize(image_size=size).resize_image(image)
    assert (ours == T.ResizeTransform(90, 120, *size).apply_image(image)).all()
    ours = ReleasedResize(image_size=size).resize_image(image)
    assert (ours == cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)).all()


def resize_mask(rule, mask, size):
    """One mask (height, width) through the batched interface, as pycocotools would give it."""
    masks = np.asfortranarray(np.asarray(mask, np.uint8)[:, :, None])
    return rule(image_size=size).resize_masks(masks)[0]


def test_area_masks_by_hand():
    # 2 x 2 blocks with 4, 2, 1 and 0 of 4 pixels set: at least half survives.
    mask = [[1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 1, 0, 0]]
    assert resize_mask(AntialiasedResize, mask, (1, 4)).tolist() == [[True, True, False, False]]
    # Enlarged: each pixel becomes a block, not shifted to one side.
    grown = resize_mask(AntialiasedResize, [[1, 0, 0, 1]], (2, 8))
    assert grown.tolist() == [[True, True, False, False, False, False, True, True]] * 2


def test_area_masks_never_vanish():
    mask = np.zeros((300, 400), np.uint8)
    mask[299, 399] = 1
    small = resize_mask(AntialiasedResize, mask, (20, 20))
    assert small.sum() == 1 and small[19, 19]
    assert not resize_mask(ReleasedResize, mask, (20, 20)).any()
    assert not resize_mask(AntialiasedResize, np.zeros((30, 40)), (20, 20)).any()


def test_released_masks_take_the_floor_index():
    mask = np.random.RandomState(0).rand(48, 64) > 0.5
    small = resize_mask(ReleasedResize, mask, (32, 20))
    rows, columns = np.arange(32) * 48 // 32, np.arange(20) * 64 // 20
    assert (small == mask[np.ix_(rows, columns)]).all()


def test_masks_of_a_sample_keep_their_order_and_orientation():
    masks = np.zeros((40, 60, 3), np.uint8, order="F")
    masks[:20, :, 0] = 1
    masks[:, :30, 1] = 1
    for rule in (AntialiasedResize, ReleasedResize):
        resized = rule(image_size=(16, 8)).resize_masks(masks)
        assert resized.shape == (3, 16, 8) and resized.dtype == bool
        assert resized[0, :8].all() and not resized[0, 8:].any()
        assert resized[1, :, :4].all() and not resized[1, :, 4:].any()
        assert not resized[2].any()


def test_boxes_scale_per_axis_and_are_clipped():
    resize = AntialiasedResize(image_size=(50, 40))
    boxes = resize.resize_boxes(np.array([[10.0, 10.0, 20.0, 101.0]]), (100, 20))
    assert boxes.dtype == np.float32 and boxes.tolist() == [[20.0, 5.0, 40.0, 50.0]]


def test_build_resize_selects_the_rule():
    cfg = CfgNode({"INPUT": {"IMAGE_SIZE": (8, 6), "RESIZE": "pil", "RESIZE_MODE": "squash"}})
    assert isinstance(build_resize(cfg), AntialiasedResize)
    cfg.INPUT.RESIZE = "cv2"
    assert isinstance(build_resize(cfg), ReleasedResize)
    cfg.INPUT.RESIZE = "nearest"
    with pytest.raises(ValueError, match="INPUT.RESIZE: expected one of .*'nearest'"):
        build_resize(cfg)
    with pytest.raises(ValueError, match="INPUT.IMAGE_SIZE"):
        AntialiasedResize(image_size=(0, 6))
