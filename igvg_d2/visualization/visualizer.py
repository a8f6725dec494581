"""Drawings of generalized grounding: one row of panels per expression, no target included.

Ground truth is an ``Instances`` with gt_boxes and gt_masks (BitMasks), empty for "no target", and
optionally gt_has_mask (bool), False where there is a box only. A
model's output is a dict with ``instances`` and ``candidates`` (``Instances`` with pred_boxes,
pred_masks, pred_points and scores), ``mask`` (bool, height and width of any frame of the image),
``no_target`` (bool), ``no_target_score`` and, optionally, ``attention_map`` (float, 2-d).
"""

from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import cv2
import numpy as np
import torch
from detectron2.data.detection_utils import annotations_to_instances
from detectron2.structures import BitMasks, Instances

from igvg_d2.evaluation.metrics import count_pixels, gres_counts
from igvg_d2.io.image import read_image, size_mismatch
from igvg_d2.io.rle import empty_rle

from . import drawing
from .drawing import BAD, GOOD, INK, MUTED, NEUTRAL, WHITE, Color, instance_color, load_font

# Least IoU of the merged mask that is shown as correct.
_CORRECT_IOU = 0.5
_MARGIN = 14
_TITLE_HEIGHT = 34
_LINE_HEIGHT = 38
_MIN_CELL_WIDTH = 230


class Verdict(NamedTuple):
    """Judgement of one answer: whether it is correct, its IoU, and a short text."""

    correct: bool
    iou: float
    text: str


def judge_prediction(output: Dict[str, Any], truth: Instances) -> Verdict:
    """Compare a model's output with the ground truth of its sample by the rules of GRES.

    Where a target has no mask, correct is an answer of as many instances.
    """
    mask = drawing.resize_masks(to_array(output["mask"])[None], truth.image_size)[0]
    intersection, union, _, _ = count_pixels(mask, to_array(truth.gt_masks.tensor).any(axis=0))
    no_target = bool(output["no_target"])
    _, _, ious = gres_counts([intersection], [union], [len(truth) == 0], [no_target])
    iou = float(ious[0])
    if len(truth) == 0:
        text = "no target" if no_target else "target invented"
    elif no_target:
        text = "target missed"
    else:
        text = f"IoU {iou:.2f}"
        # A model without queries has a mask only, so there is no count to judge.
        kept = len(output["instances"]) if len(output["candidates"]) else len(truth)
        if kept != len(truth):
            text += f", {kept} {'of' if kept < len(truth) else 'for'} {len(truth)}"
    correct = iou >= _CORRECT_IOU
    if truth.has("gt_has_mask") and not truth.gt_has_mask.all() and not no_target:
        correct, text = kept == len(truth), f"{kept} for {len(truth)}, no mask annotated"
    return Verdict(correct, iou, f"{'✓' if correct else '✗'} {text}")


def ground_truth(annotations: Sequence[Dict[str, Any]], image_size: Tuple[int, int]) -> Instances:
    """Ground truth of a dataset dict's annotations; segmentation may be RLE or COCO polygons."""
    whole = [{"segmentation": empty_rle(image_size), **item} for item in annotations]
    truth = annotations_to_instances(whole, image_size, "bitmask")
    if not annotations:
        truth.gt_masks = BitMasks(torch.zeros(0, *image_size, dtype=torch.bool))
    truth.gt_has_mask = torch.tensor(["segmentation" in a for a in annotations], dtype=torch.bool)
    return truth


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor on any device as an array; bfloat16, which numpy lacks, becomes float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


class Panel(NamedTuple):
    """One image of the row (RGB uint8) with its title (left) and a remark (right)."""

    title: str
    image: np.ndarray
    note: str = ""


