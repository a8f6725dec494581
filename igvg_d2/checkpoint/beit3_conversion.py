"""BEiT-3's own files, as downloaded, to the parameter names of our encoder."""

from typing import Any, Dict, Tuple

import torch.nn.functional as F

from .instancevg_conversion import (
    ConversionReport,
    Tensors,
    apply_rules,
    contained,
    plain_tensors,
    refuse_differences,
    source_shapes,
)
from .instancevg_keys import ENCODERS, ModelSize, encoder_rules

# First parts of the keys that BEiT-3 files hold beside the encoder, and why they are left behind.
IGNORED_PARTS = {
    **dict.fromkeys(("mlm_head", "mim_head"), "head of the masked pre-training"),
    **dict.fromkeys(("language_head", "vision_head", "logit_scale"), "contrastive head"),
    **dict.fromkeys(("head", "pooler", "fc_norm"), "classification head"),
}
PREFIX = "beit3."
MASK_TOKEN = "beit3.vision_embed.mask_token"
POSITIONS = "beit3.encoder.embed_positions.A.weight"
TEXT_POSITIONS = "beit3.encoder.embed_positions.B.weight"
_WORDS = "beit3.text_embed.weight"
_PATCHES = "beit3.vision_embed.proj.weight"
_FFN = "beit3.encoder.layers.0.ffn.A.fc1.weight"
# Tensors whose shapes give the size, and their dimensions.
_MEASURED = {POSITIONS: 2, TEXT_POSITIONS: 2, _WORDS: 2, _PATCHES: 4, _FFN: 2}


def is_beit3(checkpoint: Dict[str, Any]) -> bool:
    """Whether a loaded file is a BEiT-3 file, with or without its container and prefixes."""
    keys = [str(key).removeprefix("module.") for key in contained(checkpoint)]
    return any(key.startswith(PREFIX) or PREFIX + key == POSITIONS for key in keys)


def convert_beit3(
    checkpoint: Dict[str, Any], image_size: Tuple[int, int] = (320, 320), patch_size: int = 16
) -> Tuple[Tensors, ConversionReport]:
    """Rename and pack the encoder; resize positions and patches to the configured sizes.

    The position table is resized as the release does when it starts from these files: bicubic in
    float32, half-pixel centers, no antialiasing.

    Args:
        checkpoint: the loaded file, see :func:`plain_tensors`. Keys may lack the prefix "beit3.",
            as those of torchscale's class do.
        image_size: (height, width) in pixels, ``MODEL.BEIT3.PRETRAIN_IMAGE_SIZE``.
        patch_size: side of a patch in pixels, ``MODEL.BEIT3.PATCH_SIZE``.

    Returns:
        tensors named "backbone.*", and what was found and dropped.

    Raises:
        ValueError: no BEiT-3 file of a known size, or a key is missing, unknown or of another
            shape; all problems are listed. Or the image is no multiple of the patch.
    """
    if image_size[0] % patch_size or image_size[1] % patch_size:
        raise ValueError(f"image_size {image_size} is no multiple of patch_size {patch_size}.")
    state = _prefixed(plain_tensors(checkpoint, "BEiT-3"))
    size = _measure(state)
    ignored = {key: reason for key in state if (reason := IGNORED_PARTS.get(key.split(".")[0]))}
    rules = encoder_rules(size, old="beit3")
    shapes = {**source_shapes(rules), MASK_TOKEN: (1, 1, size.embed_dim)}
    rest = {key: tensor for key, tensor in state.items() if key not in ignored}
    refuse_differences(rest, shapes, "This is no BEiT-3 checkpoint of a known size,")
    converted = apply_rules(rules, state)
    grid = tuple(side // patch_size for side in image_size)
    _resize_positions(converted, tuple(side // size.patch_size for side in size.image_size), grid)
    _resize_patches(converted, size.patch_size, patch_size)
    ignored[MASK_TOKEN] = "only used in the masked pre-training"
    ignored[POSITIONS] = "rows 0 and 1 are never looked up"
    return converted, ConversionReport(size, ignored, {})


def _prefixed(state: Tensors) -> Tensors:
    """Keys with the prefix of the encoder, which those of torchscale's class lack."""
    if POSITIONS.removeprefix(PREFIX) not in state:
        return state
    return {
        key if key.split(".")[0] in IGNORED_PARTS else PREFIX + key: tensor
        for key, tensor in state.items()
    }


def _measure(state: Tensors) -> ModelSize:
    """Size of the encoder from the shapes of some tensors; a tiny one is measured as a large one.

    The number of heads is in no tensor: it is 0 for an encoder that is not BEiT-3 base or large.
    """
    missing = [key for key in _MEASURED if key not in state]
    if missing:
        raise ValueError(
            f"This is no BEiT-3 checkpoint: expected '{missing[0]}', found {list(state)[:5]}. The "
            "tokenizer's beit3.spm and other models are other files."
        )
    wrong = [key for key, dims in _MEASURED.items() if state[key].dim() != dims]
    if wrong:
        raise ValueError(
            f"This is no BEiT-3 checkpoint: {wrong[0]} has shape {tuple(state[wrong[0]].shape)}, "
            f"expected {_MEASURED[wrong[0]]} dimensions."
        )
    rows, width = len(state[POSITIONS]), state[_WORDS].shape[1]
    if state[POSITIONS].shape[1] != width:
        raise ValueError(
            f"This is no BEiT-3 checkpoint: {POSITIONS} has width {state[POSITIONS].shape[1]}, "
            f"{_WORDS} has width {width}."
        )
    ffn_dim, patch = len(state[_FFN]), state[_PATCHES].shape[-1]
    depth = len({key.split(".")[3] for key in state if key.startswith("beit3.encoder.layers.")})
    side = patch * round(max(rows - 3, 0) ** 0.5)
    return ModelSize(
        width,
        depth,
        ffn_dim,
        num_heads=ENCODERS[width][2] if width in ENCODERS else 0,
        num_queries=0,
        image_size=(side, side),
        vocab_size=len(state[_WORDS]),
        text_rows=len(state[TEXT_POSITIONS]),
        patch_size=patch,
    )


def _resize_positions(state: Tensors, source: Tuple[int, ...], target: Tuple[int, ...]) -> None:
    """Position table from one (rows, columns) grid to another, in place of the old one."""
    name = "backbone.vision_embed.positions"
    if source == target:
        return
    dim = state[name].shape[-1]
    table = state[name].float().reshape(1, *source, dim).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=target, mode="bicubic", align_corners=False)
    state[name] = table.permute(0, 2, 3, 1).reshape(1, -1, dim).contiguous()


def _resize_patches(state: Tensors, source: int, target: int) -> None:
    """Kernel of the patch projection to another patch size, in place of the old one."""
    name = "backbone.vision_embed.proj.weight"
    if target != source:
        size = (target, target)
        kernel = state[name].float()
        state[name] = F.interpolate(kernel, size=size, mode="bicubic", align_corners=False)
