"""Annotation files: JSON item by item, and pickles (see pickles.py)."""

import contextlib
import gc
import hashlib
import json
import logging
from typing import Any, Dict, Generator, Iterator, List, Sequence, Tuple

from detectron2.utils.file_io import PathManager

from .fields import describe, short
from .pickles import loads_plain

logger = logging.getLogger(__name__)

_DECODER = json.JSONDecoder()
_WHITESPACE = " \t\n\r"
_LIST = "a list of records (dicts)"


def read_refs(path: str) -> List[Dict[str, Any]]:
    """Reads referring records: ``.json``, or the refer API's pickle of Python 2 or 3.

    Args:
        path: annotation file; the suffix ``.json`` decides the format.

    Returns:
        The list of records as stored.

    Raises:
        ValueError: names the file; a pickle that holds more than plain values is refused.
    """
    refs = list(iterate_refs(path))
    if not all(isinstance(ref, dict) for ref in refs):
        raise ValueError(f"{path}: expected {_LIST}, found other items in the list")
    return refs


def iterate_refs(path: str) -> Iterator[Any]:
    """The items of :func:`read_refs` one by one, whatever they are."""
    content = _read_bytes(path)
    digest = hashlib.sha256(content).hexdigest()
    if path.endswith(".json"):
        items: Any = (item for _, item in _iterate_text(_decode(content, path), path, _LIST))
    else:
        items = loads_plain(content, path)
        if not isinstance(items, list):
            raise ValueError(f"{path}: expected {_LIST}, found {describe(items)}")
    del content
    number = 0
    for number, item in enumerate(items, start=1):
        yield item
    logger.info("%s: %d records, sha256 %s", path, number, digest)


def iterate_json(
    path: str, required: Sequence[str], optional: Sequence[str] = (), kind: str = "a JSON object"
) -> Iterator[Tuple[str, Any]]:
    """Items of lists in a JSON object, one by one.

    The file is not turned into Python objects as a whole: for instances.json of gRefCOCO they would
    take 700 MB.

    Args:
        path: JSON file with an object.
        required, optional: keys of its lists that are of interest.
        kind: what the file should be, for messages.

    Yields:
        (key, item), in the order of the file.

    Raises:
        ValueError: names the file; a syntax error, no object, or a required key is missing.
    """
    expected = f"{kind} with {' and '.join(map(repr, required))}"
    text = _decode(_read_bytes(path), path)
    yield from _iterate_text(text, path, expected, tuple(required), tuple(optional))


def read_json(path: str) -> Any:
    """Reads a JSON file; a syntax error names the file."""
    try:
        return json.loads(_read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise _syntax_error(path, error) from error


@contextlib.contextmanager
def paused_garbage_collection() -> Iterator[None]:
    """Without the cyclic collector, which would walk over all records again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _iterate_text(
    text: str,
    path: str,
    expected: str,
    required: Tuple[str, ...] = (),
    optional: Tuple[str, ...] = (),
) -> Iterator[Tuple[str, Any]]:
    """Items of the lists under keys of an object, or (without keys) of a list."""
    try:
        position = _skip(text, 0)
        opening = "{" if required else "["
        if not text.startswith(opening, position):
            raise _WrongContent(describe(_DECODER.raw_decode(text, position)[0]))
        if required:
            position = yield from _iterate_object(text, position, required, optional)
        else:
            position = yield from _iterate_list(text, position, "")
        if _skip(text, position) != len(text):
            raise json.JSONDecodeError("Extra data", text, position)
    except _WrongContent as error:
        raise ValueError(f"{path}: expected {expected}, found {error}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise _syntax_error(path, error) from error


class _WrongContent(Exception):
    """The JSON is right, but it is not what was expected; says what was found."""


def _iterate_object(
    text: str, position: int, required: Tuple[str, ...], optional: Tuple[str, ...]
) -> Generator[Tuple[str, Any], None, int]:
    """Items of lists in the object at a position; returns the position behind it."""
    seen: List[str] = []
    position = _skip(text, position + 1)
    while not text.startswith("}", position):
        if seen:
            position = _expect(text, position, ",")
        key, position = _DECODER.raw_decode(text, position)
        if not isinstance(key, str):
            raise json.JSONDecodeError("Expecting property name", text, position)
        if key in seen:
            raise _WrongContent(f"the key {short(key)} twice")
        seen.append(key)
        position = _expect(text, position, ":")
        if key not in (*required, *optional):
            _, position = _DECODER.raw_decode(text, position)
        elif text.startswith("[", position):
            position = yield from _iterate_list(text, position, key)
        else:
            found = describe(_DECODER.raw_decode(text, position)[0])
            raise _WrongContent(f"{found} under '{key}', not a list")
        position = _skip(text, position)
    if not set(required) <= set(seen):
        raise _WrongContent(f"dict with keys {short(seen)}")
    return position + 1


def _iterate_list(text: str, position: int, key: str) -> Generator[Tuple[str, Any], None, int]:
    """Yields (key, item) of the list at a position; returns the position behind it."""
    position = _skip(text, position + 1)
    is_first = True
    while not text.startswith("]", position):
        if not is_first:
            position = _expect(text, position, ",")
        item, position = _DECODER.raw_decode(text, position)
        is_first = False
        yield key, item
        position = _skip(text, position)
    return position + 1


def _expect(text: str, position: int, character: str) -> int:
    """Position of the next value after a separator."""
    position = _skip(text, position)
    if not text.startswith(character, position):
        raise json.JSONDecodeError(f"Expecting '{character}' delimiter", text, position)
    return _skip(text, position + 1)


def _skip(text: str, position: int) -> int:
    """Position of the next character that is not white space."""
    while position < len(text) and text[position] in _WHITESPACE:
        position += 1
    return position


def _decode(content: bytes, path: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _syntax_error(path, error) from error


def _syntax_error(path: str, error: Exception) -> ValueError:
    return ValueError(f"{path}: not valid JSON ({error}); download or write it again")


def _read_bytes(path: str) -> bytes:
    with PathManager.open(path, "rb") as f:
        return f.read()
