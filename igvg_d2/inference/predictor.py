"""Images and expressions in, answers out."""

import logging
import os
import threading
from itertools import islice
from numbers import Integral
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.logger import log_first_n
from PIL import Image

import igvg_d2.modeling  # noqa: F401  registers the models
from igvg_d2 import model_zoo
from igvg_d2.checkpoint import ENCODER_ONLY, GroundingCheckpointer
from igvg_d2.data import GroundingDatasetMapper
from igvg_d2.data.mapper import model_input
from igvg_d2.data.tokenizer import tokenize, warn_of_unknown_words_in
from igvg_d2.data.transforms import GeometricTransform
from igvg_d2.engine.devices import with_usable_device
from igvg_d2.evaluation import read_calibration
from igvg_d2.modeling.meta_arch import optimize_for_inference

from .images import ImageLike, check_channel_order, local_path, to_rgb
from .onnx_model import OnnxModel
from .result import GroundingResult, check_thresholds

logger = logging.getLogger(__name__)

Expressions = Union[str, Sequence[str]]
Images = Union[ImageLike, Sequence[ImageLike]]
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class _Loaded(NamedTuple):
    """An image of a batch: network input uint8 (3, H, W), sizes, and where a drawing finds it."""

    pixels: torch.Tensor
    size: Tuple[int, int]
    content_size: Tuple[int, int]
    source: ImageLike


