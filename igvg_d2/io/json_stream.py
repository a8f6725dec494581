"""JSON item by item, however large the file is, and JSON lines.

As Python objects, instances.json of gRefCOCO takes 700 MB; prediction files are no smaller.

The library ijson is no faster, writes "?" for half a character, takes 1 GB for 20,000 brackets that
nest, and does not see that a key occurs twice in the outermost object.
"""

import json
import math
import os
import re
import reprlib
from typing import IO, Any, Dict, Iterator, List, Sequence, Tuple

_PIECE = 1 << 20
# A value that has no end within so many characters is taken for damage.
_MAX_CHARACTERS = 1 << 28
_WHITE = re.compile(r"[ \t\n\r]*")
# What may follow "1" in a number.
_REST_OF_NUMBER = re.compile(r"[-+.eE0-9]*")


class JSONError(ValueError):
    """The text is not JSON; says where."""


class WrongContentError(ValueError):
    """The text is JSON, but not what was expected; says what was found."""


class JSONReader:
    """A cursor over a JSON text that is read in pieces.

    Args:
        file: text.

    Raises:
        JSONError: (all methods) with line, column and character of the error; also of an object
            with a key twice, of which ``json`` would let the last one win silently.
    """

    def __init__(self, file: IO[str]):
        self._file = file
        self._decoder = json.JSONDecoder(object_pairs_hook=without_repetition)
        # The text from the cursor's surroundings on, the cursor in it, and what came before it.
        self._text, self._at = "", 0
        self._characters, self._lines, self._column = 0, 0, 0

    def peek(self) -> str:
        """The next character that is not white space, "" at the end."""
        while True:
            self._at = _WHITE.match(self._text, self._at).end()
            if self._at < len(self._text) or not self._read(_PIECE):
                return self._text[self._at : self._at + 1]

    def expect(self, characters: str) -> str:
        """The next character, which must be one of these."""
        found = self.peek()
        if not found or found not in characters:
            raise self._error(f"Expecting {' or '.join(map(repr, characters))}", self._at)
        self._at += 1
        return found

    def value(self) -> Any:
        """The next value."""
        self.peek()
        while True:
            # What does not fit is read twice as far, so that long values are not parsed too often.
            wanted = max(_PIECE, len(self._text) - self._at)
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                is_too_long = len(self._text) - self._at > _MAX_CHARACTERS
                if is_too_long or not self._read(wanted):
                    raise self._error(error.msg, error.pos) from error
            except (RecursionError, ValueError) as error:
                raise self._error(str(error), self._at) from error
            else:
                # A number may go on in the next piece, such as the 2 of "2." + "5".
                rest = _REST_OF_NUMBER.match(self._text, end).end()
                if rest < len(self._text) or not self._read(wanted):
                    self._at = end
                    return value

    def items(self) -> Iterator[Any]:
        """The items of the list that begins here."""
        self.expect("[")
        if self.peek() == "]":
            self.expect("]")
            return
        while True:
            yield self.value()
            if self.expect(",]") == "]":
                return

    def keys(self) -> Iterator[str]:
        """The keys of the object that begins here; whoever iterates reads the value of each."""
        self.expect("{")
        if self.peek() == "}":
            self.expect("}")
            return
        while True:
            if self.peek() != '"':
                raise self._error("Expecting a key", self._at)
            key = self.value()
            self.expect(":")
            yield key
            if self.expect(",}") == "}":
                return

    def end(self) -> None:
        """Nothing but white space may follow."""
        if self.peek():
            raise self._error("Extra data", self._at)

    def _read(self, size: int) -> bool:
        """Append a piece and forget what lies before the cursor; False at the end."""
        try:
            piece = self._file.read(size)
        except UnicodeDecodeError as error:
            raise JSONError(f"not UTF-8: {error}") from error
        if not piece:
            return False
        self._lines, self._column = self._place(self._at)
        self._characters += self._at
        self._text, self._at = self._text[self._at :] + piece, 0
        return True

    def _place(self, at: int) -> Tuple[int, int]:
        """Lines before a position of the text, and characters before it in its line."""
        newline = self._text.rfind("\n", 0, at)
        column = self._column + at if newline < 0 else at - newline - 1
        return self._lines + self._text.count("\n", 0, at), column

    def _error(self, message: str, at: int) -> JSONError:
        line, column = self._place(at)
        where = f"line {line + 1} column {column + 1} (char {self._characters + at})"
        return JSONError(f"{message}: {where}")


