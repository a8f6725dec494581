"""From network outputs to predictions in the original image (paper, Appendix D)."""

from dataclasses import dataclass, replace
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from detectron2.layers import nms
from detectron2.structures import Boxes, Instances

from .letterbox import crop_outputs
from .losses import cxcywh_to_xyxy
from .mask_resize import resize_logits, resize_nearest, smallest_logit
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

    @classmethod
    def from_config(cls, cfg) -> "PostprocessOptions":
        """Those of a config."""
        test = cfg.MODEL.IGVG.TEST
        return cls(
            score_thresh=test.SCORE_THRESH_TEST,
            mask_thresh=test.MASK_THRESH_TEST,
            output_mask=test.OUTPUT_MASK,
            mask_resize=test.MASK_RESIZE,
            nms_thresh=test.NMS_THRESH,
            no_target_test=cfg.MODEL.GLOBAL_HEAD.NO_TARGET_TEST,
            align_corners=cfg.MODEL.IGVG.ALIGN_CORNERS,
        )


@dataclass
class RankedOutput:
    """What the model says about one sample before any threshold: small, and masks still logits.

    Attributes:
        candidates: ``Instances`` of the original frame, all queries by descending score, with
            pred_boxes, scores, pred_classes and pred_points (pixels); none without an instance
            branch.
        scores: float32 (Q,), those of the candidates on the host.
        no_target_score: float32 scalar, probability that there is no target.
        no_target: the decision of a model without queries by that score; None with queries, where
            no kept query means no target.
        mask_logits: float (Q, Hm, Wm) in the order of the candidates, None without instance masks.
        sem_seg: float (1, Hm, Wm) logits of the global mask, or None.
        attention_map: float (Hi, Wi), or None.
        content_size: (rows, columns) of the network input that the logits show.
        options: thresholds and modes; the thresholds may be replaced.
    """

    candidates: Instances
    scores: torch.Tensor
    no_target_score: torch.Tensor
    no_target: Optional[bool]
    mask_logits: Optional[torch.Tensor]
    sem_seg: Optional[torch.Tensor]
    attention_map: Optional[torch.Tensor]
    content_size: Tuple[int, int]
    options: PostprocessOptions

    def with_thresholds(
        self, score: Optional[float] = None, mask: Optional[float] = None
    ) -> "RankedOutput":
        """The same under other thresholds of scores and masks; None keeps one."""
        changes = {"score_thresh": score, "mask_thresh": mask}
        changes = {key: float(value) for key, value in changes.items() if value is not None}
        return replace(self, options=replace(self.options, **changes))

    def to_host(self) -> "RankedOutput":
        """A copy on the host, float32, that holds nothing of the batch."""

        def own(value: Optional[torch.Tensor]) -> Optional[torch.Tensor]:
            return None if value is None else value.detach().to("cpu", torch.float32, copy=True)

        found = self.candidates
        candidates = Instances(
            found.image_size,
            pred_boxes=Boxes(own(found.pred_boxes.tensor)),
            scores=own(self.scores),
            pred_classes=torch.zeros(len(found), dtype=torch.int64),
            pred_points=own(found.pred_points),
        )
        tensors = "no_target_score mask_logits sem_seg attention_map".split()
        copies = {name: own(getattr(self, name)) for name in tensors}
        return replace(self, candidates=candidates, scores=candidates.scores, **copies)

    def num_kept(self) -> int:
        """How many candidates, the first ones, reach the threshold."""
        # In float64, as the official GREC script: a float32 0.7 is below 0.7.
        return int((self.scores.double() >= self.options.score_thresh).sum())

    def is_no_target(self) -> bool:
        """The model's decision."""
        return self.num_kept() == 0 if self.no_target is None else self.no_target

    def instances(self, count: int, size: Sequence[int]) -> Instances:
        """The first candidates with pred_masks bool (count, height, width) of the whole image."""
        instances = self.candidates[:count]
        if self.mask_logits is None or not count:
            device = instances.scores.device
            masks = torch.zeros(count, *size, dtype=torch.bool, device=device)
        else:
            masks = self.make_masks(self.mask_logits[:count], size)
        instances.pred_masks = masks
        return instances

    def union_mask(self, masks: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """Union bool ``size`` of global mask and instance masks (n, height, width), as asked."""
        if not self.has_global_mask:
            return masks.any(dim=0)
        mask = self.make_masks(self.sem_seg, size)[0]
        return mask | masks.any(dim=0) if self.options.output_mask == "merge" else mask

    @property
    def has_global_mask(self) -> bool:
        """Whether the global mask is a part of the union."""
        return self.sem_seg is not None and self.options.output_mask != "instance"

    def make_masks(self, logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """Logits float (M, Hm, Wm) of this sample -> bool masks (M, height, width)."""
        options = self.options
        smallest = smallest_logit(options.mask_thresh)
        if options.mask_resize == "logits":
            return resize_logits(logits, size) >= smallest
        masks = resize_logits(logits, self.content_size, options.align_corners) >= smallest
        return resize_nearest(masks, tuple(size))


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
        outputs, network_size, original_sizes, options, content_sizes: see :func:`rank_outputs`.
        frame_sizes: of each image, sides of the square frames in which the union mask is made too.

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
    ranked = rank_outputs(outputs, network_size, original_sizes, options, content_sizes)
    frame_sizes = frame_sizes or [()] * len(ranked)
    return [make_answer(x, frames) for x, frames in zip(ranked, frame_sizes)]


def make_answer(ranked: RankedOutput, frame_sizes: Sequence[int] = ()) -> Dict:
    """The answer about one sample; see :func:`grounding_postprocess`."""
    size = ranked.candidates.image_size
    candidates = ranked.instances(len(ranked.candidates), size)
    kept = candidates[: ranked.num_kept()]
    answer = {
        "candidates": candidates,
        "instances": kept,
        "no_target": ranked.is_no_target(),
        "no_target_score": ranked.no_target_score,
        "mask": ranked.union_mask(kept.pred_masks, size),
    }
    if ranked.sem_seg is not None:
        answer["sem_seg"] = resize_logits(ranked.sem_seg, size)
    if frame_sizes:
        answer["resized_masks"] = resized_masks(ranked, frame_sizes)
    if ranked.attention_map is not None:
        answer["attention_map"] = ranked.attention_map
    return answer


def resized_masks(ranked: RankedOutput, frame_sizes: Sequence[int]) -> Dict[int, torch.Tensor]:
    """{side: union mask bool (side, side)} of kept queries in square frames."""
    count, masks = ranked.num_kept(), {}
    for side in frame_sizes:
        kept = ranked.instances(count, (side, side)).pred_masks
        masks[side] = ranked.union_mask(kept, (side, side))
    return masks


def rank_outputs(
    outputs: Dict[str, Optional[torch.Tensor]],
    network_size: Tuple[int, int],
    original_sizes: List[Tuple[int, int]],
    options: PostprocessOptions,
    content_sizes: Optional[List[Tuple[int, int]]] = None,
) -> List[RankedOutput]:
    """Everything of :func:`grounding_postprocess` that needs no pixel of the original images.

    Args:
        outputs: "no_target_logits" (N, 2), "sem_seg" (N, 1, Hm, Wm) or None, and, if there is an
            instance branch, "pred_logits", "pred_boxes", "pred_masks", "pred_points" (see
            ``GROUNDING_HEAD_REGISTRY``) and optionally "attention_map" (N, Hi, Wi). What
            :func:`to_probabilities` returns may stand in place of logits of classes.
        network_size: (H, W) of the network input.
        original_sizes: (height, width) of each original image.
        options: modes, and thresholds to be applied later.
        content_sizes: (rows, columns) of each image in the top left corner of a padded network
            input; default: nothing is padded.

    Raises:
        FloatingPointError: a score is infinite or NaN, or a box is NaN.
    """
    if "present" not in outputs:
        outputs = {**outputs, **to_probabilities(outputs, options)}
    present, has_queries = outputs["present"], "scores" in outputs
    if not has_queries:
        none = present.new_zeros(len(original_sizes), 0, 4)
        none = {"scores": none[..., 0], "pred_boxes": none, "pred_points": none[..., :2]}
        outputs = {**outputs, **none}
    contents = content_sizes or [network_size] * len(original_sizes)
    align_corners = options.align_corners and options.mask_resize == "binary"
    samples = [
        crop_outputs(outputs, i, network_size, content, align_corners)
        for i, content in enumerate(contents)
    ]
    ranked = []
    for i, (candidates, scores, order, is_absent) in enumerate(
        _rank_queries(samples, present, original_sizes, options)
    ):
        masks, attention = samples[i].get("pred_masks"), samples[i].get("attention_map")
        sem_seg = samples[i]["sem_seg"]
        ranked.append(
            RankedOutput(
                candidates=candidates,
                scores=scores,
                no_target_score=1 - present[i],
                no_target=None if has_queries else is_absent,
                mask_logits=None if masks is None else masks[0][order],
                sem_seg=None if sem_seg is None else sem_seg[0],
                attention_map=None if attention is None else attention[0],
                content_size=tuple(contents[i]),
                options=options,
            )
        )
    return ranked


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


def to_probabilities(
    outputs: Dict[str, torch.Tensor], options: PostprocessOptions
) -> Dict[str, torch.Tensor]:
    """Probabilities in place of logits; arguments as of :func:`rank_outputs`.

    Returns:
        "present" float32 (N,), that there is a target; with queries "scores" float32 (N, Q), that
        each is one.
    """
    logits = outputs["no_target_logits"].float()
    is_softmax = options.no_target_test == "softmax"
    found = {"present": logits.softmax(-1)[:, 0] if is_softmax else logits[:, 0].sigmoid()}
    if "pred_logits" in outputs:
        found["scores"] = outputs["pred_logits"].float().softmax(-1)[..., 0]
        if options.weight_scores:
            found["scores"] = found["scores"] * found["present"][:, None]
    return found


def _rank_queries(samples, present, sizes, options: PostprocessOptions):
    """All queries of each sample by descending score, without masks yet.

    Returns:
        (candidates, their scores on the host, order int64 (Q,), a target is improbable) of each
        sample.
    """
    scores = torch.cat([x["scores"] for x in samples])
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
    is_absent = (host_present[:, 0] < 0.5).tolist()
    scores, order = (to_device(x, corners.device) for x in (host_scores, host_order))
    ranked = []
    for i, size in enumerate(sizes):
        candidates = Instances(tuple(size))
        candidates.pred_boxes = Boxes(corners[i][order[i]])
        candidates.scores = scores[i]
        candidates.pred_classes = torch.zeros_like(order[i])
        candidates.pred_points = points[i][order[i]]
        ranked.append((candidates, host_scores[i], order[i], is_absent[i]))
    return ranked
