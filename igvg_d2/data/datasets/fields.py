"""Checks of single fields of a record; an error names the field."""

import math
import reprlib
from typing import Any, Dict, List, Optional, Sequence

# The largest side a JPEG can have.
_MAX_SIDE = 65535


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


def read_size(record: Any) -> Dict[str, int]:
    """Fields ``height`` and ``width`` of an image."""
    size = {side: read_field(record, side) for side in ("height", "width")}
    for side, value in size.items():
        if not is_int(value) or not 1 <= value <= _MAX_SIDE:
            raise RecordError(
                side, f"expected an integer from 1 to {_MAX_SIDE}, found {short(value)}"
            )
    return size


def read_id(record: Any, field: str) -> Any:
    """Identifier: an integer, or text."""
    value = read_field(record, field)
    if not is_int(value) and not (isinstance(value, str) and value):
        raise RecordError(field, f"expected an id (integer or text), found {short(value)}")
    return value


def read_text(record: Any, field: str) -> str:
    """Text field with at least one word in it."""
    value = read_field(record, field)
    if not isinstance(value, str) or not value.strip():
        raise RecordError(field, f"expected text with a word in it, found {short(value)}")
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
    is_box = isinstance(value, (list, tuple)) and len(value) == 4 and all(map(_is_finite, value))
    if not is_box or value[2] < 0 or value[3] < 0:
        raise RecordError(field, f"expected [x, y, width, height] in pixels, found {short(value)}")
    return [float(number) for number in value]


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def list_ids(ann_id: Any, field: str = "ann_id") -> Sequence[int]:
    """Annotation ids of a record as a list; official files have lists, some records a bare int.

    Raises:
        RecordError: neither.
    """
    ids = [ann_id] if is_int(ann_id) else ann_id
    if not isinstance(ids, (list, tuple)) or not all(map(is_int, ids)):
        raise RecordError(field, f"expected an int or a list of ints, found {short(ann_id)}")
    return list(ids)
