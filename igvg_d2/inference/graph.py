"""The network as a graph of tensors that other runtimes take, and the facts that go with it.

A graph has the inputs of :data:`INPUTS` and the outputs of :class:`GroundingGraph`; the batch and
the length of the texts are free, the size of the image is that of the config. Reading an image,
the tokenizer and the thresholds are outside of it: :func:`describe` writes down what they need.
"""

import hashlib
from typing import Any, Dict, Sequence, Tuple

import torch
from detectron2.config import CfgNode
from torch import nn

from igvg_d2.data.tokenizer import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    UNK_ID,
    BEiT3Tokenizer,
)
from igvg_d2.engine.config_files import config_for_header
from igvg_d2.io.hub import file_sha256
from igvg_d2.io.json_stream import to_json_text
from igvg_d2.modeling import IGVG
from igvg_d2.modeling.postprocessing import PostprocessOptions, to_probabilities

FORMAT = "igvg_d2 1"
INPUTS = ("image", "text_ids", "text_padding_mask")
_LARGEST_BATCH = 1024


class GroundingGraph(nn.Module):
    """A model without what is about files, words and thresholds."""

    def __init__(self, model: IGVG):
        """
        Args:
            model: in evaluation mode, float32.

        Raises:
            TypeError: another architecture.
        """
        super().__init__()
        if not isinstance(model, IGVG):
            name = type(model).__name__
            raise TypeError(f"MODEL.META_ARCHITECTURE: only graphs of IGVG are made, got {name}")
        self.model = model

    def forward(
        self, image: torch.Tensor, text_ids: torch.Tensor, text_padding_mask: torch.Tensor
    ) -> Dict[str, torch.Tensor]:
        """
        Args:
            image: uint8 (N, 3, H, W), channels in the order of ``INPUT.FORMAT``; normalised here.
            text_ids: int64 (N, L).
            text_padding_mask: bool (N, L), True = padding, which is a suffix.

        Returns:
            float32 tensors; those that the model does not have are left out:

            * "points" (N, Q, 2): (x, y) in [0, 1] of the network input, where queries started;
            * "boxes" (N, Q, 4): (cx, cy, w, h) in [0, 1] of the network input;
            * "scores" (N, Q): probability that the query is a target;
            * "masks" (N, Q, Hm, Wm): logits, 4 x 4 of a patch: 1/4 of the input for ViT-B/16;
            * "union_mask" (N, Hm, Wm): logits of all targets together;
            * "no_target_score" (N,): probability that nothing in the image matches;
            * "attention_map" (N, Hi, Wi): where the text looked.

        Raises:
            ValueError: H or W is no multiple of the patch size.
        """
        model = self.model
        model.check_size(*image.shape[-2:])
        pixels = (image.float() - model.pixel_mean) / model.pixel_std
        features = model.backbone(pixels, text_ids, text_padding_mask)
        found, _ = model.predict(features)
        found = {**found, **to_probabilities(found, model.postprocess)}
        union_mask = found.get("sem_seg")
        outputs = {
            "points": found.get("pred_points"),
            "boxes": found.get("pred_boxes"),
            "scores": found.get("scores"),
            "masks": found.get("pred_masks"),
            "union_mask": None if union_mask is None else union_mask[:, 0],
            "no_target_score": 1 - found["present"],
            "attention_map": found.get("attention_map"),
        }
        return {name: value.float() for name, value in outputs.items() if value is not None}


def to_model_outputs(outputs: Dict[str, torch.Tensor]) -> Dict[str, Any]:
    """Outputs of a graph under the names that :func:`igvg_d2.modeling.batch.answer_batch` takes."""
    names = {"points": "pred_points", "boxes": "pred_boxes", "masks": "pred_masks"}
    found = {names.get(name, name): value for name, value in outputs.items()}
    union_mask = found.pop("union_mask", None)
    found["sem_seg"] = None if union_mask is None else union_mask[:, None]
    found["present"] = 1 - found.pop("no_target_score")
    return found


