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


def is_instancevg(checkpoint: Dict[str, Any]) -> bool:
    """Whether a loaded file is a released InstanceVG, with or without containers and prefixes."""
    keys = (str(key).removeprefix("module.") for key in contained(checkpoint))
    return any(key.startswith("vis_enc.beit3.") for key in keys)


def convert_instancevg(checkpoint: Dict[str, Any]) -> Tuple[Tensors, ConversionReport]:
    """Rename, pack and split the tensors of a released checkpoint for ``Released-IGVG.yaml``.

    Args:
        checkpoint: the loaded file, see :func:`plain_tensors`.

    Returns:
        state dict for ``IGVG.load_state_dict(strict=True)``, and what was found and dropped.
        Tensors that are only renamed share memory with the input.

    Raises:
        ValueError: no released checkpoint, or a key is missing, unknown, of another shape, or a
            shared tensor differs between its names; all problems are listed.
    """
    state = plain_tensors(checkpoint, "released InstanceVG")
    size = _measure(state)
    rules = released_rules(size)
    aliases = released_aliases()
    shapes = {**source_shapes(rules), **dead_shapes(size)}
    shapes.update({alias: shapes[key] for alias, key in aliases.items()})
    refuse_differences(state, shapes, "This is no released InstanceVG checkpoint,")
    differing = [
        f"{alias} differs from {key}, but the released model shares one tensor"
        for alias, key in aliases.items()
        if not torch.equal(state[alias], state[key])
    ]
    if differing:
        raise ValueError("This is no released InstanceVG checkpoint:\n  " + "\n  ".join(differing))
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
    state = contained(checkpoint)
    advice = (
        "Only models of configs/Released-IGVG.yaml, with a base or large encoder, have a "
        "counterpart in the released format."
    )
    needed = ("image_projection.weight", "backbone.vision_embed.positions")
    missing = [key for key in needed if key not in state]
    if missing:
        raise ValueError(f"{advice} {missing} are missing.")
    width, cells = (state[key].shape[1] for key in needed)
    size = _published_size(width, cells, num_queries, advice)
    rules = released_rules(size)
    shapes = {}
    for rule in rules:
        sources = (torch.empty(shape, device="meta") for shape in rule.sources.values())
        shapes[rule.target] = tuple(rule.make(*sources).shape)
    refuse_differences(state, shapes, advice)
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


def contained(checkpoint: Any) -> Any:
    """The state dict inside the containers that releases, BEiT-3 and Detectron2 use."""
    for name in ("model", "module", "state_dict"):
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(name), dict):
            return contained(checkpoint[name])
    return checkpoint


def plain_tensors(checkpoint: Any, kind: str) -> Tensors:
    """Tensors of a file, out of containers and without the prefix "module." of their keys.

    Raises:
        ValueError: there is something else in it, or a key with and without the prefix; says that
            the file is no checkpoint of this kind.
    """
    state = contained(checkpoint)
    if not isinstance(state, dict):
        found = type(state).__name__
        raise ValueError(
            f"This is no {kind} checkpoint: expected a dict of tensors, found {found}."
        )
    others = [key for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ValueError(f"This is no {kind} checkpoint: {others[:5]} are no tensors.")
    plain = {str(key).removeprefix("module."): tensor for key, tensor in state.items()}
    if len(plain) != len(state):
        raise ValueError("Some tensors are stored both with and without the prefix 'module.'.")
    return plain


def _measure(state: Tensors) -> ModelSize:
    """Size of a released model from the tensors that show it."""
    image = "head.img_embedding.weight"
    queries = "head.query_generation.query_embed.weight"
    positions = "vis_enc.beit3.encoder.embed_positions.A.weight"
    missing = [key for key in (image, queries, positions) if key not in state]
    if missing:
        raise ValueError(
            f"This is no released InstanceVG checkpoint: {missing} are missing, found "
            f"{list(state)[:5]}."
        )
    width, cells = state[image].shape[1], len(state[positions]) - 3
    return _published_size(width, cells, len(state[queries]), "In a released checkpoint,")


def _published_size(width: int, cells: int, num_queries: int, what: str) -> ModelSize:
    """Size of a model with a BEiT-3 base or large encoder, or an error that begins with ``what``.

    Args:
        width: of the encoder.
        cells: rows of the position table, without those of special tokens.
        num_queries: N_q.
        what: is measured.
    """
    side = round(max(cells, 0) ** 0.5)
    if width not in ENCODERS or side * side != cells:
        raise ValueError(
            f"{what} expected encoder widths {sorted(ENCODERS)} (base, large) and a square "
            f"position table, found width {width} and {cells} positions."
        )
    depth, ffn_dim, num_heads = ENCODERS[width]
    return ModelSize(width, depth, ffn_dim, num_heads, num_queries, (16 * side, 16 * side))


def apply_rules(rules: List[Rule], state: Tensors) -> Tensors:
    """Our tensors by name; those that are only renamed share memory with ``state``."""
    return {r.target: _own_storage(r.make(*(state[key] for key in r.sources))) for r in rules}


def source_shapes(rules: List[Rule]) -> Dict[str, Shape]:
    """Sizes of all released tensors that the rules take."""
    return {key: shape for rule in rules for key, shape in rule.sources.items()}


def refuse_differences(state: Tensors, shapes: Dict[str, Shape], what: str) -> None:
    """Raise a ValueError that begins with ``what`` and lists every difference to the key table."""
    problems = [f"{key} is missing" for key in shapes if key not in state]
    problems += [f"{key} is unknown" for key in state if key not in shapes]
    for key in [key for key in shapes if key in state]:
        tensor = state[key]
        if tuple(tensor.shape) != tuple(shapes[key]):
            found, expected = tuple(tensor.shape), tuple(shapes[key])
            problems.append(f"{key} has shape {found}, expected {expected}")
        # The one buffer of integers is BatchNorm's.
        expected = "an integer" if key.endswith("num_batches_tracked") else "a float"
        if tensor.is_floating_point() != (expected == "a float"):
            problems.append(f"{key} has type {tensor.dtype}, expected {expected} type")
    if problems:
        raise ValueError(f"{what} {len(problems)} problem(s):\n  " + "\n  ".join(problems))


def _own_storage(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a part of a larger tensor; saved as it is, it would take the larger one along."""
    if tensor.untyped_storage().nbytes() <= tensor.nbytes:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)
