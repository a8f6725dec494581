"""From network outputs to predictions in the original image (paper, Appendix D)."""

from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from detectron2.layers import nms
from detectron2.structures import Boxes, Instances

from .letterbox import crop_outputs
from .losses import cxcywh_to_xyxy
from .transfer import to_device


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
    content_sizes: Optional[List[Tuple[int, int]]] = None,
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
        content_sizes: (rows, columns) of each image in the top left corner of a padded network
            input; default: nothing is padded.

    Returns:
        N dicts in the original frame: "candidates" (all queries by descending score) and
        "instances" (those kept, a view of the first ones), both ``Instances`` with pred_boxes,
        scores, pred_classes, pred_masks (bool), pred_points (pixels); "mask" bool (height, width);
        "sem_seg" float (1, height, width) logits if there is a global mask; "no_target" bool;
        "no_target_score" float scalar; "attention_map" float (Hi, Wi) if there is one; for
        `frame_sizes` "resized_masks" {size: bool (size, size)}, "mask" made in that frame from the
        logits in the same way as in the original one, not from the mask there.

    Raises:
        FloatingPointError: a score is infinite or NaN, or a box is NaN.
    """
    has_queries = "pred_logits" in outputs
    if not has_queries:
        none = outputs["no_target_logits"].new_zeros(len(original_sizes), 0, 4)
        none = {"pred_logits": none, "pred_boxes": none, "pred_points": none[..., :2]}
        outputs = {**outputs, **none}
    contents = content_sizes or [network_size] * len(original_sizes)
    align_corners = options.align_corners and options.mask_resize == "binary"
    samples = [
        crop_outputs(outputs, i, network_size, content, align_corners)
        for i, content in enumerate(contents)
    ]
    present = _present_probability(outputs["no_target_logits"], options.no_target_test)
    ranked = _rank_queries(samples, present, original_sizes, options)
    results = []
    for i, (sample, size) in enumerate(zip(samples, original_sizes)):
        (candidates, order, count, is_absent), content = ranked[i], contents[i]
        candidates.pred_masks = _instance_masks(sample, order, content, size, options)
        kept = candidates[:count]
        result = {
            "candidates": candidates,
            "instances": kept,
            "no_target": count == 0 if has_queries else is_absent,
            "no_target_score": 1 - present[i],
            "mask": _union_mask(sample, kept.pred_masks, content, size, options),
        }
        if sample["sem_seg"] is not None:
            result["sem_seg"] = _resize_logits(sample["sem_seg"][0], size)
        if frame_sizes is not None and frame_sizes[i]:
            result["resized_masks"] = {}
            for frame in frame_sizes[i]:
                square = (frame, frame)
                masks = _instance_masks(sample, order[:count], content, square, options)
                mask = _union_mask(sample, masks, content, square, options)
                result["resized_masks"][frame] = mask
        if sample.get("attention_map") is not None:
            result["attention_map"] = sample["attention_map"][0]
        results.append(result)
    return results


def _to_host(values: torch.Tensor) -> torch.Tensor:
    """The one copy of a batch, float (N, K), that waits for the device.

    Raises:
        FloatingPointError: a value is infinite or NaN; it would pass for "no target".
    """
    values = values.cpu()
    is_finite = values.isfinite().all(dim=1).tolist()
    if not all(is_finite):
        raise FloatingPointError(
            f"The model's scores or boxes of sample {is_finite.index(False)} of the batch are "
            "infinite or NaN: look for such numbers in MODEL.WEIGHTS and in the image."
        )
    return values


def _present_probability(logits: torch.Tensor, mode: str) -> torch.Tensor:
    """float (N,): probability that a target is present."""
    logits = logits.float()
    return logits.softmax(-1)[:, 0] if mode == "softmax" else logits[:, 0].sigmoid()


def _rank_queries(samples, present, sizes, options: PostprocessOptions):
    """All queries of each sample by descending score, without masks yet.

    Returns:
        (candidates, order int64 (Q,), how many are kept, a target is improbable) of each sample.
    """
    scores = torch.cat([x["pred_logits"] for x in samples]).float().softmax(-1)[..., 0]
    if options.weight_scores:
        scores = scores * present[:, None]
    limits = torch.tensor([[width, height] * 2 for height, width in sizes], dtype=torch.float32)
    limits = to_device(limits, scores.device)[:, None]
    corners = cxcywh_to_xyxy(torch.cat([x["pred_boxes"] for x in samples]).float()) * limits
    # Clipped first, as in the release: suppression looks at what is inside of the image.
    corners = corners.clamp(min=0).minimum(limits)
    points = torch.cat([x["pred_points"] for x in samples]) * limits[..., :2]
    host = _to_host(torch.cat([present[:, None], scores, corners.flatten(1)], dim=1))
    num_queries = scores.shape[1]
    host_present, host_scores, host_boxes = host.split([1, num_queries, 4 * num_queries], dim=1)
    if options.nms_thresh < 1.0:
        # Suppressed queries stay, because their points count for CoverAcc_all, but with score 0.
        for boxes, values in zip(host_boxes.unflatten(1, (num_queries, 4)), host_scores):
            best = nms(boxes, values, options.nms_thresh)
            values.copy_(torch.zeros_like(values).scatter(0, best, values[best]))
    host_scores, host_order = host_scores.sort(descending=True, stable=True)
    # In float64, as the official GREC script: a float32 0.7 is below 0.7.
    counts = (host_scores.double() >= options.score_thresh).sum(dim=1).tolist()
    is_absent = (host_present[:, 0] < 0.5).tolist()
    scores, order = (to_device(x, corners.device) for x in (host_scores, host_order))
    ranked = []
    for i, size in enumerate(sizes):
        candidates = Instances(tuple(size))
        candidates.pred_boxes = Boxes(corners[i][order[i]])
        candidates.scores = scores[i]
        candidates.pred_classes = torch.zeros_like(order[i])
        candidates.pred_points = points[i][order[i]]
        ranked.append((candidates, order[i], counts[i], is_absent[i]))
    return ranked


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


def _instance_masks(sample, order, content_size, size, options) -> torch.Tensor:
    """Masks bool (n, *size) of the queries ``order`` int64 (n,); empty ones without a mask head."""
    if sample.get("pred_masks") is None or not len(order):
        return torch.zeros(len(order), *size, dtype=torch.bool, device=order.device)
    return _resize_masks(sample["pred_masks"][0][order], content_size, size, options)


def _union_mask(sample, masks, content_size, size, options) -> torch.Tensor:
    """Union bool ``size`` of the global mask and instance masks (n, *size), as is asked for."""
    instances = masks.any(dim=0)
    if sample["sem_seg"] is None or options.output_mask == "instance":
        return instances
    global_mask = _resize_masks(sample["sem_seg"][0], content_size, size, options)[0]
    return global_mask | instances if options.output_mask == "merge" else global_mask