def example_inputs(
    cfg: CfgNode, vocab_size: int, lengths: Sequence[int] = (7, 4), seed: int = 0
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs of a graph: smooth random images, and random ids of texts of these lengths.

    Longer texts than :func:`longest_text` are cut to it.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = [min(length, longest_text(cfg)) for length in lengths]
    count, longest = len(lengths), max(lengths)
    coarse = torch.rand(count, 3, 5, 5, generator=generator) * 255
    images = nn.functional.interpolate(coarse, size=tuple(cfg.INPUT.IMAGE_SIZE), mode="bicubic")
    text_ids = torch.randint(UNK_ID + 1, vocab_size, (count, longest), generator=generator)
    padding = torch.arange(longest)[None] >= torch.tensor(lengths)[:, None]
    text_ids[:, 0] = BOS_ID
    for row, length in zip(text_ids, lengths):
        row[length - 1] = EOS_ID
    text_ids = text_ids.masked_fill(padding, PAD_ID)
    return images.round().clamp(0, 255).to(torch.uint8), text_ids, padding


def longest_text(cfg: CfgNode) -> int:
    """Tokens of the longest text that tokenizer and encoder take."""
    longest, is_beit3 = cfg.INPUT.TOKENIZER.MAX_TOKENS, cfg.MODEL.BACKBONE.NAME == "BEiT3"
    # Other encoders refuse a longer MAX_TOKENS themselves.
    return min(longest, cfg.MODEL.BEIT3.MAX_TEXT_POSITIONS) if is_beit3 else longest


def trace(graph: GroundingGraph, cfg: CfgNode) -> torch.export.ExportedProgram:
    """A program with any batch, and texts of 3 to :func:`longest_text` tokens.

    Raises:
        ValueError: all texts would have the same length.
    """
    if longest_text(cfg) < 4:
        raise ValueError(
            "INPUT.TOKENIZER.MAX_TOKENS and MODEL.BEIT3.MAX_TEXT_POSITIONS: expected 4 or more for "
            f"a graph, which takes texts of several lengths, found {longest_text(cfg)}"
        )
    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    # BOS, a token and EOS at least.
    length = torch.export.Dim("length", min=3, max=longest_text(cfg))
    shapes = ({0: batch}, {0: batch, 1: length}, {0: batch, 1: length})
    with torch.no_grad():
        inputs = example_inputs(cfg, graph.model.backbone.vocab_size)
        return torch.export.export(graph.eval(), inputs, dynamic_shapes=shapes, strict=False)


def tokenizer_facts(tokenizer: Any) -> Dict[str, Any]:
    """What another program needs to tokenize alike; of an outside project, to tell apart.

    Returns:
        dict with name, max_tokens, bos_id, pad_id, eos_id, unk_id and sha256; of BEiT-3's, that of
        its file, and clean_text; of one with ``word_ids``, that of its words, one a line, and
        words, whose ids begin after unk_id. Of others name and, as far as they have them,
        vocab_size and sha256 of the file at their ``path``.
    """
    facts: Dict[str, Any] = {"name": type(tokenizer).__name__}
    if hasattr(tokenizer, "path"):
        facts["sha256"] = file_sha256(tokenizer.path)
    if isinstance(tokenizer, BEiT3Tokenizer):
        facts["clean_text"] = tokenizer.clean_text
    elif hasattr(tokenizer, "word_ids"):
        words = list(tokenizer.word_ids)
        facts.update(sha256=hashlib.sha256("\n".join(words).encode()).hexdigest(), words=words)
    else:
        size = getattr(tokenizer, "vocab_size", None)
        return facts if size is None else {**facts, "vocab_size": size}
    ids = {"bos_id": BOS_ID, "pad_id": PAD_ID, "eos_id": EOS_ID, "unk_id": UNK_ID}
    return {**facts, "max_tokens": tokenizer.max_tokens, **ids}


def describe(cfg: CfgNode, tokenizer: Any) -> Dict[str, str]:
    """The facts that an exported file carries.

    Returns:
        "format"; "config", YAML as in the header of safetensors; and, as JSON, "preprocessing" (the
        resize and the normalisation, which is in the graph), "tokenizer" (see
        :func:`tokenizer_facts`) and "postprocessing" (see :class:`PostprocessOptions`).
    """
    preprocessing = {
        "image_size": list(cfg.INPUT.IMAGE_SIZE),
        "channels": cfg.INPUT.FORMAT,
        "resize": cfg.INPUT.RESIZE,
        "resize_mode": cfg.INPUT.RESIZE_MODE,
        "mean": list(cfg.MODEL.PIXEL_MEAN),
        "std": list(cfg.MODEL.PIXEL_STD),
        "normalization": "in the graph, which takes uint8",
    }
    postprocessing = vars(PostprocessOptions.from_config(cfg))
    return {
        "format": FORMAT,
        "config": config_for_header(cfg),
        "preprocessing": to_json_text(preprocessing),
        "tokenizer": to_json_text(tokenizer_facts(tokenizer)),
        "postprocessing": to_json_text(postprocessing),
    }
