"""Released InstanceVG checkpoints to our parameter names; nothing is left over silently."""

from dataclasses import dataclass
from typing import Any, Dict, List, Tuple

import torch

from .instancevg_keys import (
    DEAD_KEYS,
    DEAD_PARTS,
    ENCODERS,
    ModelSize,
    Shape,
    dead_shapes,
    released_aliases,
    released_rules,
)

Tensors = Dict[str, torch.Tensor]


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion found and left behind.

    Attributes:
        size: of the model, from the shapes in the file.
        dropped: released key -> reason, for keys and parts of keys without effect.
        aliases: released key -> key it was verified to equal.
    """

    size: ModelSize
    dropped: Dict[str, str]
    aliases: Dict[str, str]


def is_instancevg(state_dict: Tensors) -> bool:
    """Whether a state dict, with or without the "module." prefix, is a released InstanceVG."""
    return any(str(key).removeprefix("module.").startswith("vis_enc.beit3.") for key in state_dict)


def convert_instancevg(checkpoint: Dict[str, Any]) -> Tuple[Tensors, ConversionReport]:
    """Rename, pack and split the tensors of a released checkpoint for ``Released-IGVG.yaml``.

    Args:
        checkpoint: the loaded file; its "state_dict" is used if there is one. Keys may carry the
            prefix "module.".

    Returns:
        state dict for ``IGVG.load_state_dict(strict=True)``, and what was found and dropped.
        Tensors that are only renamed share memory with the input.

    Raises:
        ValueError: no released checkpoint, or a key is missing, unknown, of another shape, or a
            shared tensor differs between its names; all problems are listed.
    """
    state = _plain_state_dict(checkpoint)
    size = _measure(state)
    rules = released_rules(size)
    shapes = {key: shape for rule in rules for key, shape in rule.sources.items()}
    shapes.update(dead_shapes(size))
    aliases = released_aliases()
    shapes.update({alias: shapes[key] for alias, key in aliases.items()})
    problems = _compare(state, shapes)
    if not problems:
        problems = [
            f"{alias} differs from {key}, but the released model shares one tensor"
            for alias, key in aliases.items()
            if not torch.equal(state[alias], state[key])
        ]
    if problems:
        raise ValueError(
            f"This is no released InstanceVG checkpoint, {len(problems)} problem(s):\n  "
            + "\n  ".join(problems)
        )
    converted = {rule.target: rule.make(*(state[k] for k in rule.sources)) for rule in rules}
    converted = {name: _own_storage(tensor) for name, tensor in converted.items()}
    return converted, ConversionReport(size, {**DEAD_KEYS, **DEAD_PARTS}, aliases)


def _plain_state_dict(checkpoint: Dict[str, Any]) -> Tensors:
    """Tensors of the file without container and "module." prefix."""
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not is_instancevg(state):
        found = list(checkpoint)[:5] if isinstance(checkpoint, dict) else type(checkpoint)
        raise ValueError(
            "This is no released InstanceVG checkpoint: expected tensors named 'vis_enc.*' and "
            f"'head.*', plain or under 'state_dict', found {found}."
        )
    others = [key for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ValueError(f"Expected tensors only in the state dict, found others: {others[:5]}.")
    plain = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    if len(plain) != len(state):
        raise ValueError("Some tensors are stored both with and without the prefix 'module.'.")
    return plain


def _measure(state: Tensors) -> ModelSize:
    """Size of the model from the tensors that show it."""
    needed = {
        "image": "head.img_embedding.weight",
        "queries": "head.query_generation.query_embed.weight",
        "positions": "vis_enc.beit3.encoder.embed_positions.A.weight",
    }
    missing = [key for key in needed.values() if key not in state]
    if missing:
        raise ValueError(f"This is no released InstanceVG checkpoint: {missing} are missing.")
    width = state[needed["image"]].shape[1]
    if width not in ENCODERS:
        raise ValueError(
            f"{needed['image']} has {width} input channels; released encoders have "
            f"{sorted(ENCODERS)} (base, large)."
        )
    depth, ffn_dim, num_heads = ENCODERS[width]
    side = 16 * round((len(state[needed["positions"]]) - 3) ** 0.5)
    queries = len(state[needed["queries"]])
    return ModelSize(width, depth, ffn_dim, num_heads, queries, (side, side))


def _compare(state: Tensors, shapes: Dict[str, Shape]) -> List[str]:
    """Every difference between the file and the key table, one line each."""
    problems = [f"{key} is missing" for key in shapes if key not in state]
    problems += [f"{key} is unknown" for key in state if key not in shapes]
    for key, shape in shapes.items():
        if key in state and tuple(state[key].shape) != tuple(shape):
            problems.append(f"{key} has shape {tuple(state[key].shape)}, expected {tuple(shape)}")
    return problems


def _own_storage(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a part of a larger tensor; saved as it is, it would take the larger one along."""
    if tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)
