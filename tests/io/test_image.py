"""Images are opened in one place, which applies EXIF rotation and names what it cannot decode."""

import ast
import os
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from igvg_d2.io.image import missing_image, read_image, size_mismatch

ROOT = Path(__file__).resolve().parents[2]
READER = ROOT / "igvg_d2" / "io" / "image.py"
FOLDERS = ("igvg_d2", "tools", "demo", "dev", "projects")
# Functions of PIL, OpenCV, matplotlib, imageio, torchvision and Detectron2 that decode a file.
OPENERS = ("Image.open", ".imread", ".imdecode", ".decode_image", "utils.read_image")


def test_nothing_else_opens_images():
    files = [*ROOT.glob("*.py"), *ROOT.glob("datasets/*.py")]
    for folder in FOLDERS:
        files += ROOT.glob(f"{folder}/**/*.py")
    wrong = []
    for path in set(files) - {READER}:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [ast.unparse(node.func)] if isinstance(node, ast.Call) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            opened = [name for name in names if name.endswith(OPENERS)]
            wrong += [f"{path.relative_to(ROOT)}:{node.lineno} {name}" for name in opened]
    assert not wrong, f"read images by igvg_d2.io.image.read_image: {wrong}"


def test_read_image_applies_the_exif_rotation(tmp_path):
    path = str(tmp_path / "a.png")
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 0] = (200, 100, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right by 90 degrees
    Image.fromarray(pixels).save(path, exif=exif)
    image = read_image(path, "BGR")
    assert image.shape == (3, 2, 3) and image.dtype == np.uint8
    assert image[0, 1].tolist() == [0, 100, 200]


def test_read_image_names_the_file(tmp_path):
    path = tmp_path / "a.jpg"
    with pytest.raises(FileNotFoundError, match="a.jpg"):
        read_image(str(path), "RGB")
    path.write_text("<html>")
    with pytest.raises(ValueError, match="a.jpg.*download or write it again"):
        read_image(str(path), "RGB")


def test_grey_of_16_bits_keeps_its_levels(tmp_path):
    path = str(tmp_path / "grey.png")
    values = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    for ending in ("png", "tif"):
        path = str(tmp_path / f"grey.{ending}")
        Image.fromarray(values).save(path)
        image = read_image(path, "RGB")
        assert (image[..., 0] == np.arange(256).reshape(16, 16)).all() and image.dtype == np.uint8


@pytest.mark.parametrize("kind", ["float32", "int32"])
def test_values_without_a_known_range_are_refused(tmp_path, kind):
    path = str(tmp_path / "values.tif")
    Image.fromarray(np.ones((4, 4), kind)).save(path)
    with pytest.raises(ValueError, match="values.tif.*no range is known"):
        read_image(path, "RGB")


def test_only_formats_of_images_are_opened(tmp_path, monkeypatch):
    path, proof = tmp_path / "postscript.jpg", tmp_path / "ran"
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\nshowpage\n%%EOF\n"
    )
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {proof}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(ValueError, match="postscript.jpg"):
        read_image(str(path), "RGB")
    assert not proof.exists()


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo.png")
    for path in (str(tmp_path / "fifo.png"), "/dev/zero", str(tmp_path)):
        with pytest.raises(ValueError, match="not a regular file"):
            read_image(path, "RGB")


@pytest.mark.parametrize(
    "there, asked, message",
    [
        ("cafe\u0301.png", "caf\u00e9.png", "another Unicode normal form .NFD."),
        ("caf\u00e9.png", "cafe\u0301.png", "another Unicode normal form .NFC."),
        ("a.JPG", "a.jpg", "there is 'a.JPG'"),
        ("sub/a.png", "sub\\a.png", "'/' in place of"),
        ("other.png", "a.png", "a.png' does not exist$"),
        ("other.png", "a" * 300, "File name too long"),
    ],
)
def test_a_name_that_is_almost_right_is_said(tmp_path, there, asked, message):
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).write_bytes(b"")
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        read_image(str(tmp_path / asked), "RGB")


def test_a_size_that_is_turned_is_explained(tmp_path):
    path, exif = str(tmp_path / "a.png"), Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.zeros((30, 40, 3), np.uint8))
    image.save(path, exif=exif)
    assert "EXIF" in size_mismatch(path, (40, 30), (30, 40))
    assert "EXIF" not in size_mismatch(path, (40, 30), (30, 41))
    image.save(path)
    assert "EXIF" not in size_mismatch(path, (40, 30), (30, 40))


def test_many_missing_images_are_named_in_time(tmp_path):
    """A folder is listed once, not once per image that is not there."""
    for i in range(3000):
        (tmp_path / f"{i}.JPG").touch()
    with mock.patch("os.listdir", wraps=os.listdir) as listdir:
        texts = [missing_image(str(tmp_path / f"{i}.jpg")) for i in range(3000)]
    assert listdir.call_count == 1 and texts[7].endswith("; there is '7.JPG'")
