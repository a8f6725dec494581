"""Facts in an ONNX file, without a library and without reading its weights."""

import io
import os
from typing import IO, Dict, Iterator, Tuple

# Of ModelProto and of StringStringEntryProto in onnx.proto; the numbers of a format never change.
_METADATA_PROPS, _KEY, _VALUE = 14, 1, 2
_LONGEST_FACT = 10_000_000  # bytes
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def read_onnx_metadata(path: str) -> Dict[str, str]:
    """``metadata_props`` of a file as a dict, {} when there are none.

    Raises:
        ValueError: it is no whole protobuf message.
    """
    facts = {}
    with open(path, "rb") as file:
        for field, length in _fields(file, os.path.getsize(path)):
            if field != _METADATA_PROPS:
                file.seek(length, os.SEEK_CUR)
                continue
            if length > _LONGEST_FACT:
                raise ValueError(f"it has a fact of {length} bytes")
            content, entry = io.BytesIO(file.read(length)), {}
            for part, size in _fields(content, length):
                entry[part] = content.read(size).decode("utf-8")
            facts[entry.get(_KEY, "")] = entry.get(_VALUE, "")
    return facts


def _fields(file: IO[bytes], end: int) -> Iterator[Tuple[int, int]]:
    """(number, bytes of content) of each field with content, whose content the caller passes."""
    while file.tell() < end:
        tag = _varint(file)
        field, kind = tag >> 3, tag & 7
        if kind not in (_VARINT, _FIXED64, _BYTES, _FIXED32) or not field:
            raise ValueError("it is no ONNX file")
        number = {_FIXED64: 8, _FIXED32: 4}.get(kind) or _varint(file)
        if kind == _VARINT:
            continue
        if number > end - file.tell():
            raise ValueError("it is cut off, or no ONNX file")
        if kind == _BYTES:
            yield field, number
        else:
            file.seek(number, os.SEEK_CUR)


def _varint(file: IO[bytes]) -> int:
    """A number of the wire format of protobuf."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError("it is cut off, or no ONNX file")
