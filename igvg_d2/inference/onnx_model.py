"""A model that onnxruntime computes, with the inputs and the answers of :class:`IGVG`."""

import importlib
import json
import logging
from typing import Any, Dict, List

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import nn

from igvg_d2.checkpoint import read_metadata
from igvg_d2.modeling.batch import answer_batch, pad_texts
from igvg_d2.modeling.postprocessing import PostprocessOptions

from .graph import FORMAT, INPUTS, to_model_outputs, tokenizer_facts

logger = logging.getLogger(__name__)


class OnnxModel(nn.Module):
    """The network of a file of ``tools/export.py``; called as ``IGVG`` at inference is.

    It has no parameters, and no other mode than that of evaluation.

    Attributes:
        facts: what the file says about itself, see :func:`igvg_d2.inference.graph.describe`.
        image_size: (H, W) of the network input.
        tokenizer: that of the texts, see :func:`igvg_d2.inference.graph.tokenizer_facts`.
    """

    def __init__(self, path: str, postprocess: PostprocessOptions, device: str = "cpu"):
        """
        Args:
            path: of the file.
            postprocess: thresholds and modes.
            device: "cpu", or "cuda" for onnxruntime-gpu.

        Raises:
            ImportError: onnxruntime is not installed; says how to.
            ValueError: it is no file of ``tools/export.py``, or onnxruntime cannot load it.
        """
        super().__init__()
        self.facts = read_metadata(path)
        if self.facts.get("format") != FORMAT:
            raise ValueError(
                f"'{path}': expected a file of tools/export.py with the format {FORMAT!r}, found "
                f"{self.facts.get('format')!r}; export it again"
            )
        try:
            preprocessing, self.tokenizer = (
                json.loads(self.facts[key]) for key in ("preprocessing", "tokenizer")
            )
            self.image_size = tuple(preprocessing["image_size"])
            self.tokenizer["name"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"'{path}': its facts are damaged: {error!r}; export it again"
            ) from error
        self._postprocess = postprocess
        self._session = _open(path, device)
        self._names = [output.name for output in self._session.get_outputs()]

    @classmethod
    def from_config(cls, cfg: CfgNode, tokenizer: Any) -> "OnnxModel":
        """The model of ``MODEL.WEIGHTS``.

        Raises:
            ValueError: the images or the tokenizer are not those of the file; see also the class.
        """
        postprocess = PostprocessOptions.from_config(cfg)
        model = cls(cfg.MODEL.WEIGHTS, postprocess, torch.device(cfg.MODEL.DEVICE).type)
        if model.image_size != tuple(cfg.INPUT.IMAGE_SIZE):
            raise ValueError(
                f"INPUT.IMAGE_SIZE: '{cfg.MODEL.WEIGHTS}' takes images of {model.image_size} only, "
                f"found {tuple(cfg.INPUT.IMAGE_SIZE)}; export it in the other size"
            )
        wanted, found = (
            {key: facts[key] for key in ("name", "vocab_size", "sha256") if key in facts}
            for facts in (model.tokenizer, tokenizer_facts(tokenizer))
        )
        if wanted != found:
            raise ValueError(
                f"INPUT.TOKENIZER: '{cfg.MODEL.WEIGHTS}' was exported with {wanted}, found "
                f"{found}: its words would have other numbers; set the tokenizer of the export"
            )
        return model

    def forward(self, batched_inputs: List[Dict]) -> List[Dict]:
        """See ``IGVG.forward``; images are uint8 on the host, of :attr:`image_size`."""
        text_ids, text_padding_mask, _ = pad_texts(batched_inputs)
        images = torch.stack([x["image"] for x in batched_inputs])
        values = (value.numpy() for value in (images, text_ids, text_padding_mask))
        outputs = self.run(dict(zip(INPUTS, values)))
        tensors = {name: torch.from_numpy(value) for name, value in outputs.items()}
        return answer_batch(
            batched_inputs, to_model_outputs(tensors), self.image_size, self._postprocess
        )

    def run(self, inputs: Dict[str, np.ndarray]) -> Dict[str, np.ndarray]:
        """The graph itself; inputs and outputs as of ``GroundingGraph``."""
        return dict(zip(self._names, self._session.run(None, inputs)))


def _open(path: str, device: str) -> Any:
    """A session with as many threads as PyTorch has."""
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ImportError(f"'{path}' needs 'pip install onnxruntime'") from error
    providers = ["CPUExecutionProvider"]
    if device == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers = ["CUDAExecutionProvider", *providers]
    elif device != "cpu":
        logger.warning("This onnxruntime does not compute on %s: answers on the CPU", device)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(path, options, providers=providers)
    # Its errors have no base class but Exception.
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"'{path}' cannot be loaded by onnxruntime: {reason}") from error
