"""Loss terms as pure functions. All compute in float32, also under autocast.

Letters: N samples, M masks, H x W pixels (legend in ``igvg_d2/modeling/__init__.py``).
"""

from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from detectron2.projects.point_rend.point_features import (
    get_uncertain_point_coords_with_randomness,
    point_sample,
)

# Points per mask, on 320 x 320 pixels 2.6 times as dense as Mask2Former's 112 * 112 on 1024 x 1024
# (Cheng et al., CVPR 2022, Section 3.3); as there: candidates per point, share of uncertain ones.
NUM_POINTS = 56 * 56
OVERSAMPLE_RATIO = 3.0
IMPORTANCE_SAMPLE_RATIO = 0.75


def dice_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Dice loss of each mask, with add-one smoothing.

    ``1 - (2 * sum(p * g) + 1) / (sum(p) + sum(g) + 1)`` with p = sigmoid(logits), so an empty
    target that is predicted empty costs nothing.

    Args:
        logits: float (..., H, W).
        targets: float (..., H, W) in [0, 1].

    Returns:
        float (...), in [0, 1).
    """
    p = logits.float().sigmoid().flatten(-2)
    g = targets.float().flatten(-2)
    return 1 - (2 * (p * g).sum(-1) + 1) / (p.sum(-1) + g.sum(-1) + 1)


def mask_bce_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of each mask, averaged over its pixels.

    Args:
        logits: float (..., H, W).
        targets: float (..., H, W) in [0, 1].

    Returns:
        float (...).
    """
    loss = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    return loss.flatten(-2).mean(-1)


def resize_logits(logits: torch.Tensor, size, align_corners: bool) -> torch.Tensor:
    """Masks at the resolution of their targets, bilinear.

    Args:
        logits: float (N, M, h, w).
        size: (H, W).
        align_corners: see ``torch.nn.functional.interpolate``.

    Returns:
        float32 (N, M, H, W).
    """
    logits = logits.float()
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)


def sample_masks(
    logits: torch.Tensor,
    masks: torch.Tensor,
    index: torch.Tensor,
    num_points: int,
    align_corners: bool,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Masks and targets at random points (PointRend, Kirillov et al., CVPR 2020, Section 3.1).

    Every mask has points of its own: most are the least certain of a larger number, the rest are
    uniform. They come from PyTorch's generator of the device, so they repeat with its seed.

    Args:
        logits: float (N, M, h, w).
        masks: float (N, T, H, W) in [0, 1], targets.
        index: int64 (N, M) in [0, T), the target of each mask.
        num_points: P; 0 takes all pixels.
        align_corners: at the centers of a target's pixels, logits are those of
            :func:`resize_logits`.

    Returns:
        logits and targets, both float32 (N, M, P, 1) and bilinear; of all pixels (N, M, H, W).
    """
    n, m = index.shape
    height, width = masks.shape[-2:]
    if not num_points:
        pixels = index[..., None, None].expand(-1, -1, height, width)
        return resize_logits(logits, (height, width), align_corners), masks.gather(1, pixels)
    logits = logits.float().flatten(0, 1)[:, None]
    with torch.no_grad():
        points = get_uncertain_point_coords_with_randomness(
            logits, lambda x: -x.abs(), num_points, OVERSAMPLE_RATIO, IMPORTANCE_SAMPLE_RATIO
        )
        # Of all targets of the sample: copies of whole masks for each query are larger.
        targets = point_sample(
            masks, points.view(n, m, num_points, 2), align_corners=False, padding_mode="border"
        )
        targets = targets.gather(1, index[:, None, :, None].expand(-1, 1, -1, num_points))
        if align_corners:
            # From shares of the sides to shares of the way between the centers of outer pixels.
            x, y = points.unbind(-1)
            x, y = (x * width - 0.5) / max(width - 1, 1), (y * height - 0.5) / max(height - 1, 1)
            points = torch.stack([x, y], dim=-1)
    logits = point_sample(logits, points, align_corners=align_corners, padding_mode="border")
    return logits.view(n, m, num_points, 1), targets.view(n, m, num_points, 1)


def masked_mean(
    values: torch.Tensor, mask: torch.Tensor, count: Optional[torch.Tensor] = None
) -> torch.Tensor:
    """Mean of ``values`` where ``mask`` is True; 0 (with gradient) where it is nowhere.

    Args:
        values: float (...).
        mask: bool, same shape.
        count: float scalar to divide the sum by; default: the number of True, at least 1.

    Returns:
        float scalar.
    """
    values = values.float()
    weight = mask.to(values.dtype)
    if count is None:
        count = weight.sum().clamp(min=1.0)
    return (values * weight).sum() / count


def weighted_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    class_weights: torch.Tensor,
    total_weight: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """Cross-entropy averaged with the weight of each entry's class: sum(w * ce) / sum(w).

    Args:
        logits: float (..., K).
        labels: int64 (...) in [0, K).
        class_weights: float (K,).
        total_weight: float scalar in place of sum(w).

    Returns:
        float scalar.
    """
    logits, labels, weight = logits.float().flatten(0, -2), labels.flatten(), class_weights.float()
    if total_weight is None:
        return F.cross_entropy(logits, labels, weight=weight)
    return F.cross_entropy(logits, labels, weight=weight, reduction="sum") / total_weight


def cxcywh_to_xyxy(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes float (..., 4) from (cx, cy, w, h) to (x1, y1, x2, y2), same units."""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([center - half, center + half], dim=-1)


def generalized_iou(boxes1: torch.Tensor, boxes2: torch.Tensor) -> torch.Tensor:
    """GIoU of boxes under broadcasting (Rezatofighi et al., CVPR 2019).

    fvcore's and torchvision's paired versions index by boolean masks, a device synchronisation, and
    torchvision's all-pairs version knows no batch dimension; hence this one.

    Args:
        boxes1, boxes2: float (..., 4) as (x1, y1, x2, y2), broadcastable.

    Returns:
        float (...), in [-1, 1]. 1e-6 is added to both denominators.
    """
    overlap = torch.minimum(boxes1[..., 2:], boxes2[..., 2:]) - torch.maximum(
        boxes1[..., :2], boxes2[..., :2]
    )
    hull = torch.maximum(boxes1[..., 2:], boxes2[..., 2:]) - torch.minimum(
        boxes1[..., :2], boxes2[..., :2]
    )
    intersection = overlap.clamp(min=0).prod(-1)
    areas = [(b[..., 2:] - b[..., :2]).prod(-1) for b in (boxes1, boxes2)]
    union = areas[0] + areas[1] - intersection
    hull_area = hull.prod(-1)
    return intersection / (union + 1e-6) - (hull_area - union) / (hull_area + 1e-6)
