"""Facts in an ONNX file, without a library and without reading its weights."""

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
            end, entry = file.tell() + length, {}
            for part, size in _fields(file, end):
                entry[part] = file.read(size).decode("utf-8")
            facts[entry.get(_KEY, "")] = entry.get(_VALUE, "")
    return facts


def _fields(file: IO[bytes], end: int) -> Iterator[Tuple[int, int]]:
    """(number, bytes of content) of each field with content, whose content the caller passes."""
    while file.tell() < end:
        tag = _varint(file)
        field, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            _varint(file)
        elif kind in (_FIXED64, _FIXED32):
            file.seek(8 if kind == _FIXED64 else 4, os.SEEK_CUR)
        elif kind == _BYTES:
            length = _varint(file)
            if length > end - file.tell():
                raise ValueError("it is cut off, or no ONNX file")
            yield field, length
        else:
            raise ValueError("it is no ONNX file")


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
