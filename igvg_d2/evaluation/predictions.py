"""Predictions as a file: what eval-only runs write and what anybody's model can be scored from.

A prediction is a JSON object per expression, all coordinates in the original image:

* ``sample_id`` str, or ``ref_id`` and ``sent_id``;
* ``mask``: COCO RLE of the union mask, ``{"size": [height, width], "counts": str}``;
* optional ``no_target`` bool (by default: the mask has no pixel), ``no_target_score`` in [0, 1];
* optional ``boxes`` [[x1, y1, x2, y2], ...] and ``scores`` [float, ...], and of the same length
  ``masks`` (RLE) and ``points`` [[x, y], ...].
"""

import json
import math
import os
from typing import IO, Any, Dict, Iterator, List, Optional, Tuple

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

Prediction = Dict[str, Any]


class PredictionError(ValueError):
    """A prediction file, or one prediction, that cannot be scored."""


def read_predictions(path: str) -> Iterator[Prediction]:
    """The predictions of a file, a JSON list or JSON lines (which are never all in memory).

    Raises:
        PredictionError: names the file, the position in it, and what is wrong.
        FileNotFoundError: there is no such file.
    """
    with PathManager.open(path, "r") as file:
        try:
            start = file.read(1)
            while start.isspace():
                start = file.read(1)
            file.seek(0)
            if start == "[":
                yield from _checked(enumerate(json.load(file), 1), path, "record")
            else:
                lines = ((n, json.loads(x)) for n, x in enumerate(file, 1) if x.strip())
                yield from _checked(lines, path, "line")
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise PredictionError(
                f"{path}: expected a JSON list or one JSON object per line: {error}"
            ) from error


def _checked(items, path: str, unit: str) -> Iterator[Prediction]:
    """Each item must be an object; its ``sample_id`` is filled in."""
    for number, item in items:
        where = f"{path}, {unit} {number}"
        if not isinstance(item, dict):
            raise PredictionError(f"{where}: expected an object, found {type(item).__name__}")
        if "sample_id" not in item:
            if not {"ref_id", "sent_id"} <= item.keys():
                raise PredictionError(
                    f"{where}: expected 'sample_id', or 'ref_id' and 'sent_id', found "
                    f"{sorted(item)[:8]}"
                )
            item = {**item, "sample_id": f"{item['ref_id']}_{item['sent_id']}"}
        if not isinstance(item["sample_id"], str):
            raise PredictionError(f"{where}: 'sample_id' must be text: {item['sample_id']!r}")
        yield item


def prediction_to_output(prediction: Prediction, sample: Dict[str, Any]) -> Dict[str, Any]:
    """A prediction as the model output that the evaluators take.

    Args:
        prediction: see the module docstring.
        sample: data set dict of the same expression, for the size.

    Raises:
        PredictionError: names the sample, the field, what was expected and what was found.
    """
    name, size = prediction["sample_id"], (sample["height"], sample["width"])
    if "mask" not in prediction:
        raise PredictionError(f"sample '{name}': no 'mask'; found {sorted(prediction)[:8]}")
    mask = _decode(prediction["mask"], size, name, "mask")
    boxes = _numbers(prediction.get("boxes", []), (-1, 4), name, "boxes")
    scores = _numbers(prediction.get("scores", []), (-1,), name, "scores")
    if len(boxes) != len(scores):
        raise PredictionError(f"sample '{name}': {len(boxes)} boxes but {len(scores)} scores")
    candidates = Instances(size)
    candidates.pred_boxes = Boxes(boxes)
    # In float64, so that a score of 0.7 in the file is 0.7 for the threshold.
    candidates.scores = scores
    if "masks" in prediction:
        rles = prediction["masks"]
        if not isinstance(rles, list) or len(rles) != len(boxes):
            raise PredictionError(f"sample '{name}': 'masks' must be a list, one for each box")
        masks = [_decode(rle, size, name, "masks") for rle in rles]
        stacked = np.stack(masks) if masks else np.zeros((0, *size), bool)
        candidates.pred_masks = torch.from_numpy(stacked)
    if "points" in prediction:
        candidates.pred_points = _numbers(prediction["points"], (len(boxes), 2), name, "points")
    no_target = prediction.get("no_target", not mask.any())
    if not isinstance(no_target, (bool, np.bool_)):
        raise PredictionError(f"sample '{name}': 'no_target' must be a bool: {no_target!r}")
    output = {"mask": torch.from_numpy(mask), "no_target": bool(no_target)}
    score = prediction.get("no_target_score")
    if score is not None:
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not 0 <= score <= 1:
            raise PredictionError(f"sample '{name}': 'no_target_score' not in [0, 1]: {score!r}")
        output["no_target_score"] = float(score)
    return {**output, "candidates": candidates}


