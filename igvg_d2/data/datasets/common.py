"""What all readers share: checks of the fields of records, and dataset dicts made of them.

A reader turns an annotation file into dataset dicts, one per *expression*, in the original frame:

* ``file_name`` str, ``height`` int, ``width`` int, ``image_id`` int, or text as in the file;
* ``sample_id`` str ``"<ref_id>_<sent_id>"``, unique in the split; ``ref_id``, ``sent_id`` alike;
* ``expression`` str, as annotated (neither lower-cased nor cleaned);
* ``annotations`` list of dicts ``id`` int, ``bbox`` [x, y, w, h], ``bbox_mode``, ``category_id``
  0, ``segmentation`` (compressed COCO RLE of size [height, width], parts joined by union; a target
  without this key has a box only: mask losses and mask metrics leave it out),
  ``iscrowd`` 0 or 1 as in the file, and, if the file has polygons and not an RLE, ``polygons``,
  float64 arrays [x0, y0, x1, y1, ...]: official protocols rasterise them in their own way. The
  empty list means no target;
* ``kind`` only if the file names the expression's type, as the synthetic set and OpenRef do;
* ``absent_kind`` "absent", "lookalike" or "unnamed" only without target, if the file states it or
  has classes (:mod:`igvg_d2.data.datasets.absent_kinds`);
* ``group_id`` str only where several records of a file share a ``ref_id``: the second and later
  ones are told apart by it (the metrics of R-RefCOCO are means over records).

Expressions about the same object share one annotation dict, so treat annotations as read-only.

The dicts come in the order of the file. Expressions have a letter or a digit in them, and a target
is named once. A malformed record is a ValueError that names file, record and field. A reader that
is given a list ``skipped`` leaves such records out instead and adds a message for each.
"""

import logging
import reprlib
from collections import Counter
from typing import Any, Callable, Dict, List, Optional, Sequence

from igvg_d2.io.rle import FARTHEST, MAX_SIDE

from ..tokenizer import has_lone_surrogate
from .box_checks import warn_of_contradicting_boxes

logger = logging.getLogger(__name__)

Sample = Dict[str, Any]


def make_sample(
    image: Dict[str, Any], ref_id: Any, sent_id: Any, expression: str, annotations: List[Any]
) -> Sample:
    """The dataset dict of an expression; ``image`` has file_name, height, width and image_id."""
    return {
        **image,
        "sample_id": f"{ref_id}_{sent_id}",
        "ref_id": ref_id,
        "sent_id": sent_id,
        "expression": expression,
        "annotations": annotations,
    }


def collect_samples(
    items: Dict[int, Any],
    expand: Callable[[int, Any], List[Sample]],
    describe_item: Callable[[int, Any], str],
    source: str,
    skipped: Optional[List[str]] = None,
) -> List[Sample]:
    """Dataset dicts of the items of an annotation file.

    Args:
        items: by position in the file; emptied, so that memory is free for the result.
        expand: position, item -> its dataset dicts; raises RecordError for a wrong field.
        describe_item: position, item -> which one it is, for messages.
        source: where the items come from, for messages.
        skipped: see the module docstring; a sample id that occurs twice is malformed, too.
    """
    samples: List[Sample] = []
    seen = set()
    for position in list(items):
        item = items.pop(position)
        try:
            new = expand(position, item)
            ids = set()
            for sample_id in (sample["sample_id"] for sample in new):
                if sample_id in seen or sample_id in ids:
                    raise RecordError("sent_id", f"sample {sample_id} occurs twice")
                ids.add(sample_id)
        except RecordError as error:
            where = f"{source}: {describe_item(position, item)}, field '{error.field}'"
            note_or_raise(f"{where}: {error}", skipped, error)
            continue
        seen.update(ids)
        samples.extend(new)
    if not samples:
        raise ValueError(f"{source}: no valid expression in it")
    return samples


def note_or_raise(
    message: str, skipped: Optional[List[str]], cause: Optional[Exception] = None
) -> None:
    """A malformed record: an error, unless records may be skipped; then it is noted."""
    if skipped is None:
        raise ValueError(message) from cause
    skipped.append(message)


