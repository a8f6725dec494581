"""Drawings: shapes, what is visible in them, and the verdict."""

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances
from PIL import Image

from igvg_d2.visualization import GroundingVisualizer, judge_prediction
from igvg_d2.visualization.drawing import (
    BAD,
    GOOD,
    NEUTRAL,
    draw_heat,
    instance_color,
    load_font,
    resize_masks,
    text_width,
    wrap_text,
)
from igvg_d2.visualization.visualizer import ground_truth

SIZE = (48, 96)
BOXES = [(8, 8, 24, 24), (60, 20, 84, 40), (30, 2, 40, 12)]


@pytest.fixture
def image():
    return np.full((*SIZE, 3), 128, dtype=np.uint8)


def has_color(drawn, color, minimum=20):
    """Whether at least ``minimum`` pixels have exactly this colour."""
    return (drawn == np.array(color, np.uint8)).all(axis=-1).sum() >= minimum


@pytest.mark.parametrize("num_kept", [0, 1, 3])
@pytest.mark.parametrize("num_targets", [0, 1, 3])
def test_prediction_image(image, make_output, make_annotations, num_kept, num_targets):
    output = make_output(BOXES, num_kept, SIZE)
    truth = make_annotations(BOXES[:num_targets], SIZE)
    drawn = GroundingVisualizer().draw_prediction(image, "the <b> & co", output, truth)
    assert drawn.dtype == np.uint8 and drawn.ndim == 3 and drawn.shape[2] == 3
    assert drawn.shape[1] == 5 * 384 + 6 * 14
    correct = (num_kept == 0) == (num_targets == 0) and num_kept >= num_targets - 1
    expected = num_kept == num_targets == 0 or (correct and num_kept == num_targets)
    if expected:
        assert has_color(drawn, GOOD) and not has_color(drawn, BAD)
    if (num_kept == 0) != (num_targets == 0):
        assert has_color(drawn, BAD) and not has_color(drawn, GOOD)


def test_banner_shows_for_prediction_and_truth_separately(image, make_output, make_annotations):
    def banner_pixels(num_kept, num_targets):
        output = make_output(BOXES, num_kept, SIZE, attention=False)
        truth = make_annotations(BOXES[:num_targets], SIZE)
        drawn = GroundingVisualizer().draw_prediction(image, "a", output, truth).astype(int)
        # The band is the banner colour with a tenth of the faded background below it.
        return (np.abs(drawn - NEUTRAL).max(axis=-1) <= 18).sum()

    both, prediction, truth, none = (banner_pixels(*n) for n in [(0, 0), (0, 1), (1, 0), (1, 1)])
    assert none < truth < both and none < prediction < both


def test_without_ground_truth_there_is_no_verdict(image, make_output):
    drawn = GroundingVisualizer().draw_prediction(image, "a", make_output(BOXES, 2, SIZE))
    assert drawn.shape[1] == 4 * 384 + 5 * 14
    assert not has_color(drawn, GOOD) and not has_color(drawn, BAD)


def test_model_with_global_branch_only(image, make_output, make_annotations):
    output = make_output([], 0, SIZE, attention=False)
    output["mask"] = torch.ones(SIZE, dtype=torch.bool)
    output["no_target"] = False
    truth = make_annotations([(0, 0, 96, 48)], SIZE)
    drawn = GroundingVisualizer().draw_prediction(image, "a", output, truth)
    assert has_color(drawn, GOOD)


def test_every_kept_instance_has_its_colour(image, make_output):
    drawn = GroundingVisualizer().draw_prediction(image, "a", make_output(BOXES, 3, SIZE))
    assert all(has_color(drawn, instance_color(i), 100) for i in range(3))
    drawn = GroundingVisualizer().draw_prediction(image, "a", make_output(BOXES, 1, SIZE))
    assert not has_color(drawn, instance_color(2), 100)


def test_image_is_not_changed_and_extreme_shapes_work(make_output):
    for size in [(8, 200), (200, 8), (1, 1)]:
        image = np.full((*size, 3), 60, dtype=np.uint8)
        boxes = [(0, 0, size[1], size[0])]
        drawn = GroundingVisualizer(panel_size=128).draw_prediction(
            image, "word " * 80, make_output(boxes, 1, size)
        )
        assert drawn.shape[2] == 3 and (image == 60).all()


def test_annotation_image(image, make_annotations, tmp_path):
    path = str(tmp_path / "image.png")
    Image.fromarray(image).save(path)
    visualizer = GroundingVisualizer()
    sample = {"expression": "two", "sample_id": "1_0", "file_name": path}
    annotations = make_annotations(BOXES[:2], SIZE)
    two = visualizer.draw_annotation({**sample, "annotations": annotations})
    none = visualizer.draw_annotation({**sample, "annotations": []})
    assert two.shape == none.shape
    assert has_color(two, instance_color(1)) and not has_color(none, instance_color(1))


