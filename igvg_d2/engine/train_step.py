"""One optimizer step: mixed precision, accumulated gradients, and the average of the weights."""

import contextlib
import copy
import logging
import time
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn

from igvg_d2.modeling.targets import BatchTotals

from .guards import LossGuard

logger = logging.getLogger(__name__)

# TF32 is a way to compute with float32, not a type.
PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": None}


class GroundingStepTrainer(SimpleTrainer):
    """``SimpleTrainer`` and ``AMPTrainer`` in one, on CPUs and GPUs, with gradient accumulation.

    A batch of the loader is cut into micro-batches, so neither the order of the data nor an
    iteration depends on their number. The gradient is that of the whole batch, see
    :mod:`igvg_d2.modeling.targets`; only what looks at a batch while it is computed, as
    BatchNorm and the draws of dropout, sees micro-batches.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        accumulation_steps: int = 1,
        precision: Optional[torch.dtype] = None,
        allow_tf32: bool = False,
    ):
        """
        Args:
            model: returns a dict of scalar losses; may be wrapped for several processes.
            data_loader: gives lists of samples, their length a multiple of the micro-batches.
            optimizer: of the parameters.
            accumulation_steps: micro-batches per step.
            precision: of autocast; None computes in float32. Losses of float16 are scaled.
            allow_tf32: GPUs may round the factors of products of float32 to TF32.
        """
        super().__init__(model, data_loader, optimizer)
        self.accumulation_steps = accumulation_steps
        self.precision = precision
        self.allow_tf32 = allow_tf32
        self.device = next(model.parameters()).device
        self.grad_scaler = None
        if precision is torch.float16:
            self.grad_scaler = torch.amp.GradScaler(self.device.type)
        self.guard: Optional[LossGuard] = None
        # Losses and seconds of the step that are not written yet.
        self._unwritten: Optional[Tuple[Dict[str, torch.Tensor], float]] = None
        # Left by the hook that clips, which comes before this one.
        optimizer.grad_norm = None
        optimizer.register_step_pre_hook(lambda *_: self._write_step(has_gradient=True))

    def run_step(self):
        """Gradients of one batch of the loader, and one step of the optimizer.

        Raises:
            FloatingPointError: a loss or the gradient is infinite or NaN; there is no step.
        """
        assert self.model.training, "The model was put into evaluation mode by someone."
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        self.optimizer.zero_grad()
        losses = self.accumulate(split_batch(batch, self.accumulation_steps))
        self.after_backward()
        self._unwritten = losses, data_time
        if self.grad_scaler is None:
            self.optimizer.step()
            return
        # Gradients are unscaled before the optimizer's hooks clip them; without a finite gradient
        # there is no step.
        self.grad_scaler.step(self.optimizer)
        self._write_step(has_gradient=False)
        self.grad_scaler.update()
        storage = get_event_storage()
        storage.put_scalar("amp_scale", self.grad_scaler.get_scale(), smoothing_hint=False)

    def defer(self, guard: LossGuard) -> None:
        """Look at the losses that a guard of the model sees once per step, not in each forward."""
        guard.deferred, self.guard = True, guard

    def _write_step(self, has_gradient: bool) -> None:
        """Check and log the numbers of a step, before the optimizer does it.

        They come in one copy: each on its own would wait for the device some twenty times.
        """
        if self._unwritten is None:
            return
        (losses, data_time), self._unwritten = self._unwritten, None
        numbers = dict(losses)
        if has_gradient and self.optimizer.grad_norm is not None:
            numbers["grad_norm"] = self.optimizer.grad_norm
        if self.guard is not None:
            numbers["is_bad"] = self.guard.is_bad()
        values = torch.stack([value.detach().float() for value in numbers.values()]).cpu()
        numbers = dict(zip(numbers, values))
        if self.guard is not None:
            self.guard.settle(bool(numbers.pop("is_bad")))
        norm = numbers.pop("grad_norm", None)
        self._write_metrics(numbers, data_time)
        if norm is None:
            return
        if not norm.isfinite():
            raise FloatingPointError(
                f"The gradient became infinite or NaN at iteration={self.iter}, and the losses are "
                "finite! The weights are those of the iteration before. A lower SOLVER.BASE_LR or "
                "SOLVER.CLIP_TOTAL_NORM may help."
            )
        get_event_storage().put_scalar("grad_norm", norm, smoothing_hint=False)

    def accumulate(self, micro_batches: List[List[Dict[str, Any]]]) -> Dict[str, torch.Tensor]:
        """Add the gradients of the mean over micro-batches to those of the parameters.

        Processes exchange gradients once, in the last backward pass.

        Args:
            micro_batches: lists of samples, all of one length.

        Returns:
            losses of the whole batch, detached.
        """
        samples = [sample for batch in micro_batches for sample in batch]
        if all(isinstance(sample, dict) and "instances" in sample for sample in samples):
            totals = BatchTotals.count(micro_batches, self.device)
            micro_batches = [
                [{**sample, "batch_totals": totals} for sample in batch] for batch in micro_batches
            ]
        sums: Dict[str, torch.Tensor] = {}
        last = len(micro_batches) - 1
        for index, micro_batch in enumerate(micro_batches):
            wait = index < last and hasattr(self.model, "no_sync")
            with self.model.no_sync() if wait else contextlib.nullcontext():
                losses = self._forward_backward(micro_batch, len(micro_batches))
            for key, value in losses.items():
                sums[key] = sums[key] + value if index else value
        return sums

    def _forward_backward(self, micro_batch, parts: int) -> Dict[str, torch.Tensor]:
        """Gradients of one micro-batch; returns its share of the losses, detached."""
        enabled = self.precision is not None
        with _tf32(self.allow_tf32):
            with torch.autocast(self.device.type, dtype=self.precision, enabled=enabled):
                losses = self.model(micro_batch)
            losses = {key: value / parts for key, value in losses.items()}
            total = sum(losses.values())
            (total if self.grad_scaler is None else self.grad_scaler.scale(total)).backward()
        return {key: value.detach() for key, value in losses.items()}

    def state_dict(self) -> Dict[str, Any]:
        """As ``SimpleTrainer.state_dict``, with the gradient scaler of fp16."""
        state = super().state_dict()
        if self.grad_scaler is not None:
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Continue; a run that changes its precision starts with a new gradient scaler."""
        super().load_state_dict(state_dict)
        if self.grad_scaler is None:
            return
        if "grad_scaler" in state_dict:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        else:
            logger.warning("The checkpoint is of a run without fp16: gradients are scaled anew.")


