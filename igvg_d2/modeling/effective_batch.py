"""The batch that one optimizer step learns from: all micro-batches of all processes.

Some losses are divided by a number that depends on the data, such as the number of targets. A step
averages the losses of its parts, so it has the gradient of the whole batch only if every part
divides by the number of the whole, over the number of parts. The totals here are those numbers.
They are known before the first part is computed, because they depend on the ground truth alone.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Dict, Iterator, List, Optional, Sequence

import torch
from detectron2.utils import comm


@dataclass(frozen=True)
class BatchTotals:
    """What losses are divided by.

    Attributes:
        num_targets: float (samples,), targets of every sample of the effective batch.
        parts: micro-batches times processes.
        background: float (samples,), share of each picture without any object; None if unknown.
    """

    num_targets: torch.Tensor
    parts: int = 1
    background: Optional[torch.Tensor] = None

    def per_part(self, total: torch.Tensor) -> torch.Tensor:
        """Divisor of a part's sum, given a total of the effective batch, of which 1 at least."""
        return total.clamp(min=1.0) / self.parts

    def num_boxes(self) -> torch.Tensor:
        """float scalar: divisor of sums over targets."""
        return self.per_part(self.num_targets.sum())

    def samples(self) -> torch.Tensor:
        """float (2,): samples with and without a target in the effective batch."""
        absent = (self.num_targets == 0).sum()
        return torch.stack([len(self.num_targets) - absent, absent]).float()

    def queries(self, num_queries: int) -> torch.Tensor:
        """float (2,): matched and unmatched queries; a sample has min(Q, its targets) matches.

        Args:
            num_queries: Q.
        """
        matched = self.num_targets.clamp(max=num_queries).sum()
        return torch.stack([matched, len(self.num_targets) * num_queries - matched])


class _EffectiveBatch:
    """Micro-batches of a step, and their totals as soon as a model asks for them."""

    def __init__(self, micro_batches: Sequence[List[Dict]]):
        self.micro_batches = micro_batches
        self.totals: Optional[BatchTotals] = None

    def count(self, device: torch.device) -> BatchTotals:
        """Counted, and exchanged among the processes, once."""
        if self.totals is None:
            self.totals = _count(self.micro_batches, device)
        return self.totals


_current: List[_EffectiveBatch] = []


@contextmanager
def effective_batch(micro_batches: Sequence[List[Dict]]) -> Iterator[None]:
    """Within it, :func:`batch_totals` describes all of these micro-batches.

    Args:
        micro_batches: training inputs of this process, in micro-batches of one size. All processes
            have as many of the same size.
    """
    _current.append(_EffectiveBatch(micro_batches))
    try:
        yield
    finally:
        _current.pop()


def batch_totals(batched_inputs: List[Dict], device: torch.device) -> BatchTotals:
    """Totals of the effective batch that some training inputs belong to.

    Outside of :func:`effective_batch` they are one of the micro-batches, one per process. The
    processes exchange numbers, so all of them have to call it.

    Args:
        batched_inputs: samples with "instances" and perhaps "scene_categories" (on the CPU), see
            ``IGVG.forward``.
        device: where the totals are wanted; nothing waits for it.
    """
    if _current:
        return _current[-1].count(device)
    return _count([batched_inputs], device)


def _count(micro_batches: Sequence[List[Dict]], device: torch.device) -> BatchTotals:
    """See :func:`batch_totals`."""
    samples = [sample for micro_batch in micro_batches for sample in micro_batch]
    columns = [torch.tensor([float(len(sample["instances"])) for sample in samples])]
    has_scenes = all("scene_categories" in sample for sample in samples)
    if has_scenes:
        empty = [(sample["scene_categories"] == 0).float().mean() for sample in samples]
        columns.append(torch.stack(empty))
    table = torch.stack(columns).to(device, non_blocking=True)
    world_size = comm.get_world_size()
    if world_size > 1:
        tables = [torch.empty_like(table) for _ in range(world_size)]
        torch.distributed.all_gather(tables, table)
        table = torch.cat(tables, dim=1)
    return BatchTotals(
        num_targets=table[0],
        parts=len(micro_batches) * world_size,
        background=table[1] if has_scenes else None,
    )
