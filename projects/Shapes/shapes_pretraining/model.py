"""Masked data modelling for the library's encoder, with attributes per patch."""

from typing import Dict, List, Tuple

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from igvg_d2.data.synthetic.render import SHAPES
from igvg_d2.data.synthetic.scene import COLORS, SIZES
from igvg_d2.modeling import VisionLanguageBackbone, build_vl_backbone

from .initialization import initialize_locally
from .neighbors import NeighborHead
from .scenes import MAX_OBJECTS

ATTRIBUTES = {"shape": len(SHAPES), "color": len(COLORS), "size": len(SIZES)}
# Numbers of targets that are told apart: 0, 1, 2, 3, more.
COUNTS = 5
PAD_ID = 1
# Weights of the losses of patches.
WEIGHTS = {
    "loss_shape": 3.0,
    "loss_color": 1.5,
    "loss_size": 1.5,
    "loss_boxes": 2.0,
    "loss_cells": 1.0,
}


@META_ARCH_REGISTRY.register()
class BEiT3Pretraining(nn.Module):
    """Trains a vision-language backbone to restore what was hidden from image and text.

    * Every patch tells shape, colour and size of the object it shows (or that none is there), its
      box, and which of the patch's cells belong to it, also where the object was painted over.
    * With a weight for it: the patch also tells which shapes and colours lie left, right, above
      and below of its object, and which one of its like it is, counted from each side.
    * Every masked word is told.
    * The end token tells shape, colour and size of the objects that the expression means, and CLS
      how many there are.
    * With a weight for it only: every patch tells whether the expression refers to its object; and
      in the two layers before the last, the end token points to the patches that are meant, so that
      the text knows where to look before the patches have to.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: VisionLanguageBackbone,
        vocab_size: int,
        cells: int,
        pixel_mean: Tuple[float, ...],
        pixel_std: Tuple[float, ...],
        hidden_weight: float,
        weights: Dict[str, float],
        listening_layers: int = 0,
    ):
        """
        Args:
            backbone: to be trained.
            vocab_size: rows of its word table.
            cells: cells along the side of a patch whose membership is predicted.
            pixel_mean, pixel_std: per channel, in the scale of the input image.
            hidden_weight: weight of a patch of a hidden object, relative to others.
            weights: of "loss_words", "loss_targets", "loss_count", "loss_directions", "loss_ranks",
                "loss_referred" and "loss_pointer".
            listening_layers: see :func:`initialize_locally`.
        """
        super().__init__()
        self.backbone = backbone
        initialize_locally(backbone, listening_layers)
        self.cells = cells
        self.hidden_weight = hidden_weight
        self.weights = {**WEIGHTS, **weights}
        dim, kinds = backbone.embed_dim, sum(ATTRIBUTES.values())
        self.splits = [n + 1 for n in ATTRIBUTES.values()] + [4, cells * cells]
        self.patch_head = nn.Linear(dim, sum(self.splits))
        self.word_head = nn.Linear(dim, vocab_size)
        if weights["loss_directions"]:
            self.neighbor_head = NeighborHead(dim)
        self.target_head = nn.Linear(dim, kinds)
        self.count_head = nn.Linear(dim, COUNTS)
        if weights["loss_referred"]:
            self.referred_head = nn.Linear(dim, 1)
        self.pointers = nn.ModuleList()
        self._middle: List[Tuple[torch.Tensor, torch.Tensor]] = []
        if weights["loss_pointer"]:
            for layer in backbone.encoder.layers[-3:-1]:
                self.pointers.append(Pointer(dim))
                layer.register_forward_hook(lambda *call: self._middle.append(call[2]))
        for name, value in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(value).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg):
        options = cfg.MODEL.PRETRAINING
        return {
            "backbone": build_vl_backbone(cfg),
            "vocab_size": cfg.MODEL.BEIT3.VOCAB_SIZE,
            "cells": options.CELLS,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "listening_layers": options.LISTENING_LAYERS,
            "hidden_weight": options.HIDDEN_WEIGHT,
            "weights": {
                "loss_words": options.WORDS_WEIGHT,
                "loss_targets": options.TARGETS_WEIGHT,
                "loss_count": options.COUNT_WEIGHT,
                "loss_directions": options.NEIGHBORS_WEIGHT,
                "loss_ranks": options.NEIGHBORS_WEIGHT,
                "loss_referred": options.REFERRED_WEIGHT,
                "loss_pointer": options.POINTER_WEIGHT,
            },
        }

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: List[Dict[str, torch.Tensor]]) -> Dict[str, torch.Tensor]:
        """
        Args:
            batched_inputs: one dict per sample with
                * "image": uint8 (3, H, W); "objects": uint8 (H, W), the visible object's index,
                  ``MAX_OBJECTS`` = none; "attributes": int64 (MAX_OBJECTS, 3);
                * "text_ids": int64 (L,); "word_labels": int64 (L,), -1 = not masked;
                * "hidden", "referred": bool (MAX_OBJECTS,);
                * "whole": bool scalar, nothing is hidden or masked.

        Returns:
            weighted scalar losses.
        """
        images = self._stack(batched_inputs, "image").float()
        images = (images - self.pixel_mean) / self.pixel_std
        text_ids = _pad([x["text_ids"] for x in batched_inputs], PAD_ID).to(self.device)
        labels = _pad([x["word_labels"] for x in batched_inputs], -1).to(self.device)
        padding = text_ids == PAD_ID
        self._middle.clear()
        features = self.backbone(images, text_ids, padding)
        objects = self._stack(batched_inputs, "objects").long()
        attributes = self._stack(batched_inputs, "attributes")
        hidden = self._stack(batched_inputs, "hidden")
        grid = features.image["last_feat"]
        losses = self._patch_losses(grid, objects, attributes, hidden)
        losses["loss_words"] = self._word_loss(features.text, labels)
        ends = (~padding).sum(dim=1) - 1
        rows = torch.arange(len(ends), device=ends.device)
        end_tokens = features.text[rows, ends]
        referred = self._stack(batched_inputs, "referred")
        losses["loss_targets"] = self._target_loss(end_tokens, attributes, referred)
        counts = referred.sum(dim=1).clamp(max=COUNTS - 1)
        losses["loss_count"] = F.cross_entropy(self.count_head(features.pooled), counts)
        whole = self._stack(batched_inputs, "whole")
        meant = (objects, referred, whole, grid.shape[-1])
        if self.weights["loss_referred"]:
            logits = self.referred_head(grid.flatten(2).transpose(1, 2))[..., 0]
            losses["loss_referred"] = self._referred_loss(logits, *meant)
        for pointer, (image, text) in zip(self.pointers, self._middle):
            loss = self._referred_loss(pointer(image[:, 1:], text[rows, ends]), *meant)
            losses["loss_pointer"] = losses.get("loss_pointer", 0.0) + loss
        self._middle.clear()
        return {key: value * self.weights[key] for key, value in losses.items()}

    def _stack(self, batched_inputs, key: str) -> torch.Tensor:
        """One tensor of the samples' entries, on the model's device."""
        return torch.stack([x[key] for x in batched_inputs]).to(self.device, non_blocking=True)

    def _word_loss(self, text: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy at masked words; 0 without any."""
        masked = labels >= 0
        logits = self.word_head(text[masked])
        return F.cross_entropy(logits, labels[masked], reduction="sum") / masked.sum().clamp(min=1)

    def _target_loss(self, tokens, attributes, referred) -> torch.Tensor:
        """Cross-entropy against the shares of shapes, colours, sizes among the targets."""
        share = referred.float() / referred.sum(dim=1, keepdim=True).clamp(min=1)
        total = 0.0
        logits = self.target_head(tokens).split(list(ATTRIBUTES.values()), dim=1)
        for k, (part, kinds) in enumerate(zip(logits, ATTRIBUTES.values())):
            one_hot = F.one_hot(attributes[..., k].clamp(min=0), kinds).float()
            wanted = (one_hot * share[..., None]).sum(dim=1)
            total = total - (wanted * part.log_softmax(dim=1)).sum(dim=1).mean()
        return total

    def _referred_loss(self, logits, objects, referred, whole, columns: int) -> torch.Tensor:
        """Binary cross-entropy per object, in samples whose expression is whole.

        Every object counts the same whatever its size, as in gIoU, and the background counts as one
        that is never meant.

        Args:
            logits: float (N, h * w), per patch.
            objects: int64 (N, H, W), ``MAX_OBJECTS`` is the background.
            referred: bool (N, MAX_OBJECTS).
            whole: bool (N,).
            columns: w.
        """
        shown = F.one_hot(objects, MAX_OBJECTS + 1).permute(0, 3, 1, 2).float()
        shares = F.avg_pool2d(shown, objects.shape[-1] // columns).flatten(2)
        wanted = (shares * F.pad(referred, (0, 1))[..., None]).sum(dim=1)
        area = shares.sum(dim=2, keepdim=True)
        weight = (shares / area.clamp(min=1e-6)).sum(dim=1) * whole[:, None]
        error = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        return (error * weight).sum() / weight.sum().clamp(min=1)

    def _patch_losses(self, grid, objects, attributes, hidden) -> Dict[str, torch.Tensor]:
        """
        Args:
            grid: float (N, C, h, w), token grid.
            objects: int64 (N, H, W).
            attributes: int64 (N, MAX_OBJECTS, 3).
            hidden: bool (N, MAX_OBJECTS).
        """
        n, _, h, w = grid.shape
        patch = objects.shape[-1] // w
        seen = F.one_hot(objects, MAX_OBJECTS + 1)[..., :MAX_OBJECTS].permute(0, 3, 1, 2).float()
        fine = F.avg_pool2d(seen, patch // self.cells)
        shares = F.avg_pool2d(fine, self.cells).flatten(2).transpose(1, 2)  # (N, h * w, K)
        outputs = self.patch_head(grid.flatten(2).transpose(1, 2)).split(self.splits, dim=2)
        weight = 1.0 + (self.hidden_weight - 1.0) * (shares * hidden[:, None]).sum(dim=2)
        weight = weight / weight.sum()
        losses = {}
        for k, (name, kinds) in enumerate(ATTRIBUTES.items()):
            one_hot = F.one_hot(attributes[..., k].clamp(min=0), kinds).float()
            wanted = shares @ one_hot
            wanted = torch.cat([wanted, 1.0 - wanted.sum(dim=2, keepdim=True)], dim=2)
            entropy = -(wanted * outputs[k].log_softmax(dim=2)).sum(dim=2)
            losses[f"loss_{name}"] = (entropy * weight).sum()
        best, owner = shares.max(dim=2)
        has_object = best > 0.1
        count = has_object.sum().clamp(min=1)
        boxes = object_boxes(objects)
        wanted = boxes.gather(1, owner[..., None].expand(-1, -1, 4))
        middles = cell_middles(h, w, grid.device)
        wanted = torch.cat([wanted[..., :2] - middles, wanted[..., 2:]], dim=2)
        error = F.smooth_l1_loss(outputs[3], wanted * 4, reduction="none", beta=0.1).sum(dim=2)
        losses["loss_boxes"] = (error * has_object).sum() / count
        if self.weights["loss_directions"]:
            patches = grid.flatten(2).transpose(1, 2)
            shown = (patches, owner, has_object.float())
            losses.update(self.neighbor_head.losses(*shown, boxes[..., :2], attributes))
        # (N, K, h, c, w, c) -> the owner's cells (N, h * w, c * c)
        cells = fine.view(n, MAX_OBJECTS, h, self.cells, w, self.cells)
        cells = cells.permute(0, 2, 4, 1, 3, 5).flatten(4).flatten(1, 2)
        index = owner[..., None, None].expand(-1, -1, 1, cells.shape[-1])
        wanted = cells.gather(2, index)[:, :, 0]
        error = F.binary_cross_entropy_with_logits(outputs[4], wanted, reduction="none")
        losses["loss_cells"] = (error.mean(dim=2) * has_object).sum() / count * 2
        return losses


class Pointer(nn.Module):
    """Tells by a product of end token and patch whether the patch is meant."""

    def __init__(self, dim: int, width: int = 64):
        """
        Args:
            dim: C.
            width: of the space in which both are compared.
        """
        super().__init__()
        self.text = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width))
        self.image = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, width))
        self.bias = nn.Parameter(torch.tensor(-1.5))

    def forward(self, patches: torch.Tensor, end_tokens: torch.Tensor) -> torch.Tensor:
        """float (N, S, C) and (N, C) -> logits (N, S)."""
        product = self.image(patches) @ self.text(end_tokens)[..., None]
        return product[..., 0] / patches.shape[-1] ** 0.5 + self.bias


