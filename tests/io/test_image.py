"""Images are opened in one place, which applies EXIF rotation and names what it cannot decode."""

import ast
import os
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from igvg_d2.io import image as module
from igvg_d2.io.image import missing_image, read_image, size_mismatch

ROOT = Path(__file__).resolve().parents[2]
READER = ROOT / "igvg_d2" / "io" / "image.py"
# It works without this library; what Pillow alone takes is measured there.
OTHERS = (ROOT / "demo" / "onnx_demo.py", ROOT / "tools" / "benchmarking" / "data_parts.py")
FOLDERS = ("igvg_d2", "tools", "demo", "dev", "projects")
# Functions of PIL, OpenCV, matplotlib, imageio, torchvision and Detectron2 that decode a file.
OPENERS = ("Image.open", ".imread", ".imdecode", ".decode_image", "utils.read_image")


def test_nothing_else_opens_images():
    files = [*ROOT.glob("*.py"), *ROOT.glob("datasets/*.py")]
    for folder in FOLDERS:
        files += ROOT.glob(f"{folder}/**/*.py")
    wrong = []
    for path in set(files) - {READER, *OTHERS}:
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


@pytest.mark.parametrize("kind, name", [("float32", "floating point"), ("int32", "32 bits")])
def test_values_without_a_known_range_are_refused(tmp_path, kind, name):
    path = str(tmp_path / "values.tif")
    Image.fromarray(np.ones((4, 4), kind)).save(path)
    with pytest.raises(ValueError, match=f"values.tif': its pixels are.*{name}.*no range is known"):
        read_image(path, "RGB")


def test_a_grey_map_of_16_bits_is_one(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 65535\n" + np.array([257, 65535], ">u2").tobytes())
    assert read_image(str(tmp_path / "a.pgm"), "RGB").tolist() == [[[1] * 3, [255] * 3]]


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1", "CMYK", "YCbCr"])
@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp", "bmp", "gif", "jp2", "avif"])
def test_opaque_images_are_those_of_pillow(tmp_path, monkeypatch, mode, ending):
    """Strip by strip: what is converted at a time makes no difference."""
    monkeypatch.setattr(module, "_STRIP", 100)
    path = str(tmp_path / f"a.{ending}")
    noise = np.random.default_rng(0).integers(0, 256, (23, 31, 3), np.uint8)
    try:
        Image.fromarray(noise).convert(mode).save(path)
        # Pillow once called a TIFF of YCbCr truncated that it had just written.
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB"))
    except (OSError, KeyError, ValueError) as error:
        pytest.skip(f"Pillow does not write and read {mode} in .{ending}: {error}")
    assert (read_image(path, "RGB") == expected).all()
    assert (read_image(path, "BGR") == expected[..., ::-1]).all()


@pytest.mark.parametrize(
    "mode, ending", [("RGBA", "png"), ("LA", "png"), ("P", "png"), ("P", "gif"), ("RGBA", "webp")]
)
def test_transparent_parts_are_white(tmp_path, mode, ending):
    """Their colours are anything, and often black."""
    path = str(tmp_path / f"a.{ending}")
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:, 2:, 3] = 255
    pixels[0, 0, 3] = 0 if mode == "P" else 51  # a fifth of black on white is 204
    image = Image.fromarray(pixels)
    if mode == "P":
        image = Image.fromarray((pixels[..., 3] > 0).astype(np.uint8)).convert("P")
        image.putpalette([0, 0, 0, 0, 0, 0] + [9] * 762)
        image.info["transparency"] = 0
    elif mode == "LA":
        image = image.convert("LA")
    image.save(path, lossless=True)
    read = read_image(path, "RGB")
    assert (read[:, 2:] == 0).all() and (read[1:, :2] == 255).all()
    assert read[0, 0].tolist() == [255 if mode == "P" else 204] * 3


def test_a_color_that_stands_for_transparent_is_white(tmp_path):
    pixels = np.full((2, 2, 3), 7, np.uint8)
    pixels[0] = (1, 2, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png", transparency=(1, 2, 3))
    assert read_image(str(tmp_path / "a.png"), "RGB")[:, 0].tolist() == [[255] * 3, [7] * 3]


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif", "jpg"])
def test_the_first_of_several_frames_is_read_and_this_is_said(tmp_path, caplog, ending):
    path = str(tmp_path / f"frames.{ending}")
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (200, 10)]
    kind = "MPO" if ending == "jpg" else None
    frames[0].save(path, kind, save_all=True, append_images=frames[1:])
    for _ in range(2):
        assert (abs(read_image(path, "RGB").astype(int) - 200) <= 2).all()
    said = [message for message in caplog.messages if "frames.jpg" in message or ending in message]
    # A phone writes a preview, or a map of depth, beside a photo.
    assert len(said) == (ending != "jpg")
    assert all("several frames or pages, of which the first is read" in text for text in said)


def test_a_turned_photo_of_a_phone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:10] = 255
    for ending in ("jpg", "tif", "webp", "png"):
        Image.fromarray(pixels).save(tmp_path / f"a.{ending}", exif=exif)
        image = read_image(str(tmp_path / f"a.{ending}"), "RGB")
        assert image.shape == (30, 20, 3), ending
        assert image[:, 12:].min() > 240 and image[:, :8].max() < 15, ending


def test_an_image_above_the_limit_is_refused_with_its_size(tmp_path, monkeypatch):
    path = str(tmp_path / "large.png")
    Image.new("1", (300, 200)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 29_999)
    with pytest.raises(ValueError, match="large.png.*60000 pixels.*59998.*MAX_IMAGE_PIXELS"):
        read_image(path, "RGB")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30_000)
    with pytest.warns(Image.DecompressionBombWarning):
        assert read_image(path, "RGB").shape == (200, 300, 3)


def test_a_photo_in_heic(tmp_path):
    heif = pytest.importorskip("pillow_heif", reason="HEIC needs pillow-heif")
    path = str(tmp_path / "a.jpg")  # under a wrong ending, as sent by some phones
    heif.from_pillow(Image.new("RGB", (64, 48), (200, 30, 30))).save(tmp_path / "a.heic")
    os.rename(tmp_path / "a.heic", path)
    image = read_image(path, "RGB")
    assert image.shape == (48, 64, 3) and abs(image[20, 20].astype(int) - (200, 30, 30)).max() < 9


def test_a_photo_in_heic_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
    with pytest.raises(ValueError, match="a.heic': a HEIC file.*pip install pillow-heif"):
        read_image(str(path), "RGB")


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
