"""From network outputs to predictions in the original image (paper, Appendix D)."""

from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from detectron2.layers import nms
from detectron2.structures import Boxes, Instances

from .losses import cxcywh_to_xyxy


@dataclass(frozen=True)
class PostprocessOptions:
    """Options of :func:`grounding_postprocess`; see ``MODEL.IGVG.TEST`` for their meaning.

    Attributes:
        score_thresh: queries are kept from this score on.
        mask_thresh: pixels are foreground from this probability on.
        output_mask: "merge", "instance" or "global".
        weight_scores: multiply class scores by the target-present probability.
        mask_resize: "logits" or "binary".
        no_target_test: "softmax" or "sigmoid0".
        align_corners: bilinear mode of the resize to the network frame ("binary" only).
        nms_thresh: of two boxes with a larger IoU only the better one keeps its score; 1 = off.
    """

    score_thresh: float
    mask_thresh: float
    output_mask: str
    mask_resize: str
    no_target_test: str
    align_corners: bool
    weight_scores: bool = True
    nms_thresh: float = 1.0

    def __post_init__(self):
        known = {
            "output_mask": ("merge", "instance", "global"),
            "mask_resize": ("logits", "binary"),
            "no_target_test": ("softmax", "sigmoid0"),
        }
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}.")


def grounding_postprocess(
    outputs: Dict[str, Optional[torch.Tensor]],
    network_size: Tuple[int, int],
    original_sizes: List[Tuple[int, int]],
    options: PostprocessOptions,
    frame_sizes: Optional[List[Sequence[int]]] = None,
) -> List[Dict]:
    """Scores, thresholds, and boxes and masks at the original resolution.

    Args:
        outputs: "no_target_logits" (N, 2), "sem_seg" (N, 1, Hm, Wm) or None, and, if there is an
            instance branch, "pred_logits", "pred_boxes", "pred_masks", "pred_points" (see
            ``GROUNDING_HEAD_REGISTRY``) and optionally "attention_map" (N, Hi, Wi).
        network_size: (H, W) of the network input.
        original_sizes: (height, width) of each original image.
        options: thresholds and modes.
        frame_sizes: of each image, sides of the square frames in which the union mask is made too.

    Returns:
        N dicts in the original frame: "instances" (kept queries by descending score), "candidates"
        (all queries), both ``Instances`` with pred_boxes, scores, pred_classes, pred_masks (bool),
        pred_points (pixels); "mask" bool (height, width); "sem_seg" float (1, height, width) logits
        if there is a global mask; "no_target" bool; "no_target_score" float scalar;
        "attention_map" float (Hi, Wi) if there is one; for `frame_sizes` "resized_masks"
        {size: bool (size, size)}, "mask" made in that frame from the logits in the same way as in
        the original one, not from the mask there.
    """
    present = _present_probability(outputs["no_target_logits"], options.no_target_test)
    results = []
    for i, size in enumerate(original_sizes):
        result = {"no_target_score": 1 - present[i]}
        global_mask = None
        if outputs["sem_seg"] is not None:
            logits = outputs["sem_seg"][i]
            result["sem_seg"] = _resize_logits(logits, size)
            global_mask = _resize_masks(logits, network_size, size, options)[0]
        candidates, order = _candidates(outputs, i, present[i], network_size, size, options)
        # In float64, as the official GREC script: a float32 0.7 is below 0.7.
        kept = candidates.scores.double() >= options.score_thresh
        result["candidates"] = candidates
        result["instances"] = candidates[kept]
        if "pred_logits" in outputs:
            result["no_target"] = not bool(kept.any())
        else:
            result["no_target"] = bool(present[i] < 0.5)
        masks = result["instances"].pred_masks
        result["mask"] = _merge(global_mask, masks, options.output_mask)
        if frame_sizes is not None and frame_sizes[i]:
            kept = order[kept]
            result["resized_masks"] = {
                frame: _frame_mask(outputs, i, kept, network_size, frame, options)
                for frame in frame_sizes[i]
            }
        if outputs.get("attention_map") is not None:
            result["attention_map"] = outputs["attention_map"][i]
        results.append(result)
    return results