class GroundingPredictor:
    """Answers questions about images; the resize and the tokenizer are those of the evaluation.

    Several threads may use one predictor.

    Attributes:
        cfg: config of the model, frozen.
        model: the model in evaluation mode, see
            :func:`igvg_d2.modeling.meta_arch.inference.optimize_for_inference`; of an ONNX file
            :class:`OnnxModel`.
        image_format: channel order of the network input, ``cfg.INPUT.FORMAT``.
        calibration: that of ``cfg.TEST.CALIBRATION``, or None. Its threshold decides "no target"
            unless a call names another; ``calibration.guarantee`` says what is promised.

    Example:
        predictor = GroundingPredictor.from_pretrained("shapes-tiny")
        result = predictor("street.jpg", "the two men on the left")
        result.boxes, result.mask, result.no_target
    """

    def __init__(self, cfg: CfgNode, *, dtype: Union[str, torch.dtype, None] = None):
        """
        Args:
            cfg: complete config; it is cloned, and a machine without a GPU takes its CPU. Without
                ``MODEL.WEIGHTS`` the model answers at random, which is logged as a warning; those
                of an encoder alone are refused (ValueError).
            dtype: "float16" or "bfloat16" computes by automatic mixed precision, in which scores
                and masks stay float32; by default float32.
        """
        self.cfg = with_usable_device(cfg)
        dtype = _DTYPES.get(dtype, dtype) or torch.float32
        if dtype not in _DTYPES.values():
            raise ValueError(f"dtype must be one of {sorted(_DTYPES)}, got {dtype!r}.")
        path = self.cfg.TEST.CALIBRATION
        self.calibration = read_calibration(path) if path else None
        if self.calibration is not None:
            logger.info("%s; %s", self.calibration.guarantee, self.calibration.assumption)
        self._dtype, self._device_type = dtype, torch.device(self.cfg.MODEL.DEVICE).type
        self._mapper = GroundingDatasetMapper(self.cfg, is_train=False)
        self.image_format = self._mapper.image_format
        self.model = self._build_model()
        self.cfg.freeze()
        # Tokenizers of the tokenizers library fail when two threads use one at once.
        self._tokenizing = threading.Lock()

    @classmethod
    def from_pretrained(
        cls,
        name_or_file: Union[str, os.PathLike],
        device: str = "auto",
        dtype: Union[str, torch.dtype, None] = None,
        opts: Sequence[Any] = (),
        calibration: Union[str, os.PathLike, None] = None,
    ) -> "GroundingPredictor":
        """A predictor of weights that bring their config along.

        Args:
            name_or_file: name of :mod:`igvg_d2.model_zoo`, address ``hf://``, a ``.safetensors`` or
                ``.onnx`` file of ``tools/export.py``, which carries its config, or a checkpoint in
                the folder of its training run.
            device: "auto" takes a GPU if there is one; or "cpu", "cuda", "cuda:1", "mps" (which
                nobody has tested).
            dtype: see the class.
            opts: KEY VALUE pairs for the config, the strongest.
            calibration: file of ``tools/calibrate.py`` for this model, ``cfg.TEST.CALIBRATION``.
        """
        opts = [*opts, *(("TEST.CALIBRATION", os.fspath(calibration)) if calibration else ())]
        return cls(model_zoo.load(name_or_file, device=device, opts=opts), dtype=dtype)

    def _build_model(self) -> Any:
        """The model with its weights."""
        weights = self.cfg.MODEL.WEIGHTS
        if weights.endswith(".onnx"):
            if self._dtype != torch.float32:
                raise ValueError(f"dtype: the numbers of '{weights}' were chosen at its export")
            return OnnxModel.from_config(self.cfg, self._mapper.tokenizer)
        model = build_model(self.cfg)
        model.eval()
        if weights:
            loaded = GroundingCheckpointer(model).load(weights)
            if loaded.get("__author__") == ENCODER_ONLY:
                raise ValueError(
                    f"'{weights}' is an encoder to train from: it has no heads, and answers "
                    "nothing. Train with it as MODEL.WEIGHTS, or take a model of "
                    "'python -m igvg_d2.model_zoo --list' that was trained"
                )
        else:
            logger.warning("MODEL.WEIGHTS is empty: the model is untrained and answers at random")
        return optimize_for_inference(model)

    def __call__(
        self,
        images: Images,
        expressions: Expressions,
        *,
        threshold: Optional[float] = None,
        mask_threshold: Optional[float] = None,
        no_target_threshold: Optional[float] = None,
        batch_size: int = 8,
        channel_order: Optional[str] = None,
    ) -> Union[GroundingResult, List[GroundingResult]]:
        """Ground one or many expressions in one or many images.

        Args:
            images: an image or a list of them: path, ``file://`` URL, ``PIL.Image``, numpy uint8
                (height, width, 3) or (height, width), torch uint8 (3, height, width).
            expressions: what to look for, in words: a text or a list of them.
            threshold, mask_threshold, no_target_threshold: see
                :meth:`GroundingResult.with_thresholds`; None takes those of the config.
            batch_size: questions per forward pass.
            channel_order: of arrays and tensors, "RGB" or "BGR"; None is RGB, with a warning that
                OpenCV reads BGR.

        Returns:
            the result of one image and one text; else a list of results: of one image and each
            text, of each image and one text, or of pairs of two lists of the same length.

        Raises:
            FileNotFoundError: a path does not exist.
            ValueError: an image cannot be read or has another shape or type, an expression is
                empty, the lists differ in length, or a threshold is not in its range.
        """
        many_images, many_texts = (isinstance(x, (list, tuple)) for x in (images, expressions))
        if many_images and many_texts and len(images) != len(expressions):
            raise ValueError(
                f"{len(images)} images and {len(expressions)} expressions: lists must be of the "
                "same length; for all expressions about one image pass that image, not a list."
            )
        count = len(images) if many_images else len(expressions) if many_texts else 1
        pairs = zip(
            images if many_images else [images] * count,
            expressions if many_texts else [expressions] * count,
        )
        results = self.stream(
            pairs,
            threshold=threshold,
            mask_threshold=mask_threshold,
            no_target_threshold=no_target_threshold,
            batch_size=batch_size,
            channel_order=channel_order,
        )
        return list(results) if many_images or many_texts else next(results)

    def stream(
        self,
        pairs: Iterable[Tuple[ImageLike, str]],
        *,
        threshold: Optional[float] = None,
        mask_threshold: Optional[float] = None,
        no_target_threshold: Optional[float] = None,
        batch_size: int = 8,
        channel_order: Optional[str] = None,
    ) -> Iterator[GroundingResult]:
        """Results of (image, expression) pairs in their order, each batch when it is asked for.

        Args:
            pairs: may be endless. An image that occurs again in the same batch is read once.
            threshold, mask_threshold, no_target_threshold, batch_size, channel_order: see
                :meth:`__call__`.
        """
        is_whole = isinstance(batch_size, Integral) and not isinstance(batch_size, bool)
        if not is_whole or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of 1 or more, got {batch_size!r}.")
        check_channel_order(channel_order or "RGB")
        check_thresholds(threshold, mask_threshold, no_target_threshold)
        if no_target_threshold is None and self.calibration is not None:
            no_target_threshold = self.calibration.no_target_threshold
        thresholds = (threshold, mask_threshold, no_target_threshold)
        remaining = iter(pairs)
        while batch := list(islice(remaining, batch_size)):
            yield from self._answer(batch, thresholds, channel_order)

    def read_image(self, image: ImageLike, channel_order: Optional[str] = None) -> np.ndarray:
        """An image as the predictor sees it, RGB uint8 (height, width, 3)."""
        return to_rgb(image, channel_order or "RGB")

    def _answer(self, pairs, thresholds, channel_order) -> List[Any]:
        """Results of one batch."""
        loaded: Dict[Any, _Loaded] = {}
        keys = [str(x) if isinstance(x, (str, os.PathLike)) else id(x) for x, _ in pairs]
        inputs = []
        for key, (image, expression) in zip(keys, pairs):
            if key not in loaded:
                loaded[key] = self._load(image, channel_order)
            inputs.append(self._make_input(loaded[key], expression))
        with torch.inference_mode(), torch.autocast(
            self._device_type, self._dtype, enabled=self._dtype != torch.float32
        ):
            outputs = self.model(inputs)
        if "ranked" not in outputs[0]:
            # A model of an outside project, which knows nothing of deferred masks.
            return outputs
        results = []
        for key, output, x in zip(keys, outputs, inputs):
            results.append(
                GroundingResult(
                    output["ranked"].to_host().with_thresholds(*thresholds[:2]),
                    x["expression"],
                    source=loaded[key].source,
                    frame_sizes=self._mapper.frame_sizes,
                    no_target_threshold=thresholds[2],
                )
            )
        return results

    def _load(self, image: ImageLike, channel_order: Optional[str]) -> _Loaded:
        """Read an image and resize it to the network's input."""
        is_array = isinstance(image, (np.ndarray, torch.Tensor))
        if channel_order is None and is_array and image.ndim == 3:
            text = "arrays are taken as RGB; OpenCV reads BGR: pass channel_order='BGR' (or 'RGB')"
            log_first_n(logging.WARNING, text, name=__name__, key="message")
        if isinstance(image, (str, os.PathLike)):
            source = local_path(image)
            pixels, size = self._mapper.read_image(source)
        else:
            pixels = to_rgb(image, channel_order or "RGB")
            source, size = image if isinstance(image, Image.Image) else pixels, pixels.shape[:2]
            pixels = pixels if self.image_format == "RGB" else pixels[..., ::-1]
        transform = GeometricTransform(self._mapper.resize, size)
        resized = transform.apply_image(pixels)
        network = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        return _Loaded(network, size, transform.content_size, source)

    def _make_input(self, loaded: _Loaded, expression: str) -> Dict[str, Any]:
        """Model input dict of one question."""
        if not isinstance(expression, str) or not expression.strip():
            raise ValueError(
                f"expression must be a text with at least one word, got {expression!r}."
            )
        with self._tokenizing:
            text_ids = tokenize(self._mapper.tokenizer, expression)
            warn_of_unknown_words_in(self._mapper.tokenizer, expression)
        sample = model_input(loaded.pixels, text_ids, expression, loaded.size, loaded.content_size)
        sample["frame_sizes"] = self._mapper.frame_sizes
        return {**sample, "sample_id": "", "file_name": "", "image_id": 0, "defer_masks": True}
