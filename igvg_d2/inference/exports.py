"""Answers in the formats of other tools: COCO, supervision, Label Studio."""

import importlib
import uuid
from typing import Any, Dict, List, Optional, Sequence, Union

import numpy as np
import pycocotools.mask as mask_util

from igvg_d2.io.rle import to_json

from .masks import decode_mask


def to_coco(result, image_id: Union[int, str], category_id: int = 1) -> List[Dict[str, Any]]:
    """One entry per target, as ``COCO.loadRes`` takes them.

    Returns:
        dicts with image_id, category_id, bbox [x, y, width, height] in pixels, score, and, if the
        model has masks, segmentation (RLE) and area; nothing if there is no target.
    """
    entries = []
    for region in result.regions():
        x0, y0, x1, y1 = region.box.tolist()
        entry = {
            "image_id": image_id,
            "category_id": category_id,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": region.score,
        }
        if region.rle is not None:
            entry["segmentation"] = to_json(region.rle)
            entry["area"] = int(mask_util.area(region.rle))
        entries.append(entry)
    return entries


def to_supervision(result) -> Any:
    """``supervision.Detections`` with xyxy, mask, confidence, class_id 0, and the expression as
    the data "class_name"; empty if there is no target.

    Raises:
        ImportError: the package is not installed; says how to.
    """
    try:
        supervision = importlib.import_module("supervision")
    except ImportError as error:
        raise ImportError("to_supervision() needs 'pip install supervision'") from error
    regions = result.regions()
    masks = [decode_mask(region.rle) for region in regions if region.rle is not None]
    return supervision.Detections(
        xyxy=np.array([region.box for region in regions], np.float32).reshape(-1, 4),
        mask=np.stack(masks) if masks else None,
        confidence=np.array([region.score for region in regions], np.float32),
        class_id=np.zeros(len(regions), int),
        data={"class_name": np.array([result.expression] * len(regions), dtype=str)},
    )


def to_label_studio(
    result,
    image: Optional[str] = None,
    *,
    from_name: str = "brush",
    to_name: str = "image",
    label: Optional[str] = None,
    model_version: str = "igvg_d2",
) -> Dict[str, Any]:
    """A task for Label Studio's import, with brush masks to correct.

    It fits a labelling setup with ``<Image name="image" value="$image"/>`` and ``<BrushLabels
    name="brush" toName="image">``.

    Args:
        result: a GroundingResult.
        image: address under which Label Studio finds the image; by default its path.
        from_name, to_name: names of the tags in the labelling setup.
        label: of the brush; by default the expression.
        model_version: shown beside the pre-annotation.

    Returns:
        {"data": {"image", "text"}, "predictions": [{"model_version", "score", "result"}]}, without
        an entry in "result" if there is no target.
    """
    height, width = result.orig_shape
    regions = [region for region in result.regions() if region.rle is not None]
    entries = [
        {
            "id": uuid.uuid4().hex[:10],
            "from_name": from_name,
            "to_name": to_name,
            "type": "brushlabels",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": region.score,
            "value": {
                "format": "rle",
                "rle": brush_rle(mask_util.decode(region.rle)),
                "brushlabels": [label or result.expression],
            },
        }
        for region in regions
    ]
    score = result.no_target_score if result.no_target else 1.0 - result.no_target_score
    prediction = {"model_version": model_version, "score": score, "result": entries}
    data = {"image": image or result.path, "text": result.expression}
    return {"data": data, "predictions": [prediction]}


# Bits of the lengths that runs are written with, and their number in the header.
_LENGTH_BITS = (3, 4, 8, 16)


def brush_rle(mask: np.ndarray) -> List[int]:
    """A mask (height, width) as the bytes of Label Studio's brush.

    The format is that of ``@thi.ng/rle-pack`` on the image's RGBA bytes, row by row: 32 bits for
    their number, 5 for the bits of a value less one, 4 times 4 for the bits of a length less one;
    then runs of a bit 1, 2 bits for the kind of length, the length less one, and the value.
    """
    pixels = np.ascontiguousarray(mask).ravel().astype(bool)
    starts = np.concatenate([[0], np.flatnonzero(pixels[1:] != pixels[:-1]) + 1, [pixels.size]])
    bits = [f"{4 * pixels.size:032b}", f"{8 - 1:05b}", *(f"{n - 1:04b}" for n in _LENGTH_BITS)]
    for value, length in zip(pixels[starts[:-1]], 4 * np.diff(starts)):
        bits += _runs(int(length), "11111111" if value else "00000000")
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def _runs(length: int, value: str) -> Sequence[str]:
    """A run as text of bits, in parts where its length has more than 16 bits."""
    longest = 1 << _LENGTH_BITS[-1]
    parts = [longest] * (length // longest) + ([length % longest] if length % longest else [])
    for part in parts:
        kind = next(i for i, n in enumerate(_LENGTH_BITS) if part <= 1 << n)
        yield f"1{kind:02b}{part - 1:0{_LENGTH_BITS[kind]}b}{value}"