def _present_probability(logits: torch.Tensor, mode: str) -> torch.Tensor:
    """float (N,): probability that a target is present."""
    logits = logits.float()
    return logits.softmax(-1)[:, 0] if mode == "softmax" else logits[:, 0].sigmoid()


def _frame_mask(outputs, index, kept, network_size, frame, options) -> torch.Tensor:
    """Union mask bool (frame, frame) of the kept queries and the global mask of one sample."""
    size = (frame, frame)
    global_mask = None
    if outputs["sem_seg"] is not None:
        global_mask = _resize_masks(outputs["sem_seg"][index], network_size, size, options)[0]
    masks = torch.zeros(0, *size, dtype=torch.bool, device=kept.device)
    if outputs.get("pred_masks") is not None and len(kept):
        masks = _resize_masks(outputs["pred_masks"][index][kept], network_size, size, options)
    return _merge(global_mask, masks, options.output_mask)


def _candidates(outputs, index, present, network_size, size, options):
    """All queries of one sample by descending score, and their order; empty without that branch."""
    height, width = size
    candidates = Instances(size)
    if "pred_logits" not in outputs:
        device = present.device
        candidates.pred_boxes = Boxes(torch.zeros(0, 4, device=device))
        candidates.scores = torch.zeros(0, device=device)
        candidates.pred_classes = torch.zeros(0, dtype=torch.int64, device=device)
        candidates.pred_masks = torch.zeros(0, height, width, dtype=torch.bool, device=device)
        candidates.pred_points = torch.zeros(0, 2, device=device)
        return candidates, candidates.pred_classes
    scores = outputs["pred_logits"][index].float().softmax(-1)[:, 0]
    if options.weight_scores:
        scores = scores * present
    scale = scores.new_tensor([width, height])
    boxes = Boxes(cxcywh_to_xyxy(outputs["pred_boxes"][index].float()) * scale.repeat(2))
    # First, as the release does: what lies outside of the image decides no suppression.
    boxes.clip(size)
    if options.nms_thresh < 1.0:
        # Suppressed queries stay, because their points count for CoverAcc_all, but with score 0.
        best = nms(boxes.tensor, scores, options.nms_thresh)
        scores = torch.zeros_like(scores).scatter(0, best, scores[best])
    scores, order = scores.sort(descending=True, stable=True)
    candidates.pred_boxes = boxes[order]
    candidates.scores = scores
    candidates.pred_classes = torch.zeros_like(order)
    masks = outputs["pred_masks"]
    if masks is None:
        candidates.pred_masks = torch.zeros(
            len(order), height, width, dtype=torch.bool, device=scores.device
        )
    else:
        candidates.pred_masks = _resize_masks(masks[index][order], network_size, size, options)
    candidates.pred_points = outputs["pred_points"][index][order] * scale
    return candidates, order


def _resize_logits(logits: torch.Tensor, size, align_corners: bool = False) -> torch.Tensor:
    """float (M, Hm, Wm) -> float (M, *size), bilinear."""
    return F.interpolate(
        logits[None].float(), size=tuple(size), mode="bilinear", align_corners=align_corners
    )[0]


def _resize_masks(logits, network_size, size, options: PostprocessOptions) -> torch.Tensor:
    """Logits float (M, Hm, Wm) -> bool masks (M, *size)."""
    if options.mask_resize == "logits":
        return _resize_logits(logits, size).sigmoid() >= options.mask_thresh
    masks = _resize_logits(logits, network_size, options.align_corners).sigmoid()
    masks = masks >= options.mask_thresh
    if tuple(size) == tuple(network_size):
        return masks
    return F.interpolate(masks[None].float(), size=tuple(size), mode="nearest")[0] > 0.5


def _merge(global_mask: Optional[torch.Tensor], masks: torch.Tensor, mode: str) -> torch.Tensor:
    """Union of the global mask (H, W) and instance masks (n, H, W), all bool."""
    instances = masks.any(dim=0)
    if global_mask is None or mode == "instance":
        return instances
    return global_mask | instances if mode == "merge" else global_mask