class GroundingVisualizer:
    """Draw what a grounding model was asked, looked at, answered and should have answered.

    A drawing is a header (the expression, a remark line and the verdict) above a row of panels.
    Panels of small images are enlarged, those of large ones reduced, to a common long side; masks
    and boxes may live in any frame of the same image, because each carries its own image size.
    All drawings are RGB uint8 (rows, columns, 3).

    Args:
        panel_size: long side of a panel in pixels.
    """

    def __init__(self, *, panel_size: int = 384):
        if panel_size < 64:
            raise ValueError(f"panel_size must be at least 64 pixels, got {panel_size}.")
        self.panel_size = panel_size

    def draw_annotation(self, dataset_dict: Dict[str, Any]) -> np.ndarray:
        """Draw a sample of a data set as annotated: the image, and its ground truth beside it.

        Raises:
            ValueError: the image has another size than the annotations.
        """
        path = dataset_dict["file_name"]
        image = read_image(path, "RGB")
        size = image.shape[:2]
        stated = dataset_dict.get("height", size[0]), dataset_dict.get("width", size[1])
        if size != stated:
            raise ValueError(f"image '{path}': {size_mismatch(path, size, stated)}")
        truth = ground_truth(dataset_dict["annotations"], size)
        sample_id = str(dataset_dict.get("sample_id", ""))
        return self._draw_row(image, dataset_dict["expression"], sample_id, truth)

    def draw_model_input(
        self,
        inputs: Dict[str, Any],
        input_format: str = "RGB",
        output: Optional[Dict[str, Any]] = None,
    ) -> np.ndarray:
        """Draw a training sample as the mapper hands it to the model (network frame).

        Args:
            inputs: mapper output with ``image`` uint8 (3, H, W), ``instances``, ``expression``.
            input_format: channel order of the image, "RGB" or "BGR".
            output: the model's output dict of this sample, drawn if given.
        """
        image = to_array(inputs["image"]).transpose(1, 2, 0)
        image = image[..., ::-1] if input_format == "BGR" else image
        sample_id = str(inputs.get("sample_id", ""))
        return self._draw_row(image, inputs["expression"], sample_id, inputs["instances"], output)

    def draw_prediction(
        self,
        image: np.ndarray,
        expression: str,
        output: Dict[str, Any],
        annotations: Optional[Sequence[Dict[str, Any]]] = None,
        *,
        sample_id: str = "",
    ) -> np.ndarray:
        """Draw a model's answer, with the ground truth and the verdict when it is known.

        Args:
            image: RGB uint8 (height, width, 3), original frame.
            expression: the question.
            output: the model's output dict of this sample.
            annotations: of the dataset dict; [] is ground truth "no target", None is unknown.
            sample_id: written small below the expression.
        """
        truth = None if annotations is None else ground_truth(annotations, image.shape[:2])
        return self._draw_row(image, expression, sample_id, truth, output)

    def _draw_row(
        self,
        image: np.ndarray,
        expression: str,
        sample_id: str,
        truth: Optional[Instances],
        output: Optional[Dict[str, Any]] = None,
    ) -> np.ndarray:
        """The image, three panels of the answer and one of the ground truth, if they are given."""
        scale = self.panel_size / max(image.shape[:2])
        size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        image = cv2.resize(np.ascontiguousarray(image), size, interpolation=method)
        panels, remark, chip_color = [Panel("image", image)], sample_id, NEUTRAL
        if output is not None:
            panels += [
                _attention_panel(image, output),
                _instances_panel(image, output),
                _mask_panel(image, output, truth),
            ]
            chip = _count(len(output["instances"]), "instance")
            chip = "no target" if bool(output["no_target"]) else chip
            score = float(output["no_target_score"])
            remark = f"answer: {chip}   ·   no-target score {score:.2f}"
            remark += f"   ·   sample {sample_id}" if sample_id else ""
        if truth is not None:
            panels.append(_truth_panel(image, truth))
            chip = _count(len(truth), "target") if len(truth) else "no target"
        if truth is not None and output is not None:
            correct, _, chip = judge_prediction(output, truth)
            chip_color = GOOD if correct else BAD
        return _compose_row(panels, expression, remark, chip, chip_color)


def _compose_row(
    panels: List[Panel], expression: str, remark: str, chip: str, chip_color: Color
) -> np.ndarray:
    """Row of panels on white below a header: expression, grey remark and a chip at the right."""
    cells = [max(_MIN_CELL_WIDTH, panel.image.shape[1]) for panel in panels]
    width = sum(cells) + _MARGIN * (len(panels) + 1)
    chip_width = drawing.text_width(chip, load_font(22, bold=True)) + 24
    font, title_font, note_font = load_font(30, bold=True), load_font(20, bold=True), load_font(18)
    lines = drawing.wrap_text(f"“{expression}”", font, width - 3 * _MARGIN - chip_width, 4)
    header = _MARGIN + _LINE_HEIGHT * len(lines) + 30
    top, middle = header + _TITLE_HEIGHT, header + _TITLE_HEIGHT // 2
    height = top + max(panel.image.shape[0] for panel in panels) + _MARGIN
    canvas = np.full((height, width, 3), 255, dtype=np.uint8)
    texts: list = [((_MARGIN, header - 16), remark, load_font(19), MUTED, "lm")]
    for i, line in enumerate(lines):
        texts.append(((_MARGIN, _MARGIN + _LINE_HEIGHT * i + 15), line, font, INK, "lm"))
    left = _MARGIN
    for (title, image, note), cell in zip(panels, cells):
        rows, columns = image.shape[:2]
        start = left + (cell - columns) // 2
        canvas[top : top + rows, start : start + columns] = image
        cv2.rectangle(canvas, (start, top), (start + columns - 1, top + rows - 1), (203, 213, 225))
        texts.append(((left, middle), title, title_font, INK, "lm"))
        used = drawing.text_width(title, title_font) + 10
        if used + drawing.text_width(note, note_font) <= cell:
            texts.append(((left + cell, middle), note, note_font, MUTED, "rm"))
        left += cell + _MARGIN
    drawing.draw_texts(canvas, texts)
    drawing.draw_chip(canvas, chip, chip_color, width - _MARGIN, _MARGIN - 2)
    return canvas


