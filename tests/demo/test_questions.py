"""Which images and expressions the demo's command line stands for."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Names only, where the content does not matter."""
    for name in ("b.JPG", "a.png", "c.heic", "notes.txt", ".hidden.png", "in/d.tif", "x[1].png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "inputs, found",
    [
        (["b.JPG", "absent.png", "b.JPG"], ["b.JPG", "absent.png"]),
        (["."], ["./a.png", "./b.JPG", "./c.heic", "./x[1].png"]),
        (["in", "a.png"], ["in/d.tif", "a.png"]),
        (["*.png"], ["a.png", "x[1].png"]),
        (["**/*.tif"], ["in/d.tif"]),
        (["x[1].png", "?.png"], ["x[1].png", "a.png"]),
        (["https://host/a.jpg?size=*"], ["https://host/a.jpg?size=*"]),
    ],
)
def test_files_folders_and_patterns(questions, photos, inputs, found):
    assert questions.find_images(inputs, "") == found


@pytest.mark.parametrize(
    "item, message",
    [
        ("empty", "in 'empty'; for folders within write 'empty/[*][*]/[*].jpg'"),
        ("*.bmp", "[*].bmp"),
    ],
)
def test_what_stands_for_no_image_is_said(questions, photos, item, message):
    with pytest.raises(ValueError, match=f"no image.*{message}"):
        questions.find_images([item], "")


def give(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))


def test_names_through_standard_input(questions, photos, monkeypatch):
    give(monkeypatch, "a.png\n\nmit Ümläut.png\n".encode())
    assert questions.find_images(["-"], "") == ["a.png", "mit Ümläut.png"]
    give(monkeypatch, b"a.png\0with a\nline feed.png\0")
    assert questions.find_images(["-"], "") == ["a.png", "with a\nline feed.png"]
    give(monkeypatch, b"")
    with pytest.raises(ValueError, match="no image in '-'"):
        questions.find_images(["-"], "")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF"])
def test_an_image_through_standard_input(questions, tmp_path, monkeypatch, kind):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    try:
        Image.fromarray(noise).save(buffer, kind)
    except KeyError:
        pytest.skip(f"Pillow {Image.__version__} has no {kind}")
    give(monkeypatch, buffer.getvalue())
    assert questions.find_images(["-"], str(tmp_path)) == [str(tmp_path / "stdin")]
    assert (tmp_path / "stdin").read_bytes() == buffer.getvalue()


DOG, CAT = ("the dog", None), ("a cat, black", "a.png")


@pytest.mark.parametrize(
    "name, text, rows",
    [
        ("q.txt", "\ufeffthe dog\r\n\n  it, \n", [DOG, ("it,", None)]),
        ("q.json", '["the dog", {"image": "a.png", "expression": "a cat, black"}]', [DOG, CAT]),
        ("q.csv", '\ufeffimage,expression\r\na.png,"a cat, black"\r\n,the dog\r\n', [CAT, DOG]),
        ("Q.CSV", "expression,note\nthe dog,1\n", [DOG]),
    ],
)
def test_files_of_expressions(questions, tmp_path, name, text, rows):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert questions.read_expressions(str(tmp_path / name)) == rows


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("q.txt", b"caf\xe9", "utf-8"),
        ("q.txt", b"\n", "expected a list"),
        ("q.json", b"[", "Expecting value"),
        ("q.json", b'{"a": 1}', "expected a list"),
        ("q.json", b'["a", 7]', "entry 2: expected a text.*found int"),
        ("q.json", b'[{"expression": "a", "image": 3}]', "entry 1.*dict with expression, image"),
        ("q.csv", b"image;expression\na;b\n", "entry 1.*found dict with image;expression"),
        ("q.csv", b'expression\n"a', "unexpected end"),
        ("q.xlsx", b"PK", "must end in"),
    ],
)
def test_damaged_files_of_expressions(questions, tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"--expressions-file '.*{name}'.*{message}"):
        questions.read_expressions(str(tmp_path / name))


def test_who_is_asked_what(questions):
    Row, assign = questions.Row, questions.assign
    both = [Row("all", None), Row("one", "b.png")]
    assert assign(both, ["x/a.png", "x/b.png"], "") == {
        "x/a.png": ["all"],
        "x/b.png": ["all", "one"],
    }
    assert assign([Row("one", "./y/b.png")], ["x/b.png", "y/b.png"], "") == {
        "x/b.png": [],
        "y/b.png": ["one"],
    }
    single = [Row("p", "b.png"), Row("q", "/abs/c.png"), Row("r", "b.png")]
    assert assign(single, [], "my") == {"my/b.png": ["p", "r"], "/abs/c.png": ["q"]}
    assert assign([Row("p", "file:///a.png")], [], "my") == {"file:///a.png": ["p"]}
    for rows, images, message in (
        ([Row("one", "b.png")], ["x/b.png", "y/b.png"], "'b.png' is the name of 2 of the images"),
        ([Row("one", "c.png")], ["x/b.png"], "'c.png' is none of the images"),
        (both, [], "--input is missing"),
        ([Row("all", None)], [], "--input is missing"),
    ):
        with pytest.raises(ValueError, match=message):
            assign(rows, images, "")


def test_long_lists_take_no_time(questions):
    """A table of 20,000 rows over as many images."""
    images = [f"{i % 100}/{i}.png" for i in range(20_000)]
    rows = [questions.Row("x", f"{i}.png") for i in range(20_000)]
    assert set(map(tuple, questions.assign(rows, images, "").values())) == {("x",)}