def log_counts(samples: List[Sample], path: str, split: str, without_text: int = 0) -> None:
    """Releases differ in size under the same name, so every load says what it found."""
    counts = Counter(min(len(sample["annotations"]), 2) for sample in samples)
    logger.info(
        "%s, split %s: %d expressions (%d no target, %d one target, %d several) on %d images; "
        "%d records or sentences without text skipped",
        *(path, split, len(samples), counts[0], counts[1], counts[2]),
        *(len({sample["image_id"] for sample in samples}), without_text),
    )
    targets = {id(item): item for sample in samples for item in sample["annotations"]}
    num_boxes = sum("segmentation" not in item for item in targets.values())
    if num_boxes:
        logger.warning(
            "%s, split %s: %d of %d targets have a box and no mask; REC and GREC count them, mask "
            "metrics and mask losses leave them out",
            *(path, split, num_boxes, len(targets)),
        )
    warn_of_contradicting_boxes(samples, path)


class RecordError(ValueError):
    """A wrong field of one record; the reader adds which file and which record it was.

    Args:
        field: name of the field that is wrong.
        message: what was expected and what was found.
    """

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


def short(value: Any) -> str:
    """``repr`` of a value for messages, cut off: a damaged file may hold anything at any depth."""
    return reprlib.repr(value)


def is_int(value: Any) -> bool:
    """Whether a value is an integer; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def read_field(record: Any, field: str) -> Any:
    """Value of a field that must be there."""
    if not isinstance(record, dict):
        raise RecordError(field, f"expected an object with this field, found {short(record)}")
    if field not in record:
        raise RecordError(field, f"missing; the record has {short(sorted(map(str, record)))}")
    return record[field]


def read_int(record: Any, field: str) -> int:
    """Integer field."""
    value = read_field(record, field)
    if not is_int(value):
        raise RecordError(field, f"expected an integer, found {short(value)}")
    return value


def read_size(record: Any, prefix: str = "") -> Dict[str, int]:
    """Fields ``height`` and ``width`` of an image; in the record a prefix may be before both."""
    size = {side: read_field(record, prefix + side) for side in ("height", "width")}
    for side, value in size.items():
        if not is_int(value) or not 1 <= value <= MAX_SIDE:
            expected = f"expected an integer from 1 to {MAX_SIDE}"
            raise RecordError(prefix + side, f"{expected}, found {short(value)}")
    return size


def read_id(record: Any, field: str) -> Any:
    """Identifier: an integer, or text."""
    value = read_field(record, field)
    if not is_int(value) and not (isinstance(value, str) and value):
        raise RecordError(field, f"expected an id (integer or text), found {short(value)}")
    return check_text(value, field) if isinstance(value, str) else value


def read_text(record: Any, field: str) -> str:
    """Text field with at least one word in it."""
    return check_text(read_field(record, field), field)


def check_text(value: Any, field: str) -> str:
    """Text with a letter or digit, which is what tokenizers and the release's cleaning leave of it.

    Raises:
        RecordError: it is none, or has characters that no file name and no output can hold.
    """
    if not isinstance(value, str) or not any(map(str.isalnum, value)):
        raise RecordError(field, f"expected text with a word in it, found {short(value)}")
    if "\0" in value or has_lone_surrogate(value):
        raise RecordError(
            field, f"expected text, found half a character (a surrogate) or NUL: {short(value)}"
        )
    return value


def read_list(record: Any, field: str) -> List[Any]:
    """List field."""
    value = read_field(record, field)
    if not isinstance(value, list):
        raise RecordError(field, f"expected a list, found {short(value)}")
    return value


def read_box(record: Dict[str, Any], field: str) -> Optional[List[float]]:
    """Box [x, y, width, height] of finite numbers; None if the field is missing or null.

    Raises:
        RecordError: anything else, or a negative width or height.
    """
    value = record.get(field)
    if value is None:
        return None
    is_box = isinstance(value, (list, tuple)) and len(value) == 4 and all(map(_is_near, value))
    if not is_box or value[2] < 0 or value[3] < 0:
        raise RecordError(field, f"expected [x, y, width, height] in pixels, found {short(value)}")
    return [float(number) for number in value]


def _is_near(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) <= FARTHEST


def list_ids(ann_id: Any, field: str = "ann_id") -> Sequence[int]:
    """Annotation ids of a record as a list; official files have lists, some records a bare int.

    Raises:
        RecordError: neither, or an object twice: it would be counted as two.
    """
    ids = [ann_id] if is_int(ann_id) else ann_id
    if not isinstance(ids, (list, tuple)) or not all(map(is_int, ids)):
        raise RecordError(field, f"expected an int or a list of ints, found {short(ann_id)}")
    if len(set(ids)) < len(ids):
        raise RecordError(field, f"expected every id once, found {short(ann_id)}")
    return list(ids)
