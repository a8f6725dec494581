"""One image and one expression in, one answer out."""

import logging
import os
from typing import Any, Dict, Union

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from igvg_d2.checkpoint import GroundingCheckpointer
from igvg_d2.data import GroundingDatasetMapper
from igvg_d2.data.tokenizer import UNK_ID
from igvg_d2.engine.devices import with_usable_device
from igvg_d2.io.image import read_image

logger = logging.getLogger(__name__)


class GroundingPredictor:
    """End-to-end predictor for single images, like Detectron2's ``DefaultPredictor``.

    It builds the model of a config, loads ``MODEL.WEIGHTS``, and applies the same resize and
    tokenizer as the evaluation. For benchmarks use a data loader and an evaluator instead: this
    class neither batches nor prefetches.

    Attributes:
        model: the model in evaluation mode.
        image_format: channel order of arrays passed in, ``cfg.INPUT.FORMAT``.

    Example:
        predictor = GroundingPredictor(cfg)
        output = predictor("street.jpg", "the two men on the left")
    """

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: complete config; it is cloned, and a machine without a GPU takes its CPU. Without
                ``MODEL.WEIGHTS`` the model answers at random, which is logged as a warning.
        """
        cfg = with_usable_device(cfg)
        self._mapper = GroundingDatasetMapper(cfg, is_train=False)
        self.image_format = self._mapper.image_format
        self.model = build_model(cfg)
        self.model.eval()
        if cfg.MODEL.WEIGHTS:
            GroundingCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)
        else:
            logger.warning("MODEL.WEIGHTS is empty: the model is untrained and answers at random")

    def __call__(
        self, image: Union[str, os.PathLike, np.ndarray], expression: str
    ) -> Dict[str, Any]:
        """Ground one expression in one image.

        Args:
            image: path of an image file, or uint8 (height, width, 3) in ``image_format``.
            expression: what to look for, in words.

        Returns:
            the model's output dict in the original frame: "instances" (kept, may be empty),
            "candidates" (all queries), "mask" bool (height, width), "no_target" bool,
            "no_target_score" in [0, 1], and "sem_seg" and "attention_map" if the model has them.

        Raises:
            FileNotFoundError: the path does not exist.
            ValueError: the file is not an image, the array has another shape or type, or the
                expression is empty.
        """
        array = self.read_image(image)
        inputs = self._prepare(array, expression)
        with torch.no_grad():
            return self.model([inputs])[0]

    def read_image(self, image: Union[str, os.PathLike, np.ndarray]) -> np.ndarray:
        """A path or array as a checked uint8 (height, width, 3) array in ``image_format``."""
        if isinstance(image, np.ndarray):
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
                raise ValueError(
                    f"image must be uint8 of shape (height, width, 3), got {image.dtype} of shape "
                    f"{image.shape}."
                )
            return image
        return read_image(os.fspath(image), self.image_format)

    def _prepare(self, image: np.ndarray, expression: str) -> Dict[str, Any]:
        """Model input dict of one sample."""
        if not isinstance(expression, str) or not expression.strip():
            raise ValueError(
                f"expression must be a text with at least one word, got {expression!r}."
            )
        inputs = self._mapper.prepare(image, expression)
        unknown = int((inputs["text_ids"] == UNK_ID).sum())
        if unknown:
            logger.warning(
                "%d of the %d words of %r are unknown to the tokenizer",
                unknown,
                len(inputs["text_ids"]) - 2,
                expression,
            )
        return {**inputs, "sample_id": "", "file_name": "", "image_id": 0}
