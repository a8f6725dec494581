"""Ground truth of a batch as padded tensors, so that no component loops over samples."""

from dataclasses import dataclass, replace
from typing import List, Optional, Tuple

import torch
import torch.nn.functional as F
from detectron2.structures import Instances

from .effective_batch import BatchTotals


@dataclass
class SceneTargets:
    """What is seen where in N pictures, whether it is referred to or not, network frame.

    Attributes:
        categories: uint8 (N, H, W), 0 = background, else 1 + category of the object.
        instances: uint8 (N, H, W), 0 = background, else 1 + index of the object.
        num_objects: largest number of objects of a picture, at least 1.
    """

    categories: torch.Tensor
    instances: torch.Tensor
    num_objects: int

    def category_shares(self, num_classes: int, size: Tuple[int, int]) -> torch.Tensor:
        """Share of the background (0) and of each category in every cell of a grid.

        Args:
            num_classes: C, with the background.
            size: (h, w), divisors of (H, W).

        Returns:
            float (N, h * w, C).
        """
        return _shares(self.categories, num_classes, size)

    def object_shares(self, size: Tuple[int, int]) -> torch.Tensor:
        """Share of each object in every cell of a grid.

        Args:
            size: (h, w), divisors of (H, W).

        Returns:
            float (N, h * w, num_objects).
        """
        return _shares(self.instances, self.num_objects + 1, size)[..., 1:]

    def object_centers(self) -> Tuple[torch.Tensor, torch.Tensor]:
        """Where the objects are, network frame.

        Returns:
            float (N, num_objects, 2), centres (x, y) of the visible boxes divided by (W, H), the
            middle for an object that is not seen; and float (N, num_objects), 1 if it is seen.
        """
        n, height, width = self.instances.shape
        k = self.num_objects + 1
        x = torch.arange(width, device=self.instances.device).expand(height, width)
        y = torch.arange(height, device=self.instances.device)[:, None].expand(height, width)
        centers = []
        for place, length in ((x, width), (y, height)):
            # Which object is seen in which column (row); the same place is written many times.
            index = place * k + self.instances
            seen = torch.zeros(n, length * k, device=index.device)
            seen = seen.scatter_(1, index.flatten(1), 1.0).view(n, length, k)[..., 1:]
            first = seen.argmax(dim=1)
            last = length - seen.flip(1).argmax(dim=1)
            centers.append((first + last) / (2 * length))
        return torch.stack(centers, dim=-1), seen.amax(dim=1)


def _shares(labels: torch.Tensor, num_labels: int, size: Tuple[int, int]) -> torch.Tensor:
    """Share of every label in the cells of a grid, by counting.

    Args:
        labels: uint8 (N, H, W), each below num_labels.
        num_labels: S.
        size: (h, w).

    Returns:
        float (N, h * w, S).

    Raises:
        ValueError: cells of unequal size.
    """
    n, height, width = labels.shape
    h, w = size
    if height % h or width % w:
        raise ValueError(
            f"The scene is {height} x {width} pixels, which a grid of {h} x {w} cells does not "
            "divide evenly; make INPUT.IMAGE_SIZE a multiple of the stride of 'stem_words'."
        )
    rows = torch.arange(height, device=labels.device) // (height // h)
    columns = torch.arange(width, device=labels.device) // (width // w)
    index = (rows[:, None] * w + columns) * num_labels + labels
    counts = torch.zeros(n, h * w * num_labels, device=labels.device)
    one = counts.new_ones(1).expand(n, height * width)
    counts.scatter_add_(1, index.flatten(1), one)
    return counts.view(n, h * w, num_labels) * (h * w / (height * width))


@dataclass
class GroundingTargets:
    """Targets of N samples, padded to the largest number of targets T (at least 1).

    Attributes:
        boxes: float (N, T, 4), (cx, cy, w, h) divided by the network input's (W, H, W, H).
        masks: float (N, T, H, W) in {0, 1}, network frame.
        valid: bool (N, T), False = padding.
        num_targets: list of N ints; 0 for a no-target sample.
        scene: all objects of the pictures; None if nothing reads them.
        totals: of the effective batch that the samples are a part of; default: they are all of it.
    """

    boxes: torch.Tensor
    masks: torch.Tensor
    valid: torch.Tensor
    num_targets: List[int]
    scene: Optional[SceneTargets] = None
    totals: Optional[BatchTotals] = None

    def __post_init__(self):
        if self.totals is None:
            self.totals = BatchTotals(self.valid.sum(dim=1).float())

    @classmethod
    def from_instances(cls, instances: List[Instances], device: torch.device) -> "GroundingTargets":
        """Pad and move ground truth in one transfer per field.

        Args:
            instances: N ``Instances`` of one image size with ``gt_boxes`` (XYXY pixels, network
                frame) and ``gt_masks`` (BitMasks); either may be empty.
            device: where the tensors are wanted.
        """
        counts = [len(x) for x in instances]
        n, t = len(instances), max([1, *counts])
        height, width = instances[0].image_size
        boxes = torch.zeros(n, t, 4)
        masks = torch.zeros(n, t, height, width)
        valid = torch.zeros(n, t, dtype=torch.bool)
        scale = torch.tensor([width, height, width, height], dtype=torch.float32)
        for i, (count, x) in enumerate(zip(counts, instances)):
            if count:
                corners = x.gt_boxes.tensor / scale
                boxes[i, :count, :2] = (corners[:, :2] + corners[:, 2:]) / 2
                boxes[i, :count, 2:] = corners[:, 2:] - corners[:, :2]
                masks[i, :count] = x.gt_masks.tensor
                valid[i, :count] = True
        return cls(
            boxes.to(device, non_blocking=True),
            masks.to(device, non_blocking=True),
            valid.to(device, non_blocking=True),
            counts,
        )

    @property
    def no_target(self) -> torch.Tensor:
        """bool (N,): True where the expression refers to nothing."""
        return ~self.valid.any(dim=1)

    @property
    def union_masks(self) -> torch.Tensor:
        """float (N, 1, H, W) in {0, 1}: union of a sample's masks, zero for no target."""
        return self.masks.amax(dim=1, keepdim=True)

    def resize_masks(self, size) -> "GroundingTargets":
        """The same targets with masks averaged over areas to (height, width) ``size``."""
        masks = F.interpolate(self.masks, size=tuple(size), mode="area")
        return replace(self, masks=masks)

    def num_boxes(self) -> torch.Tensor:
        """float scalar to divide sums over targets by, see :class:`BatchTotals`."""
        return self.totals.num_boxes()
