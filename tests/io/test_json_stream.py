"""JSON read in pieces says what ``json`` says of the whole."""

import io
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

import igvg_d2
from igvg_d2.io import json_stream
from igvg_d2.io.json_stream import (
    JSONError,
    JSONReader,
    WrongContentError,
    iterate_lists,
    iterate_records,
    to_json_text,
)

VALUES = [
    1,
    -2.5e-7,
    12345678901234567890,
    True,
    None,
    '\u00e4"\\n]',
    [],
    {},
    {"a": [1, {"b": "x"}]},
]


@pytest.fixture(params=[1, 2, 3, 7, 1 << 20])
def piece(request, monkeypatch):
    """Characters that are read at once."""
    monkeypatch.setattr(json_stream, "_PIECE", request.param)
    return request.param


@pytest.mark.parametrize("indent", [None, 2])
def test_values_of_lists_objects_and_lines(piece, indent):
    text = json.dumps(VALUES, indent=indent)
    assert list(iterate_records(io.StringIO(text))) == [
        (f"record {k}", value) for k, value in enumerate(VALUES, 1)
    ]
    content = {"skipped": VALUES, "x": [1, 2], "number": 12, "y": VALUES, "z": []}
    text = json.dumps(content, indent=indent)
    items = list(iterate_lists(io.StringIO(text), ("x", "z", "y")))
    assert items == [("x", 1), ("x", 2), *(("y", value) for value in VALUES)]
    lines = "\n\n".join(map(json.dumps, VALUES[1:]))
    assert [v for _, v in iterate_records(io.StringIO(lines))] == VALUES[1:]


def test_damage_is_found_where_json_finds_it(piece):
    generator = random.Random(piece)
    whole = json.dumps(VALUES[5:], indent=1)
    for _ in range(100):
        at = generator.randrange(len(whole))
        text = whole[:at] + generator.choice(["", ",", "]", "}", '"', "9", "x"]) + whole[at + 1 :]
        try:
            expected = json.loads(text)
        except json.JSONDecodeError as error:
            with pytest.raises(JSONError, match=r"line \d+ column \d+ \(char \d+\)") as caught:
                reader = JSONReader(io.StringIO(text))
                reader.value()
                reader.end()
            place = f"line {error.lineno} column {error.colno} (char {error.pos})"
            assert str(caught.value).endswith(place)
            with pytest.raises(JSONError):
                list(iterate_records(io.StringIO(text)))
        else:
            found = [value for _, value in iterate_records(io.StringIO(text))]
            assert found == (expected if text.startswith("[") else [expected])


@pytest.mark.parametrize(
    "text, message",
    [
        ('[{"a": 1, "a": 2}]', "record 1: the key 'a' occurs twice in one object"),
        ('1\n{"b": {"a": 1, "a": 2}}', "line 2: the key 'a' occurs twice in one object"),
        ("[1, 2] 3", "record 3: Extra data: line 1 column 8"),
        ("[1, 2", "record 3: Expecting .*line 1 column 6"),
        ("[" * 100000, "record 1: .*recursion"),
        ("1\n[", "line 2"),
    ],
)
def test_what_is_no_list_of_records_is_named(piece, text, message):
    with pytest.raises(JSONError, match=message):
        list(iterate_records(io.StringIO(text)))


@pytest.mark.parametrize(
    "text, error, message",
    [
        ("[1]", WrongContentError, "^list$"),
        ('{"x": 1}', WrongContentError, "^int under 'x', not a list"),
        ('{"x": [], "x": []}', WrongContentError, "the key 'x' twice"),
        ('{"y": []}', WrongContentError, "dict with keys \\['y'\\]"),
        ("{}", WrongContentError, "dict"),
        ('{"x": [],}', JSONError, "Expecting a key: line 1 column 10"),
        ('{"x": []} 1', JSONError, "Extra data"),
    ],
)
def test_objects_without_the_lists_are_named(piece, text, error, message):
    with pytest.raises(error, match=message):
        list(iterate_lists(io.StringIO(text), ("x",)))


def test_what_json_does_not_have_becomes_null():
    content = {"a": [math.nan, (math.inf, 1.5)], "b": {"c": -math.inf, "d": np.float64("nan")}}
    text = to_json_text(content, sort_keys=True)
    assert text == '{"a": [null, [null, 1.5]], "b": {"c": null, "d": null}}'


def test_the_package_writes_json_in_one_place():
    """Others only make keys of it, or text that no file holds."""
    root = Path(igvg_d2.__file__).parent
    keys = {"io/json_stream.py", "evaluation/reporting.py"}
    keys |= {"data/datasets/fingerprint.py", "data/datasets/seqtr.py", "data/synthetic/writers.py"}
    found = {str(p.relative_to(root)) for p in root.rglob("*.py") if "json.dump" in p.read_text()}
    assert found <= keys
