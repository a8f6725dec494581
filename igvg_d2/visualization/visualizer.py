"""Pictures of generalized grounding: one row of panels per expression, no target included."""

from typing import Any, Dict, Optional, Sequence

import numpy as np
import torch

from igvg_d2.io.image import read_image

from . import drawing
from .drawing import BAD, GOOD, INK, NEUTRAL, WHITE, instance_color
from .grounding_items import (
    GroundingItems,
    Verdict,
    items_from_annotations,
    items_from_predictions,
    items_from_targets,
    judge_prediction,
    to_array,
)
from .layout import Panel, compose_row, render_grid


class GroundingVisualizer:
    """Draw what a grounding model was asked, looked at, answered and should have answered.

    A picture is a header (the expression, a remark line and the verdict) above a row of panels.
    Panels of small images are enlarged, those of large ones reduced, to a common long side; masks
    and boxes may live in any frame of the same image, because each carries its own image size.
    """

    def __init__(self, *, panel_size: int = 384, iou_threshold: float = 0.5):
        """
        Args:
            panel_size: long side of a panel in pixels.
            iou_threshold: least IoU of the merged mask that is shown as correct.
        """
        if panel_size < 64:
            raise ValueError(f"panel_size must be at least 64 pixels, got {panel_size}.")
        self.panel_size = panel_size
        self.iou_threshold = iou_threshold

    def draw_annotation(
        self, dataset_dict: Dict[str, Any], image: Optional[np.ndarray] = None
    ) -> np.ndarray:
        """Picture of a sample as annotated: the image, and its ground truth beside it.

        Args:
            dataset_dict: a dataset dict (``expression``, ``annotations``, ``height``, ``width``,
                ``file_name``, ``sample_id``).
            image: RGB uint8 (height, width, 3); read from ``file_name`` when None.

        Returns:
            RGB uint8 (rows, columns, 3).
        """
        if image is None:
            image = read_image(dataset_dict["file_name"], "RGB")
        height, width = image.shape[:2]
        truth = items_from_annotations(dataset_dict["annotations"], height, width)
        return self._draw_truth_row(image, truth, dataset_dict)

    def draw_model_input(self, inputs: Dict[str, Any], input_format: str = "RGB") -> np.ndarray:
        """Picture of a training sample as the mapper hands it to the model (network frame).

        Args:
            inputs: mapper output with ``image`` uint8 (3, H, W), ``instances``, ``expression``.
            input_format: channel order of the image, "RGB" or "BGR".

        Returns:
            RGB uint8 (rows, columns, 3).
        """
        truth = items_from_targets(inputs["instances"])
        return self._draw_truth_row(_image_array(inputs["image"], input_format), truth, inputs)

    def draw_prediction(
        self,
        image: np.ndarray,
        expression: str,
        output: Dict[str, Any],
        annotations: Optional[Sequence[Dict[str, Any]]] = None,
        *,
        sample_id: str = "",
    ) -> np.ndarray:
        """Picture of a model's answer, with the ground truth and the verdict when it is known.

        Args:
            image: RGB uint8 (height, width, 3), original frame.
            expression: the question.
            output: the model's output dict of this sample (``instances``, ``candidates``,
                ``mask``, ``no_target``, ``no_target_score``; ``attention_map`` is optional).
            annotations: of the dataset dict; [] is ground truth "no target", None is unknown.
            sample_id: written small below the expression.

        Returns:
            RGB uint8 (rows, columns, 3).
        """
        height, width = image.shape[:2]
        truth = None
        if annotations is not None:
            truth = items_from_annotations(annotations, height, width)
        return self._draw_prediction_row(image, expression, output, truth, sample_id)

    def draw_training_batch(
        self,
        inputs: Sequence[Dict[str, Any]],
        outputs: Sequence[Dict[str, Any]],
        input_format: str = "RGB",
        max_samples: int = 4,
    ) -> np.ndarray:
        """Predictions on a training batch, as ``EventStorage.put_image`` wants them.

        Args:
            inputs: mapper outputs with ``instances`` (network frame).
            outputs: one output dict per input, as at inference; any frame of the same image.
            input_format: channel order of the images, "RGB" or "BGR".
            max_samples: number of samples shown, one per row.

        Returns:
            uint8 (3, rows, columns), RGB.
        """
        rows = []
        for sample, output in list(zip(inputs, outputs))[:max_samples]:
            truth = items_from_targets(sample["instances"])
            image = _image_array(sample["image"], input_format)
            sample_id = str(sample.get("sample_id", ""))
            rows.append(
                self._draw_prediction_row(image, sample["expression"], output, truth, sample_id)
            )
        return np.ascontiguousarray(render_grid(rows, columns=1).transpose(2, 0, 1))

    def _draw_truth_row(
        self, image: np.ndarray, truth: GroundingItems, sample: Dict[str, Any]
    ) -> np.ndarray:
        """Row of two panels: the image and its ground truth."""
        image = self._panel_image(image)
        panels = [Panel("image", image), self._truth_panel(image, truth)]
        count = "no target" if len(truth) == 0 else _count(len(truth), "target")
        return compose_row(panels, sample["expression"], str(sample.get("sample_id", "")), count)

    def _draw_prediction_row(
        self,
        image: np.ndarray,
        expression: str,
        output: Dict[str, Any],
        truth: Optional[GroundingItems],
        sample_id: str,
    ) -> np.ndarray:
        """Row of four panels, or five with the ground truth."""
        panel_image = self._panel_image(image)
        kept = items_from_predictions(output["instances"])
        verdict = self.judge(output, truth) if truth is not None else None
        panels = [
            Panel("image", panel_image),
            self._attention_panel(panel_image, output, len(kept)),
            self._instances_panel(panel_image, kept, output),
            self._mask_panel(panel_image, output, truth),
        ]
        if truth is not None:
            panels.append(self._truth_panel(panel_image, truth))
        score = float(output["no_target_score"])
        answer = "no target" if bool(output["no_target"]) else _count(len(kept), "instance")
        remark = f"answer: {answer}   ·   no-target score {score:.2f}"
        if sample_id:
            remark += f"   ·   sample {sample_id}"
        text = verdict.text if verdict is not None else answer
        color = NEUTRAL if verdict is None else GOOD if verdict.correct else BAD
        return compose_row(panels, expression, remark, text, color)

    def judge(self, output: Dict[str, Any], truth: GroundingItems) -> Verdict:
        """Verdict on an output dict; the merged mask is brought to the frame of ``truth``."""
        mask = to_array(output["mask"]).astype(bool)
        if mask.shape != tuple(truth.image_size):
            mask = drawing.resize_masks(mask[None], truth.image_size)[0]
        # A model without queries has a mask only, so there is no count to judge.
        num_kept = len(output["instances"]) if len(output["candidates"]) else len(truth)
        return judge_prediction(
            mask, bool(output["no_target"]), num_kept, truth, self.iou_threshold
        )

    def _panel_image(self, image: np.ndarray) -> np.ndarray:
        """The image at panel size."""
        height, width = image.shape[:2]
        scale = self.panel_size / max(height, width)
        size = max(1, round(height * scale)), max(1, round(width * scale))
        return drawing.resize_image(np.ascontiguousarray(image), size)

    def _attention_panel(self, image: np.ndarray, output: Dict[str, Any], kept: int) -> Panel:
        """Pooled attention as heat, and the query points numbered by score; kept ones coloured."""
        picture, title = drawing.fade(image), "query points"
        if output.get("attention_map") is not None:
            picture = drawing.draw_heat(image, to_array(output["attention_map"]))
            title = "attention, points"
        candidates = items_from_predictions(output["candidates"]).scaled(image.shape[:2])
        count = len(candidates)
        if count == 0 and "attention_map" not in output:
            # A model with the global branch only has neither.
            return Panel("query points", picture, "no queries")
        colors = [instance_color(i) if i < kept else INK for i in range(count)]
        labels = [str(i + 1) for i in range(count)]
        drawing.draw_points(picture, candidates.points, labels, colors)
        return Panel(title, picture, f"{count} queries")

    def _instances_panel(
        self, image: np.ndarray, kept: GroundingItems, output: Dict[str, Any]
    ) -> Panel:
        """Boxes with number and score, instance masks in distinct colours."""
        picture = drawing.fade(image)
        if len(output["candidates"]) == 0:
            return Panel("instances", picture, "no queries")
        if bool(output["no_target"]):
            note = f"score {float(output['no_target_score']):.2f}"
            drawing.draw_banner(picture, "NO TARGET", NEUTRAL, note)
            return Panel("instances", picture, "none kept")
        _draw_items(picture, image, kept.scaled(image.shape[:2]))
        return Panel("instances", picture, f"{len(kept)} kept")

    def _mask_panel(
        self,
        image: np.ndarray,
        output: Dict[str, Any],
        truth: Optional[GroundingItems],
    ) -> Panel:
        """The merged mask, with the outline of the true one over it."""
        picture = drawing.fade(image)
        size = image.shape[:2]
        note = ""
        mask = drawing.resize_masks(to_array(output["mask"]).astype(bool)[None], size)[0]
        if not bool(output["no_target"]):
            drawing.draw_mask(picture, mask, instance_color(1), source=image)
        if truth is not None and len(truth):
            true_mask = drawing.resize_masks(truth.union[None], size)[0]
            drawing.draw_outline(picture, true_mask, WHITE)
            note = "white line: truth"
        if bool(output["no_target"]):
            drawing.draw_banner(picture, "NO TARGET", NEUTRAL)
        return Panel("merged mask", picture, note)

    def _truth_panel(self, image: np.ndarray, truth: GroundingItems) -> Panel:
        """Annotated boxes and masks, or the banner."""
        picture = drawing.fade(image)
        if len(truth) == 0:
            drawing.draw_banner(picture, "NO TARGET", NEUTRAL, "ground truth")
            return Panel("ground truth", picture, "none")
        _draw_items(picture, image, truth.scaled(image.shape[:2]))
        return Panel("ground truth", picture, _count(len(truth), "target"))


