"""Weights for a model of another vocabulary, number of queries or parts, named one by one."""

from typing import Dict, List, Mapping, Sequence, Tuple

import torch

# N_q, which is no tensor's size in most models, among the names of what may be resized.
NUM_QUERIES = "num_queries"


def change_tensors(
    tensors: Mapping[str, torch.Tensor],
    model: Mapping[str, torch.Tensor],
    resize: Sequence[str] = (),
    reset: Sequence[str] = (),
) -> Tuple[Dict[str, torch.Tensor], List[str]]:
    """Make the tensors of a file fit a model where that was asked for.

    Args:
        tensors: of the file, by name.
        model: initial values of the model, by name; not changed.
        resize: beginnings of names; of these tables, float (rows, ...), the first rows come from
            the file as far as both have them. "num_queries" stands for no tensor.
        reset: beginnings of names that are not taken from the file.

    Returns:
        tensors to be loaded, and a line for each that was resized, is new or was left out.

    Raises:
        ValueError: a name matches no such tensor.
    """
    changed, lines = dict(tensors), []
    for name in (name for name in resize if name != NUM_QUERIES):
        keys = [k for k in model if k.startswith(name) and k in tensors]
        keys = [k for k in keys if model[k].shape != tensors[k].shape]
        if not keys or any(tensors[k].shape[1:] != model[k].shape[1:] for k in keys):
            raise ValueError(
                f"resize: '{name}' begins the name of no table that differs in its rows alone; "
                "leave it out, or reset it"
            )
        for key in keys:
            rows = min(len(model[key]), len(tensors[key]))
            changed[key] = model[key].clone()
            changed[key][:rows] = tensors[key][:rows]
            lines.append(
                f"resized: {key}, {rows} rows of the file's {len(tensors[key])}, "
                f"{len(model[key]) - rows} new"
            )
    for name in reset:
        keys = [k for k in (*model, *(k for k in tensors if k not in model)) if k.startswith(name)]
        if not keys:
            raise ValueError(f"reset: no tensor of file or model begins with '{name}'; mend it")
        for key in keys:
            changed.pop(key, None)
            if key in model:
                changed[key] = model[key]
            where = "" if key in tensors else ", which the file lacks"
            lines.append(f"new: {key}{where}" if key in model else f"left out: {key}")
    return changed, lines


def suggest_options(tensors: Mapping[str, torch.Tensor], model: Mapping[str, torch.Tensor]) -> str:
    """The names for :func:`change_tensors` with which a file would fit, as a line of text.

    Args:
        tensors: of the file, by name.
        model: those of the model, by name.
    """
    resize, reset = [], set()
    for key in {**model, **tensors}:
        if key not in model or key not in tensors:
            reset.add(".".join(key.split(".")[:2]))
        elif model[key].shape != tensors[key].shape:
            only_rows = model[key].shape[1:] == tensors[key].shape[1:] and model[key].dim() > 1
            resize.append(key) if only_rows else reset.add(key)
    options = [f"--resize {' '.join(resize)}"] * bool(resize)
    options += [f"--reset {' '.join(sorted(reset))}"] * bool(reset)
    return f"\nTo start from it all the same: {' '.join(options)}" if options else ""
