"""onnx_demo.py: what the user mistyped, or lacks, is told in one line."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from igvg_d2.io.image import read_image
from tests.scripts import ROOT, load_script

onnxruntime = pytest.importorskip("onnxruntime", reason="pip install -e '.[export]'")
MODEL, SCENE = (str(ROOT / "demo" / name) for name in ("igvg_tiny_shapes.onnx", "images/scene.jpg"))


def reason(arguments):
    """The line with which the script ends."""
    with pytest.raises(SystemExit) as error:
        load_script("demo/onnx_demo.py").main(arguments)
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("module", ["onnxruntime", "PIL"])
def test_a_missing_package_is_named(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    text = reason([MODEL, SCENE, "x"])
    assert module in text and "pip install onnxruntime numpy Pillow" in text


def test_a_missing_or_damaged_image_is_named(tmp_path):
    assert "none.jpg" in reason([MODEL, "none.jpg", "x"])
    assert r"n\x1bé.jpg" in reason([MODEL, "n\x1bé.jpg", "x"])  # as igvg_d2.io.terminal.printable
    (tmp_path / "text.jpg").write_text("text")
    assert "text.jpg" in reason([MODEL, str(tmp_path / "text.jpg"), "x"])


def test_images_are_read_as_the_library_reads_them_or_refused(tmp_path, monkeypatch):
    demo, path = load_script("demo/onnx_demo.py"), str(tmp_path / "image.png")
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 4), np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    for mode in ("RGB", "RGBA", "LA", "L", "1", "P"):
        for options in ({}, {"exif": turned}, {"transparency": 0} if mode in ("L", "P") else {}):
            Image.fromarray(pixels).convert(mode).save(path, **options)
            np.testing.assert_array_equal(np.asarray(demo.read(path)), read_image(path, "RGB"))
    Image.fromarray(np.zeros((3, 3), np.uint16)).save(path)
    assert f"'{path}': pixels of more than 8 bits" in reason([MODEL, path, "x"])
    (tmp_path / "image.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    assert "cannot identify image file" in reason([MODEL, path, "x"])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "exceeds limit of 200 pixels" in reason([MODEL, SCENE, "x"])


def test_a_file_that_is_no_export_is_named(monkeypatch, tmp_path):
    (tmp_path / "text.onnx").write_text("text")
    for name in ("none.onnx", str(tmp_path / "text.onnx"), str(ROOT / "demo")):
        assert reason([name, SCENE, "x"]).startswith(f"cannot load '{name}': ")
    other = SimpleNamespace(get_modelmeta=lambda: SimpleNamespace(custom_metadata_map={}))
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: other)
    text = reason(["\x1bother.onnx", SCENE, "x"])
    assert r"'\x1bother.onnx' is no file of tools/export.py" in text


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    assert ".text" in reason([MODEL, SCENE, "x", "--output", str(tmp_path / "answer.text")])
    assert "none/x.png" in reason([MODEL, SCENE, "x", "--output", str(tmp_path / "none/x.png")])


def test_the_file_of_the_tokenizer_is_asked_for():
    with pytest.raises(SystemExit, match="needs --tokenizer beit3.spm"):
        load_script("demo/onnx_demo.py").tokenize({"name": "BEiT3Tokenizer"}, "x", "")
