"""Exponential moving average of the weights, which is what is evaluated and given away."""

import copy
from typing import Any, Dict, List, Optional, Tuple

import torch
from detectron2.config import CfgNode
from torch import nn


class WeightAverage:
    """A second model whose weights follow those in training (Polyak and Juditsky, 1992).

    After each step of the optimizer, ``average = d * average + (1 - d) * weights`` with
    ``d = min(decay, (1 + steps) / (10 + steps))``: an average that has just begun does not hang on
    to its first weights. It covers parameters and floating-point buffers, so running statistics of
    BatchNorm too; other buffers are copied. A step that fp16 leaves out is none.

    Attributes:
        model: the averaged model, in evaluation mode, without gradients.
        num_updates: steps so far.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, decay: float):
        """
        Args:
            model: in training, not wrapped for several processes.
            optimizer: of its parameters; gets a hook.
            decay: d, in (0, 1).

        Raises:
            ValueError: ``decay`` is out of range.
        """
        if not 0.0 < decay < 1.0:
            raise ValueError(f"SOLVER.EMA.DECAY: expected a number between 0 and 1, found {decay}")
        self.decay = decay
        self.num_updates = 0
        self._source = model
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._pairs = _pair_tensors(self.model, model)
        optimizer.register_step_post_hook(lambda *_: self.update())

    @torch.no_grad()
    def update(self) -> None:
        """Follow the weights by one step."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        averages, values = self._pairs
        torch._foreach_lerp_(averages, values, 1.0 - decay)
        self._copy_counters()

    @torch.no_grad()
    def restart(self) -> None:
        """Begin with the weights as they are now."""
        self.num_updates = 0
        averages, values = self._pairs
        for average, value in zip(averages, values):
            average.copy_(value)
        self._copy_counters()

    def _copy_counters(self) -> None:
        """Integers are not averaged."""
        for average, value in zip(self.model.buffers(), self._source.buffers()):
            if not average.is_floating_point():
                average.copy_(value)

    def state_dict(self) -> Dict[str, Any]:
        """For a checkpoint: the averaged weights under "model", and "num_updates"."""
        return {"model": self.model.state_dict(), "num_updates": self.num_updates}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Continue an average.

        Raises:
            RuntimeError: its weights are those of another model.
        """
        self.model.load_state_dict(state["model"])
        self.num_updates = state["num_updates"]


def build_weight_average(
    cfg: CfgNode, model: nn.Module, optimizer: torch.optim.Optimizer
) -> Optional[WeightAverage]:
    """Build ``SOLVER.EMA``; None if it is off."""
    ema = cfg.SOLVER.EMA
    return WeightAverage(model, optimizer, ema.DECAY) if ema.ENABLED else None


def _pair_tensors(
    average: nn.Module, source: nn.Module
) -> Tuple[List[torch.Tensor], List[torch.Tensor]]:
    """Parameters and floating-point buffers of two equal models, each once, in one order."""
    tensors = [[*m.parameters(), *m.buffers()] for m in (average, source)]
    averages, values = ([t.detach() for t in ts if t.is_floating_point()] for ts in tensors)
    return averages, values
