"""Pickles read without running what is in them and without trusting their sizes."""

import io
import pickle
import re
from typing import IO, AbstractSet, Any, Tuple

# What a pickle of records may name; lists, dicts, numbers and strings need no name.
PLAIN_NAMES = {
    (module, name) for module in ("builtins", "__builtin__") for name in ("set", "frozenset")
}
# What pickled numpy arrays name, in numpy 1 and 2; nothing of it runs code of the file's choosing.
ARRAY_NAMES = {
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
}

# Opcodes followed by text, with the bytes of its length (little endian), and by lines.
_COUNTED = {b"U": 1, b"T": 4, b"X": 4, b"\x8c": 1, b"\x8d": 8, b"C": 1, b"B": 4, b"\x8e": 8}
_COUNTED.update({b"\x8a": 1, b"\x8b": 4, b"\x96": 8})
_LINES = {b"I": 1, b"L": 1, b"F": 1, b"S": 1, b"V": 1, b"P": 1, b"p": 1, b"g": 1, b"c": 2, b"i": 2}


class RestrictedUnpickler(pickle.Unpickler):
    """Refuses a pickle that names a class or function that is not allowed, instead of running it.

    Args:
        file: binary.
        allowed: (module, name) of what it may name, such as `PLAIN_NAMES` or `ARRAY_NAMES`.
        encoding: of byte strings of Python 2.

    Raises:
        pickle.UnpicklingError: (``load``) says what the pickle names.
    """

    def __init__(
        self, file: IO[bytes], allowed: AbstractSet[Tuple[str, str]], encoding: str = "latin1"
    ):
        super().__init__(file, encoding=encoding)
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        """Called by pickle for everything that is not a plain value."""
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def loads_plain(content: bytes, path: str) -> Any:
    """Unpickles lists, dicts, sets, numbers and text, of the protocols 0 to 5.

    Byte strings of Python 2 are text in UTF-8 or else Latin-1.

    Args:
        content: the pickle.
        path: its file, for messages.

    Raises:
        ValueError: names the file and what it refers to, or what is damaged.
    """
    try:
        _check_memo(content)
        try:
            return _load(content, "utf-8")
        except UnicodeDecodeError:
            return _load(content, "latin1")
    except Exception as error:  # a damaged pickle may raise almost anything
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path}: refused as pickle of referring records: {reason}") from error


def _load(content: bytes, encoding: str) -> Any:
    stream = io.BytesIO(content)
    value = RestrictedUnpickler(stream, PLAIN_NAMES, encoding).load()
    if stream.read(1):
        raise pickle.UnpicklingError("data after its end")
    return value


def _check_memo(content: bytes) -> None:
    """Refuses memo numbers beyond the size of the file.

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
            position = start
            for _ in range(_LINES[code]):
                start, position = position, content.find(b"\n", position) + 1
                if not position:
                    raise pickle.UnpicklingError("it ends within a line")
            if code == b"p" and int(content[start : position - 1]) > len(content):
                raise pickle.UnpicklingError("a memo number is larger than the file")
        elif code == b".":
            return
        elif end > position:
            position = end
        else:
            found = f"an unknown or oversized instruction {code!r} at byte {end}"
            raise pickle.UnpicklingError(found if code else "it ends before its end mark")


def _fixed_run(size: int) -> "re.Pattern[bytes]":
    """Pattern of a run of instructions of fixed length, with memo numbers below the file's size."""
    digits = min(4, max(1, (size.bit_length() + 7) // 8))
    top = min(255, size >> (8 * (digits - 1)))
    top_byte = b"[\\x00-" + re.escape(bytes([top])) + b"]"
    memo = b"r" + rb"[\x00-\xff]" * (digits - 1) + top_byte + rb"\x00" * (4 - digits)
    return re.compile(
        # The first set has no argument, the others 1, 2, 4 and 8 bytes.
        rb"(?s:[()012\]}aesutldNbRoQ\x81\x85-\x89\x8f-\x94\x97\x98]"
        rb"|[Kqh\x80\x82].|[M\x83]..|[Jj\x84].{4}|[G\x95].{8}|" + memo + rb"){0,1000}"
    )
