"""Auxiliary objectives for a stem trained from scratch: what is where, and which words fit."""

from typing import Any, Dict, List, Optional

import torch
import torch.nn.functional as F
from torch import nn

from .backbone.build import VisionLanguageBackbone, VLFeatures
from .scene_losses import center_loss, object_loss
from .targets import GroundingTargets, SceneTargets


class SceneHead(nn.Module):
    """Teaches the text-free features of a :class:`WordStem` to see; used in training only.

    The paper's encoder has seen millions of pictures before. A tiny one has not, and from masks of
    referred objects alone it is slow to tell a star from a cross. Two signals that are in the
    official files teach it sooner: all objects of ``instances.json`` (their categories, and where
    they are), and the words of the expression, to be predicted from the targets' pixels.
    """

    def __init__(
        self,
        dim: int,
        category_weight: float,
        num_categories: int,
        word_weight: float,
        vocab_size: int,
        center_weight: float = 0.0,
        object_weight: float = 0.0,
    ):
        """
        Args:
            dim: C, channels of "stem_words".
            category_weight: weight of the category loss.
            num_categories: K.
            word_weight: weight of the word loss.
            vocab_size: V.
            center_weight, object_weight: weights of the losses on the stem's objects.

        Raises:
            ValueError: a category loss without categories.
        """
        super().__init__()
        if category_weight > 0 and num_categories < 1:
            raise ValueError(
                "MODEL.SCENE_HEAD.CATEGORY_WEIGHT needs MODEL.SCENE_HEAD.NUM_CATEGORIES, the "
                "number of categories in instances.json."
            )
        self.category_weight = category_weight
        self.word_weight = word_weight
        self.center_weight = center_weight
        self.object_weight = object_weight
        self.category: Optional[nn.Linear] = None
        if category_weight > 0:
            self.category = nn.Linear(dim, num_categories + 1)
        if word_weight > 0:
            # A word is in few expressions; so the loss starts near its floor.
            self.word_bias = nn.Parameter(torch.full((vocab_size,), -4.0))

    @property
    def needs_scene(self) -> bool:
        """Whether :meth:`read_scene` is to be called for the targets."""
        return self.category is not None or self.center_weight > 0

    def read_scene(
        self, batched_inputs: List[Dict[str, Any]], device: torch.device
    ) -> SceneTargets:
        """Stack the scenes of a batch; sizes are read on the CPU, so that no device is waited for.

        Args:
            batched_inputs: N samples with "scene_categories" and "scene_instances".
            device: where the tensors are wanted.

        Raises:
            ValueError: a category the head does not have, which would silently teach nothing; names
                the option and the value it needs at least.
        """
        categories = torch.stack([x["scene_categories"] for x in batched_inputs])
        instances = torch.stack([x["scene_instances"] for x in batched_inputs])
        largest = int(categories.max())
        if self.category is not None and largest >= self.category.out_features:
            raise ValueError(
                f"MODEL.SCENE_HEAD.NUM_CATEGORIES is {self.category.out_features - 1}, but a "
                f"picture has an object of category {largest - 1} (from 0); set it to the number "
                "of categories in instances.json."
            )
        return SceneTargets(
            categories=categories.to(device, non_blocking=True),
            instances=instances.to(device, non_blocking=True),
            num_objects=max(1, int(instances.max())),
        )

    def forward(
        self,
        backbone: VisionLanguageBackbone,
        vl_features: VLFeatures,
        text_ids: torch.Tensor,
        targets: GroundingTargets,
    ) -> Dict[str, torch.Tensor]:
        """
        Args:
            backbone: compares regions with words.
            vl_features: with "stem_words" float (N, C, h, w).
            text_ids: int64 (N, L).
            targets: with scene categories if they have a weight.

        Returns:
            "loss_category", "loss_words", "loss_center" and "loss_object", weighted, those that are
            switched on.
        """
        features = vl_features.image["stem_words"]
        losses = {}
        if self.category is not None:
            losses["loss_category"] = self.category_weight * self.category_loss(features, targets)
        if self.word_weight > 0:
            losses["loss_words"] = self.word_weight * self.word_loss(
                backbone, features, text_ids, vl_features.text_padding_mask, targets
            )
        if self.center_weight > 0:
            center = center_loss(vl_features.objects, targets.scene)
            losses["loss_center"] = self.center_weight * center
        if self.object_weight > 0:
            losses["loss_object"] = self.object_weight * object_loss(vl_features.objects, targets)
        return losses

    def category_loss(self, features: torch.Tensor, targets: GroundingTargets) -> torch.Tensor:
        """Cross-entropy per cell against the share of each category in it.

        Objects and background weigh the same, however little of the picture the objects cover.

        Args:
            features: float (N, C, h, w).
            targets: with a scene, network frame.
        """
        log_probs = self.category(features.permute(0, 2, 3, 1)).float().log_softmax(-1)
        share = targets.scene.category_shares(log_probs.shape[-1], features.shape[-2:])
        share = share.view_as(log_probs)
        cross_entropy = -(log_probs * share).sum(-1)
        background = share[..., 0]
        totals, cells = targets.totals, background[0].numel()
        shares = background.mean(dim=(1, 2)) if totals.background is None else totals.background
        return sum(
            (cross_entropy * part).sum() / totals.per_part(count.sum() * cells)
            for part, count in ((background, shares), (1 - background, 1 - shares))
        )

    def word_loss(self, backbone, features, text_ids, text_padding_mask, targets) -> torch.Tensor:
        """Binary cross-entropy over the vocabulary, summed; mean over samples with a target.

        Args:
            backbone: has ``word_logits``.
            features: float (N, C, h, w).
            text_ids, text_padding_mask: int64 and bool (N, L), True = padding.
            targets: masks in the network frame.
        """
        area = F.interpolate(targets.union_masks, size=features.shape[-2:], mode="area")
        total = area.sum(dim=(2, 3)).clamp(min=1e-4)
        region = (features.float() * area).sum(dim=(2, 3)) / total
        logits = backbone.word_logits(region[:, None])[:, 0].float() + self.word_bias
        # Summed, because padding adds 0 to an id that a word may have marked; then the sign.
        present = torch.zeros_like(logits)
        present = present.scatter_add(1, text_ids, (~text_padding_mask).to(logits.dtype)).sign()
        loss = F.binary_cross_entropy_with_logits(logits, present, reduction="none").sum(dim=1)
        has_target = (~targets.no_target).to(loss.dtype)
        return (loss * has_target).sum() / targets.totals.per_part(targets.totals.samples()[0])