def output_to_prediction(output: Dict[str, Any], sample: Dict[str, Any]) -> Prediction:
    """The reverse of :func:`prediction_to_output`; scores keep all their digits."""
    candidates = output["candidates"]
    prediction = {
        "sample_id": sample["sample_id"],
        "mask": _encode(output["mask"]),
        "no_target": bool(output["no_target"]),
        "boxes": candidates.pred_boxes.tensor.tolist(),
        "scores": candidates.scores.tolist(),
    }
    if output.get("no_target_score") is not None:
        prediction["no_target_score"] = float(output["no_target_score"])
    if candidates.has("pred_masks"):
        prediction["masks"] = [_encode(mask) for mask in candidates.pred_masks]
    if candidates.has("pred_points"):
        prediction["points"] = candidates.pred_points.tolist()
    return prediction


class PredictionWriter:
    """Writes the predictions of all processes to one file of JSON lines.

    Every process writes a part of its own beside the file; the main one joins them at the end. The
    processes must see the same folder.
    """

    def __init__(self, path: str):
        """
        Args:
            path: the file, ending in .jsonl.
        """
        self.path = path
        self._file: Optional[IO[str]] = None

    def reset(self) -> None:
        """Start again with an empty part."""
        PathManager.mkdirs(os.path.dirname(self.path))
        if self._file is not None:
            self._file.close()
        self._file = open(self._part(comm.get_rank()), "w", encoding="utf-8")

    def write(self, output: Dict[str, Any], sample: Dict[str, Any]) -> None:
        """Append one prediction."""
        self._file.write(json.dumps(output_to_prediction(output, sample)) + "\n")

    def close(self) -> None:
        """Join the parts, each sample once: a padded sampler repeats some. For all processes."""
        self._file.close()
        self._file = None
        comm.synchronize()
        if not comm.is_main_process():
            return
        parts = [self._part(rank) for rank in range(comm.get_world_size())]
        seen = set()
        with open(self.path, "w", encoding="utf-8") as joined:
            for part in parts:
                for prediction in read_predictions(part):
                    if prediction["sample_id"] not in seen:
                        seen.add(prediction["sample_id"])
                        joined.write(json.dumps(prediction) + "\n")
                os.remove(part)

    def _part(self, rank: int) -> str:
        return f"{self.path}.{rank}"


def _encode(mask: torch.Tensor) -> Dict[str, Any]:
    """COCO RLE that JSON can hold."""
    pixels = np.asfortranarray(mask.detach().cpu().numpy().astype(np.uint8))
    rle = mask_util.encode(pixels)
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def _decode(rle: Any, size: Tuple[int, int], name: str, field: str) -> np.ndarray:
    """bool (height, width) of an RLE whose runs cover exactly the image."""
    found = rle.get("size") if isinstance(rle, dict) else type(rle).__name__
    if not isinstance(rle, dict) or found != list(size):
        raise PredictionError(
            f"sample '{name}': '{field}' must be a COCO RLE of size {list(size)}, the original "
            f"image; found {found}"
        )
    counts = rle.get("counts")
    try:
        runs = counts if isinstance(counts, list) else _runs(counts)
        if min(runs, default=-1) < 0 or sum(runs) != size[0] * size[1]:
            raise ValueError(f"its runs cover {sum(runs)} of {size[0] * size[1]} pixels")
        values = np.repeat(np.arange(len(runs)) % 2, runs).astype(bool)
    except (TypeError, ValueError) as error:
        raise PredictionError(f"sample '{name}': '{field}' is no valid RLE: {error}") from error
    return np.ascontiguousarray(values.reshape(size, order="F"))


def _runs(counts: Any) -> List[int]:
    """Run lengths of COCO's compressed RLE: 5 bits per character, each run minus the one before.

    pycocotools reads beyond the end of a damaged string; a file from elsewhere must not do that.
    """
    if isinstance(counts, str):
        counts = counts.encode("ascii")
    if not isinstance(counts, bytes):
        raise TypeError(f"'counts' is {type(counts).__name__}, expected text or a list of runs")
    runs: List[int] = []
    value, shift = 0, 0
    for character in counts:
        bits = character - 48
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError(f"character {chr(character)!r}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value, shift = 0, 0
    if shift:
        raise ValueError("it ends inside a number")
    return runs


def _numbers(values: Any, shape: Tuple[int, ...], name: str, field: str) -> torch.Tensor:
    """Finite float64 tensor of the shape."""
    try:
        numbers = torch.tensor(values, dtype=torch.float64).reshape(shape)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise PredictionError(f"sample '{name}': '{field}' must be numbers: {error}") from error
    if len(numbers) != len(values) or not all(map(math.isfinite, numbers.flatten().tolist())):
        raise PredictionError(f"sample '{name}': '{field}' must be finite: {str(values)[:80]}")
    return numbers
