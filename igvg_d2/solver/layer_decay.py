"""Learning rates that fall from the top of the encoder to its input."""

import re
from typing import Callable, Iterable

# The first numbered part of a name: "backbone.encoder.layers.3.", "backbone.vilt.encoder.layer.3.".
_LAYER = re.compile(r"^(backbone\.(?:(?!\d+\.)[^.]+\.)*?(?:layers?|blocks?)\.)(\d+)\.")


def layer_decay_factors(names: Iterable[str], decay: float) -> Callable[[str], float]:
    """Factors on the learning rate by depth (Bao et al., "BEiT", ICLR 2022).

    Of D layers, layer l (from 0) has decay ** (D - l), everything before the first layer
    (embeddings) decay ** (D + 1), and everything after the last one 1.

    Args:
        names: of all parameters, in the order of the model; of the backbone's, what stands before
            its first layer comes before it.
        decay: factor per layer; 1.0 treats all alike.

    Returns:
        Callable: parameter name -> factor; 1 outside of the backbone.

    Raises:
        ValueError: the decay is not in (0, 1], or is below 1 and the backbone has not one list of
            layers or blocks.
    """
    if not 0.0 < decay <= 1.0:
        raise ValueError(f"SOLVER.LAYER_DECAY: expected a number in (0, 1], found {decay}")
    names = [name for name in names if name.startswith("backbone.")]
    layers = {name: match for name in names if (match := _LAYER.match(name))}
    lists = sorted({match[1] for match in layers.values()})
    if len(lists) != 1 and decay < 1.0:
        raise ValueError(
            "SOLVER.LAYER_DECAY needs a backbone with one list of layers, whose parameters are "
            "named 'backbone.<...>.layers.<number>' (or layer, block, blocks), found "
            f"{lists}; set it to 1.0"
        )
    depth = max((int(match[2]) for match in layers.values()), default=-1) + 1
    first = next((i for i, name in enumerate(names) if name in layers), 0)
    factors = dict.fromkeys(names[:first], decay ** (depth + 1))
    factors.update((name, decay ** (depth - int(match[2]))) for name, match in layers.items())
    return lambda name: factors.get(name, 1.0)