def build_scene_head(cfg, backbone: VisionLanguageBackbone) -> Optional[SceneHead]:
    """Build the head if one of its weights is positive, else None.

    Raises:
        ValueError: the backbone or the data lack what a weight needs; names the keys.
    """
    head = cfg.MODEL.SCENE_HEAD
    weights = (head.CATEGORY_WEIGHT, head.WORD_WEIGHT, head.CENTER_WEIGHT, head.OBJECT_WEIGHT)
    if max(weights) <= 0:
        return None
    shapes = backbone.output_shape()
    if "stem_words" not in shapes:
        raise ValueError(
            "MODEL.SCENE_HEAD needs a backbone with the feature 'stem_words' (set "
            f"MODEL.BEIT3.STEM_CHANNELS); this one offers {sorted(shapes)}."
        )
    for key in ("CATEGORY_WEIGHT", "CENTER_WEIGHT"):
        if head[key] > 0 and not cfg.INPUT.SCENE_CATEGORIES:
            raise ValueError(
                f"MODEL.SCENE_HEAD.{key} needs INPUT.SCENE_CATEGORIES True: without it the mapper "
                "hands over the targets only."
            )
    for key in ("CENTER_WEIGHT", "OBJECT_WEIGHT"):
        if head[key] > 0 and cfg.MODEL.BEIT3.STEM_OBJECTS < 1:
            raise ValueError(
                f"MODEL.SCENE_HEAD.{key} needs MODEL.BEIT3.STEM_OBJECTS, a number of objects to "
                "look for."
            )
    return SceneHead(
        dim=shapes["stem_words"].channels,
        category_weight=head.CATEGORY_WEIGHT,
        num_categories=head.NUM_CATEGORIES,
        word_weight=head.WORD_WEIGHT,
        vocab_size=cfg.MODEL.BEIT3.VOCAB_SIZE,
        center_weight=head.CENTER_WEIGHT,
        object_weight=head.OBJECT_WEIGHT,
    )