def cell_middles(h: int, w: int, device) -> torch.Tensor:
    """Float (h * w, 2): (x, y) of the patches' middles over the image's sides."""
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    middles = torch.stack([(x + 0.5) / w, (y + 0.5) / h], dim=2).flatten(0, 1)
    return middles.to(device)


def object_boxes(objects: torch.Tensor) -> torch.Tensor:
    """Boxes of the visible objects.

    Args:
        objects: int64 (N, H, W), indices; ``MAX_OBJECTS`` = background.

    Returns:
        float (N, MAX_OBJECTS, 4): (center x, center y, width, height) over the image's sides; of an
        object that is not there 0.
    """
    seen = F.one_hot(objects, MAX_OBJECTS + 1)[..., :MAX_OBJECTS].bool()
    parts = []
    for axis in (1, 2):
        line = seen.any(dim=axis)  # (N, length, K)
        length = line.shape[1]
        there = line.any(dim=1)
        first = line.float().argmax(dim=1)
        last = length - line.flip(1).float().argmax(dim=1)
        center = (first + last) / 2 / length * there
        extent = (last - first) / length * there
        parts.append((center, extent))
    (x, width), (y, height) = parts
    return torch.stack([x, y, width, height], dim=2)


def _pad(rows: List[torch.Tensor], value: int) -> torch.Tensor:
    """Rows of different lengths as one int64 (N, longest)."""
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
