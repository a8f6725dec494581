"""Predictions as a file: what eval-only runs write and what anybody's model can be scored from.

A prediction is a JSON object per expression, all coordinates in pixels of the original image:

* ``ref_id`` and ``sent_id``, or ``sample_id`` str;
* ``mask``: COCO RLE of the union mask, ``{"size": [height, width], "counts": str or list}``, of the
  original size; for protocols that compare at 480 x 480 or 320 x 320, of that size instead; not
  needed for data sets without masks;
* optional ``no_target`` bool (by default: the mask has no pixel; without a mask: no box), and
  ``no_target_score`` in [0, 1];
* optional ``boxes`` [[x1, y1, x2, y2], ...] and ``scores`` [probability, ...], and of the same
  length ``masks`` (RLE of the original size) and ``points`` [[x, y], ...];
* optional ``mask_480`` and ``mask_320``: the union mask resized from logits by the model itself,
  beside a ``mask`` of the original size. Without them that one is resized by PIL nearest, and the
  report says what a perfect one reaches.

Other fields are ignored, unless their name looks like a slip of one of these.
"""

import difflib
import os
import reprlib
from functools import lru_cache
from typing import IO, Any, Dict, Iterator, Optional, Tuple

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from igvg_d2.config import PROTOCOL_SIZES
from igvg_d2.io.atomic import atomic_path
from igvg_d2.io.json_stream import JSONError, iterate_records, to_json_text
from igvg_d2.io.rle import (
    FARTHEST,
    RLEMasks,
    check_rle,
    empty_rle,
    mask_to_rle,
    normalize_rle,
    runs_to_mask,
    to_json,
)
from igvg_d2.io.terminal import is_printable

Prediction = Dict[str, Any]

FRAME_SIZES = tuple(sorted({size for size in PROTOCOL_SIZES.values() if size is not None}))
_FIELDS = (
    "sample_id ref_id sent_id mask no_target no_target_score boxes scores masks points".split()
    + [f"mask_{size}" for size in FRAME_SIZES]
)
# How alike an unknown name must be to count as a slip ("no_targt", "score").
_SLIP = 0.8


class PredictionError(ValueError):
    """A prediction file, or one prediction, that cannot be scored."""


def read_predictions(path: str) -> Iterator[Prediction]:
    """The predictions of a file, a JSON list or JSON lines; never all of them in memory.

    Raises:
        PredictionError: names the file, the position in it, and what is wrong.
        FileNotFoundError: there is no such file.
    """
    with PathManager.open(path, "r", encoding="utf-8") as file:
        try:
            for where, item in iterate_records(file):
                yield _identified(item, f"{path}, {where}")
        except (UnicodeDecodeError, JSONError) as error:
            raise PredictionError(
                f"{path}: expected a JSON list or one JSON object per line: {error}"
            ) from error


def _identified(item: Any, where: str) -> Prediction:
    """An object with its ``sample_id`` filled in."""
    if not isinstance(item, dict):
        raise PredictionError(f"{where}: expected an object, found {type(item).__name__}")
    if "sample_id" not in item:
        if not {"ref_id", "sent_id"} <= item.keys():
            raise PredictionError(
                f"{where}: expected 'sample_id', or 'ref_id' and 'sent_id', found "
                f"{reprlib.repr(sorted(item)[:8])}"
            )
        item = {**item, "sample_id": f"{item['ref_id']}_{item['sent_id']}"}
    if not isinstance(item["sample_id"], str) or not is_printable(item["sample_id"]):
        found = ascii(item["sample_id"])[:400]
        raise PredictionError(f"{where}: 'sample_id' must be text without control codes: {found}")
    return item


def prediction_to_output(
    prediction: Prediction, sample: Dict[str, Any], needs_mask: bool = True
) -> Dict[str, Any]:
    """A prediction as the model output that the evaluators take.

    Args:
        prediction: see the module docstring.
        sample: data set dict of the same expression, for the size.
        needs_mask: whether "mask" must be there; otherwise it may be missing, and is empty then.

    Returns:
        dict with "mask" RLE of the image or of 480 x 480 or 320 x 320, "no_target", "candidates"
        (masks as `RLEMasks`), and if there "no_target_score" and "resized_masks" {size: mask}.

    Raises:
        PredictionError: names the sample, the field, what was expected and what was found.
    """
    try:
        return _to_output(prediction, sample, needs_mask)
    except ValueError as error:
        raise PredictionError(f"sample '{prediction['sample_id']}': {error}") from error


