"""Images are opened in one place, which applies EXIF rotation and names what it cannot decode."""

import ast
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from igvg_d2.io.image import read_image

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