def build_step_trainer(
    cfg: CfgNode, model: nn.Module, data_loader: Iterable, optimizer: torch.optim.Optimizer
) -> GroundingStepTrainer:
    """Build the step of ``SOLVER.AMP`` and ``SOLVER.ACCUMULATION_STEPS``, and log what it does."""
    solver, processes = cfg.SOLVER, comm.get_world_size()
    steps = solver.ACCUMULATION_STEPS
    precision = PRECISIONS[solver.AMP.PRECISION] if solver.AMP.ENABLED else None
    logger.info(
        "Step: batch %d = %d processes x %d micro-batches x %d samples, in %s",
        *(solver.IMS_PER_BATCH, processes, steps, solver.IMS_PER_BATCH // (processes * steps)),
        solver.AMP.PRECISION if solver.AMP.ENABLED else "float32",
    )
    allow_tf32 = solver.AMP.ENABLED and solver.AMP.PRECISION == "tf32"
    return GroundingStepTrainer(model, data_loader, optimizer, steps, precision, allow_tf32)


@contextlib.contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Context for products and convolutions on GPUs; PyTorch's default differs between them."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def split_batch(batch: List[Any], parts: int) -> List[List[Any]]:
    """Cut a list of samples into micro-batches of one length, in order.

    Raises:
        ValueError: the length is no multiple of ``parts``.
    """
    if len(batch) % parts:
        raise ValueError(
            f"a batch of {len(batch)} samples per process cannot be cut into {parts} equal "
            "micro-batches; change SOLVER.IMS_PER_BATCH or SOLVER.ACCUMULATION_STEPS"
        )
    size = len(batch) // parts
    return [batch[i * size : (i + 1) * size] for i in range(parts)]


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
        """
        self.decay = decay
        self.num_updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        tensors = [[*m.parameters(), *m.buffers()] for m in (self.model, model)]
        # Parameters and floating-point buffers of both models, each once, in one order.
        self._floating = [[t.detach() for t in ts if t.is_floating_point()] for ts in tensors]
        self._others = [[t for t in ts if not t.is_floating_point()] for ts in tensors]
        optimizer.register_step_post_hook(lambda *_: self.update())

    @torch.no_grad()
    def update(self) -> None:
        """Follow the weights by one step."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        torch._foreach_lerp_(*self._floating, 1.0 - decay)
        _copy(*self._others)

    @torch.no_grad()
    def restart(self) -> None:
        """Begin with the weights as they are now."""
        self.num_updates = 0
        _copy(*self._floating)
        _copy(*self._others)

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


def _copy(averages: List[torch.Tensor], values: List[torch.Tensor]) -> None:
    for average, value in zip(averages, values):
        average.copy_(value)