def iterate_records(file: IO[str]) -> Iterator[Tuple[str, Any]]:
    """Values of a text with one JSON list, or with one JSON value per line.

    Yields:
        ("record 1" or "line 1", value).

    Raises:
        JSONError: the text is not JSON, or a value has more than 2**28 characters.
    """
    reader = JSONReader(file)
    number = 0
    if reader.peek() == "[":
        try:
            for number, value in enumerate(reader.items(), 1):
                yield f"record {number}", value
            reader.end()
        except JSONError as error:
            raise JSONError(f"record {number + 1}: {error}") from error
        return
    file.seek(0)
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line, object_pairs_hook=without_repetition)
            except (ValueError, RecursionError) as error:
                raise JSONError(f"line {number}: {error}") from error


def iterate_lists(
    file: IO[str], keys: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[Tuple[str, Any]]:
    """Items of the lists that a JSON object must have under these keys, or may have.

    Yields:
        (key, item), in the order of the file.

    Raises:
        JSONError: a syntax error.
        WrongContentError: no object, no list under a key, a key twice, or one missing.
    """
    reader = JSONReader(file)
    if reader.peek() != "{":
        raise WrongContentError(describe(reader.value()))
    seen: Dict[str, None] = {}
    for key in reader.keys():
        if key in seen:
            raise WrongContentError(f"the key {reprlib.repr(key)} twice")
        seen[key] = None
        if reader.peek() == "[":
            # Other lists, too, are read item by item: they may be the largest of the file.
            number = 0
            try:
                for number, item in enumerate(reader.items(), 1):
                    if key in keys or key in optional:
                        yield key, item
            except JSONError as error:
                where = f"item {number + 1} of {reprlib.repr(key)}"
                raise JSONError(f"{where}: {error}") from error
            continue
        value = reader.value()
        if key in keys:
            raise WrongContentError(f"{describe(value)} under '{key}', not a list")
    reader.end()
    if not set(keys) <= set(seen):
        raise WrongContentError(describe(seen))


def read_metrics(path: str) -> Dict[int, Dict[str, Any]]:
    """Scalars of a ``metrics.json`` by iteration, ascending; {} if there is no such file.

    Lines about one iteration are put together, the last value counts. A line that is no JSON, as a
    killed process can leave at the end, is passed over; so are lines without an iteration.
    """
    records: Dict[int, Dict[str, Any]] = {}
    if not os.path.isfile(path):
        return records
    with open(path, errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
                records.setdefault(int(record["iteration"]), {}).update(record)
            except (ValueError, KeyError, TypeError):
                continue
    return dict(sorted(records.items()))


def to_json_text(content: Any, **options: Any) -> str:
    """Nested dicts and lists as JSON: NaN and the infinities, which it does not have, become null.

    Whatever this package writes as .json or .jsonl is made by it; `options` are those of ``json``.
    """
    return json.dumps(_finite(content), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    """Copy of nested dicts and lists with None for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def describe(value: Any) -> str:
    """Type and, for a dict, the first keys of a value, for error messages."""
    keys = f" with keys {reprlib.repr(list(value)[:8])}" if isinstance(value, dict) else ""
    return f"{type(value).__name__}{keys}"


def without_repetition(pairs: List[Tuple[str, Any]]) -> dict:
    """Dict of the pairs of an object; JSONError if a key occurs twice."""
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: Dict[str, None] = {}
        repeated = next(key for key, _ in pairs if key in seen or seen.update({key: None}))
        raise JSONError(f"the key {reprlib.repr(repeated)} occurs twice in one object")
    return content
