"""Detection and instance-segmentation losses (Eq. 5, first and third term; Eq. 6)."""

from typing import Dict, Optional

import torch
from detectron2.config import configurable
from torch import nn

from ..losses import (
    NUM_POINTS,
    cxcywh_to_xyxy,
    dice_loss,
    generalized_iou,
    mask_bce_loss,
    masked_mean,
    sample_masks,
    weighted_cross_entropy,
)
from ..targets import GroundingTargets
from .matcher import PointGuidedMatcher


class GroundingCriterion(nn.Module):
    """Weighted losses of all decoder layers; keys do not depend on the data."""

    @configurable
    def __init__(
        self,
        *,
        matcher: PointGuidedMatcher,
        loss_weight: float,
        class_weight: float,
        no_object_weight: float,
        aux_weights: str,
        negative_weight: float,
        align_corners: bool,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        deep_supervision: bool = True,
        instance_weight: float = 1.0,
        mask_weight: float = 1.0,
        dice_weight: float = 1.0,
        num_points: int = 0,
    ):
        """
        Args:
            matcher: assigns queries to targets.
            loss_weight: lambda_rec of Eq. 5.
            class_weight, l1_weight, giou_weight: of the terms of L_detr.
            no_object_weight: class weight of "no object" in the cross-entropy.
            aux_weights: of L_detr on the other layers: the "same" as on the last, or "ones".
            deep_supervision: L_detr on every decoder layer, not only on the last.
            instance_weight: lambda_instance of Eq. 5.
            negative_weight: lambda_neg of Eq. 6; at 0 the losses have no such terms.
            mask_weight, dice_weight: of binary cross-entropy and Dice inside L_seg.
            align_corners: mode of the up-sampling of masks to the targets' resolution.
            num_points: random points per mask in place of all pixels; 0 = pixels.

        Raises:
            ValueError: unknown ``aux_weights``.
        """
        super().__init__()
        if aux_weights not in ("same", "ones"):
            raise ValueError(
                f"MODEL.GROUNDING_HEAD.AUX_WEIGHTS must be 'same' or 'ones', got {aux_weights!r}."
            )
        self.matcher = matcher
        self.align_corners = align_corners
        self.num_points = num_points
        self.deep_supervision = deep_supervision
        terms = {"ce": class_weight, "bbox": l1_weight, "giou": giou_weight}
        aux_terms = terms if aux_weights == "same" else dict.fromkeys(terms, 1.0)
        self.det_weights = {key: loss_weight * value for key, value in terms.items()}
        self.aux_weights = {key: loss_weight * value for key, value in aux_terms.items()}
        self.mask_weights = {
            "mask": instance_weight * mask_weight,
            "dice": instance_weight * dice_weight,
        }
        if negative_weight > 0:
            self.mask_weights.update(
                {f"{key}_neg": negative_weight * v for key, v in self.mask_weights.items()}
            )
        self.register_buffer(
            "class_weights", torch.tensor([1.0, no_object_weight]), persistent=False
        )

    @classmethod
    def from_config(cls, cfg):
        head = cfg.MODEL.GROUNDING_HEAD
        return {
            "matcher": PointGuidedMatcher(cfg),
            "loss_weight": head.LOSS_WEIGHT,
            "class_weight": head.CLASS_WEIGHT,
            "no_object_weight": head.NO_OBJECT_WEIGHT,
            "aux_weights": head.AUX_WEIGHTS,
            "negative_weight": head.NEGATIVE_WEIGHT,
            "align_corners": cfg.MODEL.IGVG.ALIGN_CORNERS,
            "num_points": NUM_POINTS if cfg.MODEL.IGVG.MASK_LOSS_RESOLUTION == "points" else 0,
        }

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
        if not self.deep_supervision:
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
        """Unweighted terms of Eq. 6: means over matched and over unmatched queries.

        Targets without mask are left out, and with them all unmatched queries of their sample.
        ``masks`` float (N, Q, Hm, Wm) logits, ``assigned`` int64 (N, Q).
        """
        matched = assigned >= 0
        index = assigned.clamp(min=0)
        unmatched = ~matched & targets.whole[:, None]
        matched = matched & targets.has_mask.gather(1, index)
        masks, target_masks = sample_masks(
            masks, targets.masks, index, self.num_points, self.align_corners
        )
        target_masks = target_masks * matched[..., None, None]
        bce, dice = mask_bce_loss(masks, target_masks), dice_loss(masks, target_masks)
        counts = targets.totals.per_part(targets.totals.mask_queries(assigned.shape[1]))
        terms = {
            "mask": masked_mean(bce, matched, counts[0]),
            "dice": masked_mean(dice, matched, counts[0]),
        }
        if "mask_neg" in self.mask_weights:
            terms["mask_neg"] = masked_mean(bce, unmatched, counts[1])
            terms["dice_neg"] = masked_mean(dice, unmatched, counts[1])
        return terms