def _attention_panel(image: np.ndarray, output: Dict[str, Any]) -> Panel:
    """Pooled attention as heat, and the query points numbered by score; kept ones coloured."""
    canvas, title = drawing.fade(image), "query points"
    if output.get("attention_map") is not None:
        canvas = drawing.draw_heat(image, to_array(output["attention_map"]))
        title = "attention, points"
    count = len(output["candidates"])
    if count == 0 and "attention_map" not in output:
        # A model with the global branch only has neither.
        return Panel(title, canvas, "no queries")
    points = to_array(output["candidates"].pred_points) * _scale(output["candidates"], image)
    drawing.draw_points(canvas, points, len(output["instances"]))
    return Panel(title, canvas, f"{count} queries")


def _instances_panel(image: np.ndarray, output: Dict[str, Any]) -> Panel:
    """Boxes with number and score, instance masks in distinct colours."""
    canvas, kept = drawing.fade(image), output["instances"]
    if len(output["candidates"]) == 0:
        return Panel("instances", canvas, "no queries")
    if bool(output["no_target"]):
        score = f"score {float(output['no_target_score']):.2f}"
        drawing.draw_banner(canvas, score)
        return Panel("instances", canvas, "none kept")
    tags = [f"{i}  {score:.2f}" for i, score in enumerate(kept.scores.tolist(), start=1)]
    boxes = to_array(kept.pred_boxes.tensor) * np.tile(_scale(kept, image), 2)
    _draw_items(canvas, image, boxes, to_array(kept.pred_masks), tags)
    return Panel("instances", canvas, f"{len(kept)} kept")


def _mask_panel(image: np.ndarray, output: Dict[str, Any], truth: Optional[Instances]) -> Panel:
    """The merged mask, with the outline of the true one over it."""
    canvas, size, note = drawing.fade(image), image.shape[:2], ""
    if not bool(output["no_target"]):
        mask = drawing.resize_masks(to_array(output["mask"])[None], size)[0]
        drawing.draw_mask(canvas, mask, instance_color(1), image)
    if truth is not None and len(truth):
        union = to_array(truth.gt_masks.tensor).any(axis=0)
        drawing.draw_outline(canvas, drawing.resize_masks(union[None], size)[0], WHITE)
        note = "white line: truth"
    if bool(output["no_target"]):
        drawing.draw_banner(canvas)
    return Panel("merged mask", canvas, note)


def _truth_panel(image: np.ndarray, truth: Instances) -> Panel:
    """Annotated boxes and masks, or the banner."""
    canvas = drawing.fade(image)
    if len(truth) == 0:
        drawing.draw_banner(canvas, "ground truth")
        return Panel("ground truth", canvas, "none")
    tags = [str(i + 1) for i in range(len(truth))]
    boxes = to_array(truth.gt_boxes.tensor) * np.tile(_scale(truth, image), 2)
    _draw_items(canvas, image, boxes, to_array(truth.gt_masks.tensor), tags)
    return Panel("ground truth", canvas, _count(len(truth), "target"))


def _scale(instances: Instances, image: np.ndarray) -> np.ndarray:
    """Factors (x, y) from the frame of the instances to that of a panel."""
    return np.divide(image.shape[1::-1], instances.image_size[::-1])


def _draw_items(
    canvas: np.ndarray, image: np.ndarray, boxes: np.ndarray, masks: np.ndarray, tags: List[str]
) -> None:
    """Masks, then boxes, then tags, so that no tag is hidden; best score drawn last."""
    masks = drawing.resize_masks(masks, image.shape[:2])
    for i in reversed(range(len(masks))):
        drawing.draw_mask(canvas, masks[i], instance_color(i), image)
    for i in reversed(range(len(boxes))):
        drawing.draw_box(canvas, boxes[i], instance_color(i))
    drawing.draw_tags(canvas, boxes, tags)


def _count(number: int, noun: str) -> str:
    """'1 target', '2 targets'."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
