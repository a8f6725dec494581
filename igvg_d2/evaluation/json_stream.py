"""Values of a JSON list or of JSON lines, one at a time, however large the file is."""

import json
from typing import IO, Any, Iterator, List, Tuple

_CHUNK = 1 << 20
# A value that is longer is taken for a file without an end of a value.
_MAX_CHARACTERS = 1 << 28
_WHITE = " \t\r\n"


class JSONStreamError(ValueError):
    """The text is not JSON; says where."""


def read_json_values(file: IO[str]) -> Iterator[Tuple[str, Any]]:
    """Values of a text file with one JSON list, or with one JSON value per line.

    A key that occurs twice in one object is an error: JSON would let the last one win silently.

    Yields:
        ("record 1" or "line 1", value).

    Raises:
        JSONStreamError: the text is not JSON, or a value has more than 2**28 characters.
    """
    start = file.read(1)
    while start and start in _WHITE:
        start = file.read(1)
    if start == "[":
        yield from _read_list(file)
        return
    file.seek(0)
    for number, line in enumerate(file, 1):
        if line.strip():
            yield f"line {number}", _loads(line, f"line {number}")


def _read_list(file: IO[str]) -> Iterator[Tuple[str, Any]]:
    """Values of a list whose bracket has been read."""
    decoder = json.JSONDecoder(object_pairs_hook=_without_repetition)
    buffer, position, number, wanted, after_comma = "", 0, 0, _CHUNK, False
    while True:
        chunk = file.read(wanted)
        buffer, position = buffer[position:] + chunk, 0
        if len(buffer) > _MAX_CHARACTERS:
            raise JSONStreamError(f"record {number + 1} has no end within 2**28 characters")
        while True:
            position = _skip_white(buffer, position)
            if buffer[position : position + 1] == "]" and not after_comma:
                _check_rest(buffer[position + 1 :], file)
                return
            try:
                value, end = decoder.raw_decode(buffer, position)
            except json.JSONDecodeError as error:
                if not chunk:
                    raise JSONStreamError(f"record {number + 1}: {error}") from error
                break
            except (RecursionError, ValueError) as error:
                raise JSONStreamError(f"record {number + 1}: {error}") from error
            end = _skip_white(buffer, end)
            if end == len(buffer) and chunk:
                break
            separator = buffer[end : end + 1]
            if separator not in (",", "]") or not separator:
                raise JSONStreamError(f"record {number + 1}: expected ',' or ']' after it")
            number += 1
            yield f"record {number}", value
            after_comma = separator == ","
            position = end + after_comma
        # A value that did not fit: read twice as much, so that long ones are not parsed too often.
        wanted = max(_CHUNK, len(buffer) - position)


def _skip_white(text: str, position: int) -> int:
    """First position from `position` on that is not white space."""
    while position < len(text) and text[position] in _WHITE:
        position += 1
    return position


def _check_rest(rest: str, file: IO[str]) -> None:
    """Nothing but white space may follow the list."""
    while rest:
        if rest.strip():
            raise JSONStreamError(f"text after the end of the list: {rest.strip()[:40]!r}")
        rest = file.read(_CHUNK)


def _loads(text: str, where: str) -> Any:
    """A whole text as JSON."""
    try:
        return json.loads(text, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:
        raise JSONStreamError(f"{where}: {error}") from error


def _without_repetition(pairs: List[Tuple[str, Any]]) -> dict:
    """Dict of the pairs of an object."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise JSONStreamError(f"the key {repeated!r} occurs twice in one object")
    return content
