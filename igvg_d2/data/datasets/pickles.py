"""Pickled records of Python 2 and 3, read without running what is in them."""

import io
import pickle
import re
from typing import Any

# Opcodes followed by text, with the bytes of its length (little endian), and by lines.
_COUNTED = {
    b"U": 1,
    b"T": 4,
    b"X": 4,
    b"\x8c": 1,
    b"\x8d": 8,
    b"C": 1,
    b"B": 4,
    b"\x8e": 8,
    b"\x8a": 1,
}
_LINES = (b"I", b"L", b"F", b"S", b"V", b"p", b"g")


class _PlainUnpickler(pickle.Unpickler):
    """Names nothing, whatever a pickle asks for."""

    def find_class(self, module: str, name: str) -> Any:
        """Called by pickle for everything that is not a plain value."""
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def loads_plain(content: bytes, path: str) -> Any:
    """Unpickles lists, dicts, numbers and text, of the protocols 0 to 5.

    Nothing else: the benchmarks' files have no more, a name could run code, and the hash of a tuple
    as key of a dict can overflow the stack or never end. Byte strings of Python 2 are text in UTF-8
    or else Latin-1.

    Args:
        content: the pickle.
        path: its file, for messages.

    Raises:
        ValueError: names the file and what else it holds, or what is damaged.
    """
    try:
        _check_instructions(content)
        try:
            return _load(content, "utf-8")
        except UnicodeDecodeError:
            return _load(content, "latin1")
    except Exception as error:  # a damaged pickle may raise almost anything
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"{path}: refused as pickle of referring records: {reason}; download it again, or "
            "write the records as .json"
        ) from error


def _load(content: bytes, encoding: str) -> Any:
    stream = io.BytesIO(content)
    value = _PlainUnpickler(stream, encoding=encoding).load()
    if stream.read(1):
        raise pickle.UnpicklingError("data after its end")
    return value


def _check_instructions(content: bytes) -> None:
    """Refuses what is no list, dict, number or text, and memo numbers beyond the file's size.

    Python's unpickler keeps the memo as an array: five bytes that store something under number
    2,000,000,000 make it take 30 GB. No honest pickle has more memo entries than bytes.
    """
    fixed_run = _fixed_run(len(content))
    position = 0
    while True:
        end = fixed_run.match(content, position).end()
        code = content[end : end + 1]
        start = end + 1
        if code in _COUNTED:
            size = _COUNTED[code]
            position = start + size + int.from_bytes(content[start : start + size], "little")
        elif code in _LINES:
            position = content.find(b"\n", start) + 1
            if not position:
                raise pickle.UnpicklingError("it ends within a line")
            if code == b"p" and int(content[start : position - 1]) > len(content):
                raise pickle.UnpicklingError("a memo number is larger than the file")
        elif code == b".":
            return
        elif end > position:
            position = end
        else:
            found = f"more than lists, dicts, text and numbers (instruction {code!r} at byte {end})"
            raise pickle.UnpicklingError(found if code else "it ends before its end mark")


def _fixed_run(size: int) -> "re.Pattern[bytes]":
    """Pattern of a run of instructions of fixed length, with memo numbers below the file's size."""
    digits = min(4, max(1, (size.bit_length() + 7) // 8))
    top = min(255, size >> (8 * (digits - 1)))
    top_byte = b"[\\x00-" + re.escape(bytes([top])) + b"]"
    memo = b"r" + rb"[\x00-\xff]" * (digits - 1) + top_byte + rb"\x00" * (4 - digits)
    return re.compile(
        # The first set has no argument, the others 1, 2, 4 and 8 bytes.
        rb"(?s:[(012\]}aesuldN\x88\x89\x94]"
        rb"|[Kqh\x80].|M..|[Jj].{4}|[G\x95].{8}|" + memo + rb"){0,1000}"
    )
