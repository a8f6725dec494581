"""Ground truth of a batch as padded tensors, so that no component loops over samples.

Losses are divided by numbers of the effective batch, all micro-batches of all processes that one
optimizer step learns from. A step averages the losses of its parts, so it has the gradient of the
whole batch only if every part divides by the number of the whole, over the number of parts.
"""

from dataclasses import dataclass, replace
from typing import Any, Dict, List, Optional, Sequence

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from detectron2.utils import comm

from .losses import masked_mean
from .transfer import to_device


@dataclass(frozen=True)
class BatchTotals:
    """What losses are divided by; it depends on the ground truth alone.

    Attributes:
        num_targets: float (samples,), targets of every sample of the effective batch.
        parts: micro-batches times processes.
        num_masks: float (samples,), how many of the targets have a mask; default: all.
    """

    num_targets: torch.Tensor
    parts: int = 1
    num_masks: Optional[torch.Tensor] = None

    def __post_init__(self):
        if self.num_masks is None:
            object.__setattr__(self, "num_masks", self.num_targets)

    @classmethod
    def count(
        cls, micro_batches: Sequence[List[Dict[str, Any]]], device: torch.device
    ) -> "BatchTotals":
        """Totals of an effective batch; the processes exchange them, so all have to call it.

        Args:
            micro_batches: training inputs of this process with "instances" (on the CPU), in
                micro-batches of one size; all processes have as many of the same size.
            device: where the totals are wanted; nothing waits for it.
        """
        found = [sample["instances"] for batch in micro_batches for sample in batch]
        num_targets = torch.tensor([len(x) for x in found])
        num_masks = torch.stack([_has_mask(x).sum() for x in found])
        totals = to_device(torch.stack([num_targets, num_masks]).float(), device)
        world_size = comm.get_world_size()
        if world_size > 1:
            gathered = [torch.empty_like(totals) for _ in range(world_size)]
            torch.distributed.all_gather(gathered, totals)
            totals = torch.cat(gathered, dim=1)
        return cls(totals[0], parts=len(micro_batches) * world_size, num_masks=totals[1])

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

    def whole_samples(self) -> torch.Tensor:
        """float scalar: samples of which every target has a mask, those without target too."""
        return (self.num_masks == self.num_targets).sum().float()

    def mask_queries(self, num_queries: int) -> torch.Tensor:
        """float (2,): matches with a mask, and unmatched queries of `whole_samples`.

        Args:
            num_queries: Q.
        """
        unmatched = num_queries - self.num_targets.clamp(max=num_queries)
        unmatched = unmatched * (self.num_masks == self.num_targets)
        return torch.stack([self.num_masks.clamp(max=num_queries).sum(), unmatched.sum()])


@dataclass
class GroundingTargets:
    """Targets of N samples, padded to the largest number of targets T (at least 1).

    Attributes:
        boxes: float (N, T, 4), (cx, cy, w, h) divided by the network input's (W, H, W, H).
        masks: float (N, T, H, W) in {0, 1}, network frame.
        valid: bool (N, T), False = padding.
        num_targets: list of N ints; 0 for a no-target sample.
        totals: of the effective batch that the samples are a part of; default: they are all of it.
        has_mask: bool (N, T), False also for targets with a box only; default: ``valid``.
    """

    boxes: torch.Tensor
    masks: torch.Tensor
    valid: torch.Tensor
    num_targets: List[int]
    totals: Optional[BatchTotals] = None
    has_mask: Optional[torch.Tensor] = None

    def __post_init__(self):
        if self.has_mask is None:
            self.has_mask = self.valid
        if self.totals is None:
            counts = [x.sum(dim=1).float() for x in (self.valid, self.has_mask)]
            self.totals = BatchTotals(counts[0], num_masks=counts[1])

    @classmethod
    def from_instances(cls, instances: List[Instances], device: torch.device) -> "GroundingTargets":
        """Pad and move ground truth in one transfer per field.

        Args:
            instances: N ``Instances`` of one image size with ``gt_boxes`` (XYXY pixels, network
                frame), ``gt_masks`` (BitMasks), both may be empty, and optionally ``gt_has_mask``
                (bool), by default all True.
            device: where the tensors are wanted.
        """
        counts = [len(x) for x in instances]
        n, t = len(instances), max([1, *counts])
        height, width = instances[0].image_size
        boxes = torch.zeros(n, t, 4)
        masks = torch.zeros(n, t, height, width, dtype=torch.bool)
        valid, has_mask = torch.zeros(2, n, t, dtype=torch.bool)
        scale = torch.tensor([width, height, width, height], dtype=torch.float32)
        for i, (count, x) in enumerate(zip(counts, instances)):
            if count:
                corners = x.gt_boxes.tensor / scale
                boxes[i, :count, :2] = (corners[:, :2] + corners[:, 2:]) / 2
                boxes[i, :count, 2:] = corners[:, 2:] - corners[:, :2]
                masks[i, :count] = x.gt_masks.tensor
                valid[i, :count] = True
                has_mask[i, :count] = _has_mask(x)
        # Masks travel as a byte per pixel.
        tensors = (to_device(x, device) for x in (boxes, masks, valid, has_mask))
        boxes, masks, valid, has_mask = tensors
        return cls(boxes, masks.float(), valid, counts, has_mask=has_mask)

    @property
    def no_target(self) -> torch.Tensor:
        """bool (N,): True where the expression refers to nothing."""
        return ~self.valid.any(dim=1)

    @property
    def whole(self) -> torch.Tensor:
        """bool (N,): every target has a mask, so the union is known; True for no target."""
        return (self.has_mask == self.valid).all(dim=1)

    @property
    def union_masks(self) -> torch.Tensor:
        """float (N, 1, H, W) in {0, 1}: union of a sample's masks, zero for no target."""
        return self.masks.amax(dim=1, keepdim=True)

    def mean_over_whole(self, values: torch.Tensor) -> torch.Tensor:
        """Mean of losses float (N, ...) of union masks over the samples that have one."""
        count = self.totals.per_part(self.totals.whole_samples())
        return masked_mean(values.reshape(len(values), -1).mean(dim=1), self.whole, count)

    def resize_masks(self, size) -> "GroundingTargets":
        """The same targets with masks averaged over areas to (height, width) ``size``."""
        masks = F.interpolate(self.masks, size=tuple(size), mode="area")
        return replace(self, masks=masks)

    def num_boxes(self) -> torch.Tensor:
        """float scalar to divide sums over targets by, see :class:`BatchTotals`."""
        return self.totals.num_boxes()


def _has_mask(instances: Instances) -> torch.Tensor:
    """bool (T,): which targets of a sample have a mask."""
    if instances.has("gt_has_mask"):
        return instances.gt_has_mask
    return torch.ones(len(instances), dtype=torch.bool)
