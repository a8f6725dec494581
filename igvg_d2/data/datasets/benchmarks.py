"""RefCOCO-M, Ref-L4 and OpenRef, of which a record is all there is, and reviewed labels of RefCOCO.

Formats are those of the data sets' cards; what the cards leave open is refused, not guessed.
"""

import logging
import os
import re
from itertools import chain, count
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple, Union

import pycocotools.mask as mask_util

from igvg_d2.io.image import read_reduced_image
from igvg_d2.io.rle import check_rle

from . import common
from .annotation_files import iterate_refs, paused_garbage_collection, read_json
from .common import RecordError, Sample, read_field, read_id, read_list, read_text, short
from .instances import to_annotation
from .referring import load_referring

logger = logging.getLogger(__name__)

# Position, record, folder of the images -> entries of the dataset dict, with COCO "annotations".
RowRule = Callable[[int, Any, str], Iterator[Dict[str, Any]]]


def masks_of_image(position: int, row: Any, image_root: str) -> Iterator[Dict[str, Any]]:
    """RefCOCO-M: ``ref_id`` is "<row>.<number in it>", as the card does not say what ids are."""
    # The text of the card has the id in "image_meta", beside the size, its schema in the row.
    image = row.get("image_meta") or row
    image_id, name = common.read_int(image, "image_id"), read_text(row, "file_name")
    size = tuple(common.read_size(image).values()) if "height" in image else None
    for number, item in enumerate(read_list(row, "samples")):
        mask = read_field(item, "mask")
        try:
            size, _ = check_rle(mask, size)
        except ValueError as error:
            raise RecordError("mask", str(error)) from error
        sides, target = dict(zip(("height", "width"), size)), {**item, "segmentation": mask}
        for place, text in enumerate(read_list(item, "sentences")):
            ids = {"image_id": image_id, "ref_id": f"{position}.{number}", "sent_id": place}
            text = common.check_text(text, "sentences")
            yield {"file_name": name, **sides, **ids, "expression": text, "annotations": [target]}


def box_of_caption(position: int, row: Any, image_root: str) -> Iterator[Dict[str, Any]]:
    """Ref-L4: ``ref_id`` is ``id`` (``ann_id`` in older revisions), ``sent_id`` 0."""
    name, ref_id = read_text(row, "file_name"), read_id(row, "id" if "id" in row else "ann_id")
    ids = {"image_id": read_id(row, "image_id"), "ref_id": ref_id, "sent_id": 0}
    target = {"bbox": read_field(row, "bbox")}
    text = read_text(row, "caption")
    sides = {side: row.get(side) for side in ("height", "width")}
    yield {"file_name": name, **sides, **ids, "expression": text, "annotations": [target]}


def boxes_or_none(position: int, record: Any, image_root: str) -> Iterator[Dict[str, Any]]:
    """OpenRef: ``ref_id`` is the position, ``sent_id`` 0 for ``positive`` and 1 for ``negative``.

    ``negative`` refers to nothing (``kind`` "negative"); if ``relation_type`` is "none", the one
    expression (``kind`` "none") is ``negative`` or, without it, ``positive``. Boxes are in percent.
    """
    kind, boxes = read_field(record, "relation_type"), read_list(record, "proposal")
    is_known = kind in ("single", "multi", "none") and (kind == "none") != bool(boxes)
    if not is_known or record.get("bbox_num", len(boxes)) != len(boxes):
        found = f"{short(kind)}, {len(boxes)} boxes, bbox_num {short(record.get('bbox_num'))}"
        raise RecordError("relation_type", f"expected boxes unless it is 'none', found {found}")
    name, sides = read_text(record, "image"), {}
    for box in filter(lambda x: isinstance(x, dict), (record, *boxes)):
        for key in ("original_height", "original_width"):
            if key in box and box[key] != sides.setdefault(key, box[key]):
                found = f"{short(sides[key])} and {short(box[key])}"
                raise RecordError(key, f"expected one size for all boxes, found {found}")
    if len(sides) == 2:
        sides = common.read_size(sides, "original_")
    else:
        sides = _size_of_file(os.path.join(image_root, name))
    targets = [{"bbox": _to_pixels(box, **sides)} for box in boxes]
    questions = {"positive": (0, targets, kind), "negative": (1, [], "negative")}
    if kind == "none":
        key = "negative" if record.get("negative") else "positive"
        questions = {key: (questions[key][0], [], kind)}
    elif not record.get("negative"):
        del questions["negative"]
    for key, (sent_id, found, name_of_kind) in questions.items():
        ids = {"image_id": name, "ref_id": position, "sent_id": sent_id, "kind": name_of_kind}
        text = read_text(record, key)
        yield {"file_name": name, **sides, **ids, "expression": text, "annotations": found}


ROW_RULES: Dict[str, RowRule] = {
    "refcoco_m": masks_of_image,
    "ref_l4": box_of_caption,
    "openref": boxes_or_none,
}


