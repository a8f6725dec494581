"""Stops, or passes over, a batch whose loss is not finite, before it can touch the weights."""

import logging
from typing import Callable, Dict, List, Optional

import torch
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import nn

logger = logging.getLogger(__name__)


class LossGuard:
    """Looks at every training loss of a model, between the forward and the backward pass.

    It hangs on the model, not on the training loop, so it sees every micro-batch of an accumulated
    one, and "batch" means one of these. All processes decide alike: a loss that is not finite in
    one of them concerns all.

    By default it raises, in all processes, before gradients are computed: nothing of the batch
    reaches weights, optimizer or a checkpoint. With ``skip`` the batch is passed over instead: its
    losses are replaced by zeros that leave every parameter a zero gradient, and the running
    statistics of normalisation layers are put back.
    """

    def __init__(
        self,
        model: nn.Module,
        skip: bool = False,
        max_in_a_row: int = 10,
        report: Optional[Callable[[List[Dict[str, str]], str], None]] = None,
    ):
        """
        Args:
            model: returns a dict of scalar losses in training; not wrapped for several processes.
            skip: pass over a batch instead of raising.
            max_in_a_row: so many batches are passed over; one more raises.
            report: called with the samples (``sample_id``, ``file_name``) of a batch of this
                process that is passed over, and the reason.
        """
        self.skip = skip
        self.max_in_a_row = max_in_a_row
        self.report = report
        self.in_a_row = 0
        self._batch: List[Dict[str, str]] = []
        self._keys: Optional[List[str]] = None
        self._buffers: List[torch.Tensor] = []
        model.register_forward_pre_hook(self._before_forward)
        model.register_forward_hook(self._after_forward)

    def __deepcopy__(self, memo):
        """A copy of the model, such as moving averages, shares its guard."""
        return self

    def _before_forward(self, model: nn.Module, inputs) -> None:
        """Remember the batch and, to undo it, the floating-point buffers."""
        if not model.training:
            return
        self._batch = [
            {key: str(sample.get(key, "?")) for key in ("sample_id", "file_name")}
            for sample in inputs[0]
        ]
        if self.skip:
            self._buffers = [b.clone() for b in model.buffers() if b.is_floating_point()]

    def _after_forward(self, model: nn.Module, inputs, losses: Dict[str, torch.Tensor]):
        """Check the losses; returns zeros in their place when the batch is passed over."""
        if not model.training:
            return None
        if self._keys is None:
            self._check_keys(losses)
        values = torch.stack([value.detach().float() for value in losses.values()])
        is_bad = (~torch.isfinite(values)).any().to(torch.int32)
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(is_bad, torch.distributed.ReduceOp.MAX)
        if not is_bad.item():
            self.in_a_row = 0
            return None
        message = self._describe(dict(zip(losses, values.tolist())))
        self.in_a_row += 1
        if not self.skip:
            raise FloatingPointError(message + "The weights are those of the iteration before.")
        if self.in_a_row > self.max_in_a_row:
            raise FloatingPointError(
                f"{message}This is batch {self.in_a_row} of this kind in a row, of which "
                f"{self.max_in_a_row} are skipped: the training has diverged."
            )
        logger.warning("%sThe batch is passed over (DATALOADER.SKIP_BAD_SAMPLES).", message)
        if self.report is not None and not torch.isfinite(values).all():
            self.report(self._batch, message.splitlines()[0])
        floating = [b for b in model.buffers() if b.is_floating_point()]
        for buffer, before in zip(floating, self._buffers):
            buffer.copy_(before)
        # Every parameter stays in the graph, which DistributedDataParallel waits for.
        zero = sum((0.0 * p).sum().float() for p in model.parameters() if p.requires_grad)
        return {key: zero if i == 0 else zero.detach() for i, key in enumerate(losses)}

    def _check_keys(self, losses: Dict[str, torch.Tensor]) -> None:
        """Detectron2 trains on every value of the dict, and averages over the keys of process 0."""
        keys = sorted(losses)
        wrong = [key for key in keys if not key.startswith("loss_")]
        if wrong:
            raise ValueError(
                f"the model returned {wrong} among its losses; everything in that dict is trained "
                "on, so it takes only loss_*; put other numbers in get_event_storage()"
            )
        for rank, other in enumerate(comm.all_gather(keys)):
            if other != keys:
                raise ValueError(
                    f"process {rank} has losses {other}, process {comm.get_rank()} has {keys}; the "
                    "keys must not depend on the data"
                )
        self._keys = keys

    def _describe(self, losses: Dict[str, float]) -> str:
        """Iteration, and for each process the losses that are not finite and its samples."""
        bad = {
            key: value
            for key, value in losses.items()
            if not torch.isfinite(torch.tensor(value)).item()
        }
        iteration = get_event_storage().iter if has_event_storage() else "?"
        lines = [f"Loss became infinite or NaN at iteration={iteration}!"]
        for rank, (values, batch) in enumerate(comm.all_gather((bad, self._batch))):
            names = ", ".join(f"{x['sample_id']} ('{x['file_name']}')" for x in batch)
            found = ", ".join(f"{key} = {value}" for key, value in values.items())
            lines.append(f"rank {rank}: {found or 'all losses finite'}; samples {names}")
        return "\n".join(lines) + "\n"
