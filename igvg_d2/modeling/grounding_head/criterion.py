"""Detection and instance-segmentation losses (Eq. 5, first and third term; Eq. 6)."""

from typing import Dict, Optional

import torch
import torch.nn.functional as F
from torch import nn

from ..losses import (
    cxcywh_to_xyxy,
    dice_loss,
    generalized_iou,
    mask_bce_loss,
    masked_mean,
    weighted_cross_entropy,
)
from ..targets import GroundingTargets
from .matcher import PointGuidedMatcher


class GroundingCriterion(nn.Module):
    """Weighted losses of all decoder layers; keys do not depend on the data."""

    def __init__(
        self,
        matcher: PointGuidedMatcher,
        det_weights: Dict[str, float],
        aux_weights: Dict[str, float],
        no_object_weight: float,
        mask_weights: Optional[Dict[str, float]],
        align_corners: bool,
    ):
        """
        Args:
            matcher: assigns queries to targets.
            det_weights: final weights of "ce", "bbox", "giou" on the last layer.
            aux_weights: the same for the other layers; empty without deep supervision.
            no_object_weight: class weight of "no object" in the cross-entropy.
            mask_weights: final weights of "mask", "dice" (matched queries) and "mask_neg",
                "dice_neg" (unmatched ones; left out if lambda_neg is 0); None without masks.
            align_corners: mode of the up-sampling of masks to the targets' resolution.
        """
        super().__init__()
        self.matcher = matcher
        self.det_weights = det_weights
        self.aux_weights = aux_weights
        self.mask_weights = mask_weights
        self.align_corners = align_corners
        self.register_buffer(
            "class_weights", torch.tensor([1.0, no_object_weight]), persistent=False
        )

    def extra_repr(self) -> str:
        return f"det={self.det_weights}, aux={self.aux_weights}, masks={self.mask_weights}"

    def forward(
        self,
        logits: torch.Tensor,
        boxes: torch.Tensor,
        points: torch.Tensor,
        masks: Optional[torch.Tensor],
        targets: GroundingTargets,
    ) -> Dict[str, torch.Tensor]:
        """
        Args:
            logits: float (layers, N, Q, 2); the last layer is the prediction.
            boxes: float (layers, N, Q, 4), (cx, cy, w, h) in [0, 1].
            points: float (N, Q, 2), selected points.
            masks: float (N, Q, Hm, Wm) logits of the last layer, or None.
            targets: N samples; any of them, or all, may have no target.

        Returns:
            "loss_ce", "loss_bbox", "loss_giou" (and "_0", "_1", ... for the other layers),
            "loss_mask", "loss_dice", "loss_mask_neg", "loss_dice_neg".
        """
        if not self.aux_weights:
            logits, boxes = logits[-1:], boxes[-1:]
        assigned = self.matcher(logits, boxes, points, targets)
        num_boxes = targets.num_boxes()
        losses = {}
        last = len(logits) - 1
        for layer in range(last + 1):
            weights = self.det_weights if layer == last else self.aux_weights
            suffix = "" if layer == last else f"_{layer}"
            terms = self.detection_terms(
                logits[layer], boxes[layer], assigned[layer], targets, num_boxes
            )
            losses.update({f"loss_{k}{suffix}": weights[k] * v for k, v in terms.items()})
        if masks is not None:
            terms = self.mask_terms(masks, assigned[-1], targets)
            losses.update({f"loss_{k}": self.mask_weights[k] * v for k, v in terms.items()})
        return losses

    def detection_terms(self, logits, boxes, assigned, targets, num_boxes):
        """Unweighted "ce", "bbox", "giou" of one layer; ``assigned`` int64 (N, Q)."""
        matched = assigned >= 0
        counts = targets.totals.queries(assigned.shape[1])
        total_weight = (self.class_weights * counts).sum() / targets.totals.parts
        ce = weighted_cross_entropy(logits, (~matched).long(), self.class_weights, total_weight)
        index = assigned.clamp(min=0)[..., None].expand(-1, -1, 4)
        target_boxes = targets.boxes.gather(1, index)
        boxes = boxes.float()
        l1 = (boxes - target_boxes).abs().sum(-1)
        giou = generalized_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes))
        weight = matched.to(l1.dtype) / num_boxes
        return {"ce": ce, "bbox": (l1 * weight).sum(), "giou": ((1 - giou) * weight).sum()}

    def mask_terms(self, masks, assigned, targets):
        """Unweighted terms of Eq. 6: means over matched and over unmatched queries."""
        size = targets.masks.shape[-2:]
        masks = masks.float()
        if masks.shape[-2:] != size:
            masks = F.interpolate(
                masks, size=size, mode="bilinear", align_corners=self.align_corners
            )
        matched = assigned >= 0
        index = assigned.clamp(min=0)[..., None, None].expand(-1, -1, *size)
        target_masks = targets.masks.gather(1, index) * matched[..., None, None]
        bce, dice = mask_bce_loss(masks, target_masks), dice_loss(masks, target_masks)
        counts = targets.totals.per_part(targets.totals.queries(assigned.shape[1]))
        terms = {
            "mask": masked_mean(bce, matched, counts[0]),
            "dice": masked_mean(dice, matched, counts[0]),
        }
        if "mask_neg" in self.mask_weights:
            terms["mask_neg"] = masked_mean(bce, ~matched, counts[1])
            terms["dice_neg"] = masked_mean(dice, ~matched, counts[1])
        return terms