def draw_training_batch(
    inputs: Sequence[Dict[str, Any]],
    outputs: Sequence[Dict[str, Any]],
    input_format: str = "RGB",
) -> np.ndarray:
    """:meth:`GroundingVisualizer.draw_training_batch` with default options."""
    return GroundingVisualizer().draw_training_batch(inputs, outputs, input_format)


def _image_array(image: torch.Tensor, input_format: str) -> np.ndarray:
    """uint8 (3, H, W) tensor in RGB or BGR as an RGB (H, W, 3) array."""
    array = to_array(image).transpose(1, 2, 0)
    return np.ascontiguousarray(array[..., ::-1] if input_format == "BGR" else array, np.uint8)


def _count(number: int, noun: str) -> str:
    """'1 target', '2 targets'."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _draw_items(picture: np.ndarray, image: np.ndarray, items: GroundingItems) -> None:
    """Masks, then boxes, then tags, so that no tag is hidden; best score drawn last."""
    colors = [instance_color(i) for i in range(len(items))]
    order = range(len(items) - 1, -1, -1)
    for i in order:
        drawing.draw_mask(picture, items.masks[i], colors[i], source=image)
    for i in order:
        drawing.draw_box(picture, items.boxes[i], colors[i])
    texts = [str(i + 1) for i in range(len(items))]
    if items.scores is not None:
        texts = [f"{text}  {score:.2f}" for text, score in zip(texts, items.scores)]
    drawing.draw_tags(picture, items.boxes, texts, colors)
