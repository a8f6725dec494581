"""Global segmentation and the no-target branch (Section 3, Eq. 5 second and fourth term)."""

from typing import Dict, Optional, Tuple

import torch
from detectron2.config import configurable
from torch import nn

from .losses import (
    NUM_POINTS,
    dice_loss,
    mask_bce_loss,
    sample_masks,
    weighted_cross_entropy,
)
from .targets import GroundingTargets
from .transformer import MLP


class GlobalHead(nn.Module):
    """One union mask per sample, and whether there is a target at all."""

    @configurable
    def __init__(
        self,
        *,
        mask_dim: int,
        pooled_dim: int,
        mask_on: bool,
        loss_weight: float,
        no_target_weight: float,
        no_target_class_weights: Tuple[float, float],
        no_target_input: str,
        align_corners: bool,
        mask_weight: float = 1.0,
        dice_weight: float = 1.0,
        num_points: int = 0,
    ):
        """
        Args:
            mask_dim: channels of the mask features.
            pooled_dim: C, channels of the backbone's pooled feature.
            mask_on: predict and supervise the union mask.
            loss_weight: lambda_global.
            no_target_weight: lambda_exist.
            no_target_class_weights: (target, no target).
            no_target_input: "pixels" or "pixels+pooled".
            align_corners: mode of the up-sampling of masks to the targets' resolution.
            mask_weight, dice_weight: of binary cross-entropy and Dice inside L_seg.
            num_points: random points per mask in place of all pixels; 0 = pixels.

        Raises:
            ValueError: unknown ``no_target_input``.
        """
        super().__init__()
        if no_target_input not in ("pixels", "pixels+pooled"):
            raise ValueError(
                "MODEL.GLOBAL_HEAD.NO_TARGET_INPUT must be 'pixels' or 'pixels+pooled', got "
                f"{no_target_input!r}."
            )
        self.mask_weight = loss_weight * mask_weight
        self.dice_weight = loss_weight * dice_weight
        self.no_target_weight = no_target_weight
        self.align_corners = align_corners
        self.num_points = num_points
        self.predictor = nn.Conv2d(mask_dim, 1, kernel_size=1) if mask_on else None
        self.no_target = MLP(mask_dim, mask_dim, 2, num_layers=3)
        self.no_target_pooled = None
        if no_target_input == "pixels+pooled":
            self.no_target_pooled = MLP(pooled_dim, pooled_dim, 2, num_layers=2)
        self.register_buffer(
            "class_weights", torch.tensor(no_target_class_weights), persistent=False
        )

    @classmethod
    def from_config(cls, cfg, mask_dim: int, pooled_dim: int):
        head = cfg.MODEL.GLOBAL_HEAD
        return {
            "mask_dim": mask_dim,
            "pooled_dim": pooled_dim,
            "mask_on": head.MASK_ON,
            "loss_weight": head.LOSS_WEIGHT,
            "no_target_weight": head.NO_TARGET_WEIGHT,
            "no_target_class_weights": head.NO_TARGET_CLASS_WEIGHTS,
            "no_target_input": head.NO_TARGET_INPUT,
            "align_corners": cfg.MODEL.IGVG.ALIGN_CORNERS,
            "num_points": NUM_POINTS if cfg.MODEL.IGVG.MASK_LOSS_RESOLUTION == "points" else 0,
        }

    def forward(
        self,
        mask_features: torch.Tensor,
        pooled: torch.Tensor,
        targets: Optional[GroundingTargets] = None,
    ) -> Tuple[Dict[str, Optional[torch.Tensor]], Dict[str, torch.Tensor]]:
        """
        Args:
            mask_features: float (N, mask_dim, Hm, Wm).
            pooled: float (N, C).
            targets: N samples, or None at inference.

        Returns:
            outputs: "sem_seg" float (N, 1, Hm, Wm) logits, None if switched off;
            "no_target_logits" float (N, 2), class 0 = target present, 1 = no target.
            losses: "loss_sem_seg", "loss_sem_seg_dice", "loss_no_target"; empty without targets.
        """
        sem_seg = self.predictor(mask_features) if self.predictor is not None else None
        # The last linear layer commutes with the mean over pixels, so the mean comes first.
        pixels = mask_features.flatten(2).transpose(1, 2)
        no_target_logits = self.no_target.layers[-1](self.no_target.hidden(pixels).mean(dim=1))
        if self.no_target_pooled is not None:
            no_target_logits = no_target_logits + self.no_target_pooled(pooled)
        outputs = {"sem_seg": sem_seg, "no_target_logits": no_target_logits}
        return outputs, {} if targets is None else self.losses(outputs, targets)

    def losses(self, outputs, targets: GroundingTargets) -> Dict[str, torch.Tensor]:
        """Weighted losses; no-target samples have an empty mask, unknown ones no mask loss."""
        total_weight = (self.class_weights * targets.totals.samples()).sum() / targets.totals.parts
        no_target = weighted_cross_entropy(
            outputs["no_target_logits"], targets.no_target.long(), self.class_weights, total_weight
        )
        losses = {"loss_no_target": self.no_target_weight * no_target}
        if outputs["sem_seg"] is not None:
            union = targets.union_masks
            first = torch.zeros(len(union), 1, dtype=torch.int64, device=union.device)
            logits, union = sample_masks(
                outputs["sem_seg"], union, first, self.num_points, self.align_corners
            )
            bce = targets.mean_over_whole(mask_bce_loss(logits, union))
            dice = targets.mean_over_whole(dice_loss(logits, union))
            losses["loss_sem_seg"] = self.mask_weight * bce
            losses["loss_sem_seg_dice"] = self.dice_weight * dice
        return losses