def _to_output(prediction: Prediction, sample: Dict[str, Any], needs_mask: bool) -> Dict[str, Any]:
    """See `prediction_to_output`; raises ValueError without the sample's name."""
    size = (sample["height"], sample["width"])
    _check_fields(prediction, sample)
    mask, is_empty = empty_rle(size), not prediction.get("boxes")
    if "mask" in prediction:
        sizes = [size, *((s, s) for s in FRAME_SIZES)]
        mask = normalize_rle(prediction["mask"], *_runs(prediction["mask"], sizes, "mask"))
        is_empty = not mask_util.area(mask)
    elif needs_mask:
        raise ValueError(f"no 'mask'; found {reprlib.repr(sorted(prediction)[:8])}")
    no_target = prediction.get("no_target", is_empty)
    if not isinstance(no_target, bool):
        raise ValueError(f"'no_target' must be a bool: {reprlib.repr(no_target)}")
    output = {
        "mask": mask,
        "no_target": no_target,
        "candidates": _candidates(prediction, size),
    }
    resized = {s: f"mask_{s}" for s in FRAME_SIZES if f"mask_{s}" in prediction}
    if resized:
        output["resized_masks"] = {
            s: _mask(prediction[key], [(s, s)], key) for s, key in resized.items()
        }
    score = prediction.get("no_target_score")
    if score is not None:
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not 0 <= score <= 1:
            raise ValueError(f"'no_target_score' not in [0, 1]: {reprlib.repr(score)}")
        output["no_target_score"] = float(score)
    return output


def _check_fields(prediction: Prediction, sample: Dict[str, Any]) -> None:
    """No field is misspelt, and ids that are told belong to the sample."""
    for key in prediction.keys() - set(_FIELDS):
        alike = _meant(key)
        if alike is not None and alike not in prediction:
            raise ValueError(f"no field {key!r}; is '{alike}' meant?")
    for key in ("ref_id", "sent_id", "image_id"):
        if key in prediction and key in sample and str(prediction[key]) != str(sample[key]):
            found = reprlib.repr(prediction[key])
            raise ValueError(f"'{key}' is {found}, in the data set {sample[key]!r}")


@lru_cache(maxsize=256)
def _meant(key: str) -> Optional[str]:
    """The field that an unknown name looks like."""
    return next(iter(difflib.get_close_matches(key, _FIELDS, n=1, cutoff=_SLIP)), None)


def _candidates(prediction: Prediction, size: Tuple[int, int]) -> Instances:
    """Boxes, scores, masks and points of a prediction; without boxes there are none."""
    boxes = _numbers(prediction.get("boxes", []), (-1, 4), "boxes")
    scores = _numbers(prediction.get("scores", []), (-1,), "scores")
    if len(boxes) != len(scores):
        raise ValueError(f"{len(boxes)} boxes but {len(scores)} scores")
    if len(scores) and not (0 <= float(scores.min()) and float(scores.max()) <= 1):
        raise ValueError(f"'scores' must be probabilities in [0, 1]: {scores.tolist()[:4]}")
    candidates = Instances(size)
    candidates.pred_boxes = Boxes(boxes)
    # In float64, so that a score of 0.7 in the file is 0.7 for the threshold.
    candidates.scores = scores
    if "masks" in prediction:
        rles = prediction["masks"]
        if not isinstance(rles, list) or len(rles) != len(boxes):
            raise ValueError("'masks' must be a list, one for each box")
        candidates.pred_masks = RLEMasks(
            [normalize_rle(rle, *_runs(rle, [size], "masks")) for rle in rles]
        )
    if "points" in prediction:
        candidates.pred_points = _numbers(prediction["points"], (len(boxes), 2), "points")
    return candidates


def output_to_host(output: Dict[str, Any]) -> Dict[str, Any]:
    """A model output with the tensors that evaluators read on the host, all by one transfer.

    Args:
        output: "candidates" and, if there, "mask", "no_target", "no_target_score" and
            "resized_masks" of any device. Other entries stay where they are.
    """
    candidates, sizes = output.get("candidates"), output.get("resized_masks", {})
    fields = {} if candidates is None else candidates.get_fields()
    fields = {key: getattr(value, "tensor", value) for key, value in fields.items()}
    own = {key: output[key] for key in ("mask", "no_target", "no_target_score") if key in output}
    values = [value for group in (own, sizes, fields) for value in group.values()]
    tensors = [x for x in values if isinstance(x, torch.Tensor) and x.device.type != "cpu"]
    if not tensors:
        return output
    # The widest type first: each then begins at a multiple of its width, which a view wants.
    tensors.sort(key=lambda x: -x.element_size())
    parts = [x.detach().contiguous().reshape(-1).view(torch.uint8) for x in tensors]
    copies = torch.cat(parts).cpu().split([len(part) for part in parts])
    copied = {id(x): y.view(x.dtype).view(x.shape) for x, y in zip(tensors, copies)}
    own, sizes, fields = (
        {key: copied.get(id(value), value) for key, value in group.items()}
        for group in (own, sizes, fields)
    )
    if "pred_boxes" in fields:
        fields["pred_boxes"] = Boxes(fields["pred_boxes"])
    if candidates is not None:
        own["candidates"] = Instances(candidates.image_size, **fields)
    return {**output, **own, "resized_masks": sizes}


