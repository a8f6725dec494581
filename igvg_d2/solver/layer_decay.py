"""Learning rates that fall from the top of the encoder to its input."""

import re
from typing import Callable, Iterable

_LAYER = re.compile(r"^backbone\.encoder\.layers\.(\d+)\.")


def layer_decay_factors(names: Iterable[str], decay: float) -> Callable[[str], float]:
    """Factors on the learning rate by depth (Bao et al., "BEiT", ICLR 2022).

    Of D layers, layer l (from 0) has decay ** (D - l), everything before the first layer
    (embeddings) decay ** (D + 1), and everything after the last one 1.

    Args:
        names: of all parameters.
        decay: factor per layer; 1.0 treats all alike.

    Returns:
        Callable: parameter name -> factor; 1 outside of the backbone.

    Raises:
        ValueError: the decay is not in (0, 1], or is below 1 and the backbone has no layers.
    """
    if not 0.0 < decay <= 1.0:
        raise ValueError(f"SOLVER.LAYER_DECAY: expected a number in (0, 1], found {decay}")
    found = [int(match[1]) for match in map(_LAYER.match, names) if match]
    if not found and decay < 1.0:
        raise ValueError(
            "SOLVER.LAYER_DECAY needs a backbone with parameters 'backbone.encoder.layers.<number>'"
            "; set it to 1.0"
        )
    depth = max(found, default=-1) + 1

    def factor(name: str) -> float:
        match = _LAYER.match(name)
        if match:
            return decay ** (depth - int(match[1]))
        if name.startswith("backbone.") and not name.startswith("backbone.encoder."):
            return decay ** (depth + 1)
        return 1.0

    return factor
