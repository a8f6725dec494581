"""Released InstanceVG checkpoints to our parameter names and back; nothing is left over."""

from dataclasses import dataclass
from typing import Any, Dict, List, Tuple

import torch

from .instancevg_keys import (
    DEAD_KEYS,
    DEAD_PARTS,
    ENCODERS,
    ModelSize,
    Rule,
    Shape,
    dead_shapes,
    released_aliases,
    released_rules,
    unchanged,
)

Tensors = Dict[str, torch.Tensor]

# The one buffer of integers, BatchNorm's.
COUNTER = "num_batches_tracked"


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
    problems = compare_shapes(state, shapes)
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
    return apply_rules(rules, state), ConversionReport(size, {**DEAD_KEYS, **DEAD_PARTS}, aliases)


def restore_instancevg(
    checkpoint: Dict[str, Any], num_queries: int = 10
) -> Tuple[Tensors, ConversionReport]:
    """The reverse of :func:`convert_instancevg`: weights of ours in the released format.

    Parameters without effect in the release, which ours do not have, become zeros; converting the
    result again gives the same weights to the bit.

    Args:
        checkpoint: weights of a model built from ``Released-IGVG.yaml``, under "model" or plain.
        num_queries: N_q, which no parameter of ours shows.

    Returns:
        released state dict without the prefix "module."; and the model's size, the keys that were
        filled with zeros, and the keys that repeat another one. Tensors that are only renamed share
        memory with the input.

    Raises:
        ValueError: a parameter is missing, unknown or of another shape than a released model's.
    """
    state = checkpoint.get("model", checkpoint)
    advice = (
        "Only models of configs/Released-IGVG.yaml, with a base or large encoder, have a "
        "counterpart in the released format."
    )
    size = _measure_ours(state, num_queries, advice)
    rules = released_rules(size)
    shapes = {}
    for rule in rules:
        sources = (torch.empty(shape, device="meta") for shape in rule.sources.values())
        shapes[rule.target] = tuple(rule.make(*sources).shape)
    problems = compare_shapes(state, shapes)
    if problems:
        raise ValueError(f"{advice} {len(problems)} problem(s):\n  " + "\n  ".join(problems))
    released: Tensors = {}
    for rule in rules:
        tensor = state[rule.target]
        if rule.make is unchanged:
            released.update(dict.fromkeys(rule.sources, tensor))
            continue
        for key, shape in rule.sources.items():
            released.setdefault(key, torch.zeros(shape, dtype=tensor.dtype))
        sources = [released[key] for key in rule.sources]
        parts = tensor.chunk(len(sources)) if rule.packed else [tensor]
        views = sources if rule.packed else [rule.make(*sources)]
        for view, part in zip(views, parts):
            view.copy_(part)
    released.update({key: torch.zeros(shape) for key, shape in dead_shapes(size).items()})
    # The only one of them that is a setting; the release builds it with these values.
    released["head.detrloss.criterion.empty_weight"] = torch.tensor([1.0, 0.1])
    aliases = released_aliases()
    released.update({alias: released[key].clone() for alias, key in aliases.items()})
    return released, ConversionReport(size, {**DEAD_KEYS, **DEAD_PARTS}, aliases)


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


def _measure_ours(state: Tensors, num_queries: int, advice: str) -> ModelSize:
    """Size of a model of ours from the tensors that show it."""
    needed = ("image_projection.weight", "backbone.vision_embed.positions")
    missing = [key for key in needed if key not in state]
    if missing:
        raise ValueError(f"{advice} {missing} are missing.")
    width, cells = state[needed[0]].shape[1], state[needed[1]].shape[1]
    side = round(cells**0.5)
    if width not in ENCODERS or side * side != cells:
        raise ValueError(
            f"{advice} Expected encoder widths {sorted(ENCODERS)} and a square position table, "
            f"found width {width} and {cells} positions."
        )
    depth, ffn_dim, num_heads = ENCODERS[width]
    return ModelSize(width, depth, ffn_dim, num_heads, num_queries, (16 * side, 16 * side))


def apply_rules(rules: List[Rule], state: Tensors) -> Tensors:
    """Our tensors by name; those that are only renamed share memory with ``state``."""
    return {r.target: _own_storage(r.make(*(state[key] for key in r.sources))) for r in rules}


def compare_shapes(state: Tensors, shapes: Dict[str, Shape]) -> List[str]:
    """Every difference between the file and the key table, one line each."""
    problems = [f"{key} is missing" for key in shapes if key not in state]
    problems += [f"{key} is unknown" for key in state if key not in shapes]
    for key, shape in shapes.items():
        if key in state and tuple(state[key].shape) != tuple(shape):
            problems.append(f"{key} has shape {tuple(state[key].shape)}, expected {tuple(shape)}")
        if key in state and state[key].is_floating_point() == key.endswith(COUNTER):
            expected = "an integer" if key.endswith(COUNTER) else "a float"
            problems.append(f"{key} has type {state[key].dtype}, expected {expected} type")
    return problems


def _own_storage(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a part of a larger tensor; saved as it is, it would take the larger one along."""
    if tensor.untyped_storage().nbytes() <= tensor.nbytes:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)
