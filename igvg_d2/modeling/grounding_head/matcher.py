"""Point-guided target matcher (Section 3.1.2, Eq. 4)."""

import numpy as np
import torch
from detectron2.config import configurable
from torch import nn

from ..losses import cxcywh_to_xyxy, generalized_iou
from ..targets import GroundingTargets
from ..transfer import to_device

# In place of a cost that is no number.
_WORST_COST = 1e9


class PointGuidedMatcher(nn.Module):
    """Hungarian assignment of queries to targets that also looks at the reference points.

    The match of a query to a box is its match to that box's instance mask (query-instance matcher).
    """

    @configurable
    def __init__(
        self,
        *,
        point_weight: float,
        class_cost: str,
        class_weight: float = 1.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
    ):
        """
        Args:
            point_weight, class_weight, l1_weight, giou_weight: lambda_point, lambda_cls,
                lambda_box, lambda_giou of Eq. 4.
            class_cost: "ce" (the paper) or "prob", the negative probability (the release).

        Raises:
            ValueError: unknown class cost.
        """
        super().__init__()
        if class_cost not in ("ce", "prob"):
            raise ValueError(f"MATCHER.CLASS_COST must be 'ce' or 'prob', got {class_cost!r}.")
        self.class_weight = class_weight
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight
        self.point_weight = point_weight
        self.class_cost = class_cost

    @classmethod
    def from_config(cls, cfg):
        matcher = cfg.MODEL.GROUNDING_HEAD.MATCHER
        return {"point_weight": matcher.POINT_WEIGHT, "class_cost": matcher.CLASS_COST}

    def extra_repr(self) -> str:
        return (
            f"class={self.class_weight} ({self.class_cost}), l1={self.l1_weight}, "
            f"giou={self.giou_weight}, point={self.point_weight}"
        )

    @torch.no_grad()
    def forward(
        self,
        logits: torch.Tensor,
        boxes: torch.Tensor,
        points: torch.Tensor,
        targets: GroundingTargets,
    ) -> torch.Tensor:
        """Match every decoder layer on its own; one device-to-host copy in all.

        Args:
            logits: float (layers, N, Q, 2), class 0 = target.
            boxes: float (layers, N, Q, 4), (cx, cy, w, h) in [0, 1].
            points: float (N, Q, 2), selected points before any shift.
            targets: N samples.

        Returns:
            int64 (layers, N, Q) on the device of ``logits``: index of the matched target, -1 for
            none. Every sample has min(Q, its targets) matches.
        """
        # Imported here, because it would take 7% of the time of ``import igvg_d2``.
        from scipy.optimize import linear_sum_assignment

        cost = self.cost(logits, boxes, points, targets).cpu().numpy()
        # The solver refuses NaN with an error that names nothing; the losses, NaN as well, are
        # reported with iteration and samples.
        cost = np.nan_to_num(cost, nan=_WORST_COST, posinf=_WORST_COST, neginf=-_WORST_COST)
        assigned = torch.full(logits.shape[:3], -1, dtype=torch.int64)
        for layer in range(cost.shape[0]):
            for sample, count in enumerate(targets.num_targets):
                if count:
                    rows, columns = linear_sum_assignment(cost[layer, sample, :, :count])
                    assigned[layer, sample, rows] = torch.from_numpy(columns)
        return to_device(assigned, logits.device)

    def cost(self, logits, boxes, points, targets: GroundingTargets) -> torch.Tensor:
        """Eq. 4 for all pairs: float (layers, N, Q, T); padded targets' columns mean nothing."""
        log_prob = logits.float().log_softmax(-1)[..., :1]
        class_cost = -log_prob if self.class_cost == "ce" else -log_prob.exp()
        pred, target = boxes.float()[..., None, :], targets.boxes[:, None]
        l1_cost = (pred - target).abs().sum(-1)
        giou_cost = -generalized_iou(cxcywh_to_xyxy(pred), cxcywh_to_xyxy(target))
        point_cost = (points.float()[..., None, :] - target[..., :2]).abs().sum(-1)
        return (
            self.class_weight * class_cost
            + self.l1_weight * l1_cost
            + self.giou_weight * giou_cost
            + self.point_weight * point_cost
        )