def load_rows(
    annotation_file: str,
    image_root: str,
    split: str,
    row_rule: Union[str, RowRule],
    more_files: Sequence[str] = (),
    skipped: Optional[List[str]] = None,
) -> List[Sample]:
    """Reads records of which each holds image, expressions and targets.

    Args:
        annotation_file: list of records as JSON or parquet.
        image_root: folder of the images; opened only for sizes that OpenRef does not state.
        split: records with another ``split`` are refused, unless it is "all".
        row_rule: key of `ROW_RULES`, or a function.
        more_files: whose records follow those of ``annotation_file``.
        skipped: see :mod:`igvg_d2.data.datasets.common`, also for what is returned and raised.
    """
    rule = ROW_RULES[row_rule] if isinstance(row_rule, str) else row_rule
    # Ids of targets: those of the files, if any, are of objects or expressions.
    numbers = count()

    def expand(position: int, row: Any) -> List[Sample]:
        if not isinstance(row, dict) or split not in ("all", row.get("split", split)):
            raise RecordError("split", f"expected a record of '{split}', found {short(row)}")
        samples: List[Sample] = []
        shared: Dict[int, Any] = {}
        for sample in rule(position, row, image_root):
            size = common.read_size(sample)
            text = common.check_text(sample["expression"], "expression")
            for x in sample["annotations"]:
                if id(x) not in shared:
                    shared[id(x)] = x, to_annotation(x, next(numbers), **size)
            targets = [shared[id(x)][1] for x in sample["annotations"]]
            if not all(mask_util.area(x["segmentation"]) for x in targets if "segmentation" in x):
                raise RecordError("segmentation", "expected a mask with pixels, found none")
            path = os.path.join(image_root, sample["file_name"])
            image = {"image_id": sample["image_id"], "file_name": path, **size}
            made = common.make_sample(image, sample["ref_id"], sample["sent_id"], text, targets)
            samples.append({**sample, **made})
        return samples

    with paused_garbage_collection():
        records = chain.from_iterable(map(iterate_refs, (annotation_file, *more_files)))
        where = lambda position, record: f"record {position}"
        items = dict(enumerate(records))
        samples = common.collect_samples(items, expand, where, annotation_file, skipped)
    common.log_counts(samples, annotation_file, split)
    return samples


def _size_of_file(path: str) -> Dict[str, int]:
    """Size of an image that a record does not state; a JPEG is decoded as small as it can be."""
    try:
        height, width = read_reduced_image(path, 1, large=0)[1]
    except (FileNotFoundError, ValueError) as error:
        raise RecordError("image", f"opened, as its size is not stated: {error}") from error
    return {"height": height, "width": width}


def _to_pixels(box: Any, height: int, width: int) -> List[float]:
    """Box in pixels, from a list or an export of Label Studio, both in percent of the sides."""
    keys = ("x", "y", "width", "height")
    values = [box.get(key) for key in keys] if isinstance(box, dict) else box
    values = common.read_box({"proposal": values}, "proposal")
    # The card says "normalised", the authors' code has percent. Corners end outside.
    is_percent = values is not None and 1.0 < max(values) <= 100.0
    if not is_percent or min(values) < -1.0 or max(map(sum, zip(values, values[2:]))) > 101.0:
        raise RecordError("proposal", f"expected percent of the sides, found {short(box)}")
    return [value * side / 100 for value, side in zip(values, (width, height) * 2)]


def load_reviewed(
    reviewed_file: str,
    annotation_file: str,
    instances_file: str,
    image_root: str,
    split: str,
    skipped: Optional[List[str]] = None,
) -> List[Sample]:
    """Reads RefCOCO, + or g without the expressions that the authors of Ref-L4 found to be wrong.

    Args:
        reviewed_file: an object with a list ``annotation`` of ``image_id``, ``caption`` and
            ``caption_quality``, 0 for a wrong one; its other keys are not documented.
        annotation_file, instances_file, image_root, split, skipped: of :func:`load_referring`.
            Every expression must have been reviewed, found by its image's number and its letters.
    """
    files = (annotation_file, instances_file, image_root, split)
    samples = load_referring(*files, "refcoco", skipped=skipped)
    content = read_json(reviewed_file)
    key = "annotations" if isinstance(content, dict) and "annotations" in content else "annotation"
    marks: Dict[Tuple[str, str], Set[bool]] = {}
    where = "the file"
    try:
        for position, entry in enumerate(read_list(content, key)):
            where = f"{key}[{position}]"
            name = _letters(read_id(entry, "image_id"), read_text(entry, "caption"))
            quality = read_field(entry, "caption_quality")
            if not isinstance(quality, (int, float)):
                raise RecordError("caption_quality", f"expected a number, found {short(quality)}")
            marks.setdefault(name, set()).add(quality != 0)
    except RecordError as error:
        raise ValueError(f"{reviewed_file}, field '{error.field}': {error}, in {where}") from error
    kept = []
    for sample in samples:
        found = marks.get(_letters(sample["image_id"], sample["expression"]), set())
        if len(found) != 1:
            what = "both right and wrong" if found else "not in it"
            where = f"sample {sample['sample_id']}, {sample['expression']!r}"
            hint = "DATASETS.SKIP_INVALID True leaves such samples out"
            common.note_or_raise(f"{reviewed_file}: {where} is {what}; {hint}", skipped)
        elif True in found:
            kept.append(sample)
    logger.info("%s: %d of %d expressions are kept", reviewed_file, len(kept), len(samples))
    return kept


def _letters(image_id: Any, text: str) -> Tuple[str, str]:
    """What an expression is found by: the number of its image, its letters and digits."""
    number = re.search(r"0*(\d+)(\.jpg)?$", str(image_id))
    return number[1] if number else str(image_id), "".join(filter(str.isalnum, text.lower()))