def output_to_prediction(output: Dict[str, Any], sample: Dict[str, Any]) -> Prediction:
    """The reverse of :func:`prediction_to_output`; scores keep all their digits."""
    candidates = output["candidates"]
    prediction = {
        "sample_id": sample["sample_id"],
        "mask": to_json(mask_to_rle(output["mask"])),
        "no_target": bool(output["no_target"]),
        "boxes": candidates.pred_boxes.tensor.tolist(),
        "scores": candidates.scores.tolist(),
    }
    for size, mask in output.get("resized_masks", {}).items():
        prediction[f"mask_{size}"] = to_json(mask_to_rle(mask))
    if output.get("no_target_score") is not None:
        prediction["no_target_score"] = float(output["no_target_score"])
    if candidates.has("pred_masks"):
        masks = candidates.pred_masks
        is_rle = isinstance(masks, RLEMasks)
        rles = masks.rles if is_rle else [mask_to_rle(mask) for mask in masks]
        prediction["masks"] = [to_json(rle) for rle in rles]
    if candidates.has("pred_points"):
        prediction["points"] = candidates.pred_points.tolist()
    return prediction


class PredictionWriter:
    """Writes the predictions of all processes to one file of JSON lines.

    Every process writes a part of its own beside the file; the main one joins them at the end. The
    processes must see the same folder.
    """

    def __init__(self, path: str):
        self.path = path
        self._file: Optional[IO[str]] = None

    def reset(self) -> None:
        """Start again with an empty part."""
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        if self._file is not None:
            self._file.close()
        self._file = open(self._part(comm.get_rank()), "w", encoding="utf-8")

    def write(self, output: Dict[str, Any], sample: Dict[str, Any]) -> None:
        """Append one prediction."""
        self._file.write(to_json_text(output_to_prediction(output, sample)) + "\n")

    def close(self) -> None:
        """Join the parts, each sample once: a padded sampler repeats some. For all processes."""
        self._file.close()
        self._file = None
        comm.synchronize()
        if not comm.is_main_process():
            return
        parts = [self._part(rank) for rank in range(comm.get_world_size())]
        seen = set()
        with atomic_path(self.path) as path, open(path, "w", encoding="utf-8") as joined:
            for part in parts:
                for prediction in read_predictions(part):
                    if prediction["sample_id"] not in seen:
                        seen.add(prediction["sample_id"])
                        joined.write(to_json_text(prediction) + "\n")
        for part in parts:
            os.remove(part)

    def _part(self, rank: int) -> str:
        return f"{self.path}.{rank}"


def _mask(rle: Any, sizes, field: str) -> np.ndarray:
    """bool mask of an RLE of one of the sizes; the first is that of the original image."""
    return runs_to_mask(*_runs(rle, sizes, field))


def _runs(rle: Any, sizes, field: str) -> Tuple[Tuple[int, int], np.ndarray]:
    """(height, width) and runs of an RLE of one of the sizes."""
    try:
        found, runs = check_rle(rle)
    except ValueError as error:
        raise ValueError(f"'{field}' is no valid RLE: {error}") from error
    if found not in sizes:
        wanted = " or ".join(str(list(size)) for size in sizes)
        raise ValueError(f"'{field}' must be a COCO RLE of size {wanted}; found {list(found)}")
    return found, runs


def _numbers(values: Any, shape: Tuple[int, ...], field: str) -> torch.Tensor:
    """Finite float64 tensor of the shape, of numbers that pixels and scores can be."""
    try:
        # numpy first: torch would turn True and False into numbers without a word.
        array = np.array(values)
        if not isinstance(values, list) or (array.size and array.dtype.kind not in "iuf"):
            raise ValueError(f"found {str(values)[:80]}")
        numbers = torch.from_numpy(array.astype(np.float64)).reshape(shape)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"'{field}' must be numbers: {error}") from error
    # Not "greater than", which NaN never is.
    if len(numbers) != len(values) or not (np.abs(array) <= FARTHEST).all():
        raise ValueError(f"'{field}' must be finite, up to {FARTHEST:.0e}: {str(values)[:80]}")
    return numbers