def test_training_images_accept_outputs_in_another_frame(make_output):
    samples = []
    for num in (0, 2):
        instances = Instances((24, 24))
        instances.gt_boxes = Boxes(torch.tensor([[2.0, 4, 6, 12], [15, 10, 21, 20]])[:num])
        instances.gt_classes = torch.zeros(num, dtype=torch.int64)
        instances.gt_masks = BitMasks(torch.ones(num, 24, 24, dtype=torch.bool))
        image = torch.zeros(3, 24, 24, dtype=torch.uint8)
        samples.append({"image": image, "instances": instances, "expression": "a"})
    for sample, kept in zip(samples, (0, 2)):
        output = make_output(BOXES, kept, SIZE)
        drawn = GroundingVisualizer().draw_model_input(sample, output=output)
        assert drawn.dtype == np.uint8 and drawn.shape[1:] == (5 * 384 + 6 * 14, 3)
        assert GroundingVisualizer().draw_model_input(sample).shape[1:] == (2 * 384 + 3 * 14, 3)


def test_bgr_inputs_are_drawn_in_rgb():
    instances = Instances((8, 8))
    instances.gt_boxes = Boxes(torch.zeros(0, 4))
    instances.gt_masks = BitMasks(torch.zeros(0, 8, 8, dtype=torch.bool))
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image[0] = 200  # blue in BGR
    sample = {"image": image, "instances": instances, "expression": "a"}
    assert has_color(GroundingVisualizer().draw_model_input(sample, "BGR"), (0, 0, 200))
    assert has_color(GroundingVisualizer().draw_model_input(sample, "RGB"), (200, 0, 0))


def test_verdict_follows_the_rules_of_gres(make_annotations):
    truth = ground_truth(make_annotations([(0, 0, 10, 10)], SIZE), SIZE)
    nothing = ground_truth([], SIZE)
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[0:10, 0:5] = True  # half of the target: IoU 0.5

    def judge(mask, no_target, kept, truth):
        output = {"instances": [0] * kept, "candidates": [0] * 10}
        return judge_prediction({"mask": mask, "no_target": no_target, **output}, truth)

    assert judge(mask, False, 1, truth) == (True, 0.5, "✓ IoU 0.50")
    assert not judge(mask & (torch.arange(96) > 0), False, 1, truth).correct
    # The flag decides, whatever the mask says.
    assert judge(mask, True, 0, truth) == (False, 0.0, "✗ target missed")
    assert judge(torch.zeros_like(mask), False, 1, nothing) == (False, 0.0, "✗ target invented")
    assert judge(mask, True, 0, nothing) == (True, 1.0, "✓ no target")
    assert "2 for 1" in judge(mask, False, 2, truth).text


def test_polygons_equal_rle(make_annotations):
    rle = ground_truth(make_annotations([(8, 8, 24, 24)], SIZE), SIZE)
    polygon = {
        "bbox": [8.0, 8.0, 24.0, 24.0],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": 0,
        "segmentation": [[8, 8, 24, 8, 24, 24, 8, 24]],
    }
    other = ground_truth([polygon], SIZE)
    assert torch.equal(rle.gt_boxes.tensor, other.gt_boxes.tensor)
    assert torch.equal(rle.gt_masks.tensor, other.gt_masks.tensor)


def test_resized_masks():
    assert resize_masks(np.zeros((0, 10, 20), bool), (5, 5)).shape == (0, 5, 5)
    masks = np.zeros((1, 10, 10), dtype=bool)
    masks[0, :5] = True
    assert abs(resize_masks(masks, (100, 100)).mean() - 0.5) < 0.02


def test_even_attention_stays_dim():
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    even = np.ones((8, 8)) + 0.01 * np.random.default_rng(0).random((8, 8))
    peaked = np.zeros((8, 8))
    peaked[3, 3] = 1
    assert draw_heat(image, np.ones((8, 8))).max() < 10
    assert draw_heat(image, peaked).max() > 150
    assert draw_heat(image, even).mean() < 120


def test_wrap_text():
    font = load_font(20)
    lines = wrap_text("the small red star left of the ring", font, 120, max_lines=9)
    assert " ".join(lines) == "the small red star left of the ring"
    assert all(text_width(line, font) <= 120 for line in lines)
    short = wrap_text("the small red star left of the ring", font, 120, max_lines=2)
    assert len(short) == 2 and short[-1].endswith("…")
    assert "".join(wrap_text("x" * 60, font, 100, max_lines=60)) == "x" * 60


def test_small_panels_are_refused():
    with pytest.raises(ValueError, match="panel_size"):
        GroundingVisualizer(panel_size=10)
