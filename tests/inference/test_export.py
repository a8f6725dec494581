"""Exported graphs compute what PyTorch computes, and say what another program needs."""

import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from igvg_d2.checkpoint import read_metadata
from igvg_d2.data.tokenizer import build_tokenizer
from igvg_d2.engine import setup_config
from igvg_d2.inference.graph import GroundingGraph, example_inputs, tokenizer_facts
from igvg_d2.io.onnx_header import read_onnx_metadata
from tests.scripts import ROOT, load_script

EXTRA = "needs pip install 'igvg_d2[export]'"
SMALL = ["MODEL.WEIGHTS", "", *"MODEL.DEVICE cpu INPUT.TOKENIZER.NAME ShapesTokenizer".split()]
SMALL += "MODEL.BEIT3.VOCAB_SIZE 256 MODEL.BEIT3.MAX_TEXT_POSITIONS 32 MODEL.BEIT3.DEPTH 1".split()
SMALL += "MODEL.GROUNDING_HEAD.DEC_LAYERS 1 INPUT.IMAGE_SIZE (96,128)".split()
NARROW = "MODEL.BEIT3.EMBED_DIM 64 MODEL.BEIT3.NUM_HEADS 2 MODEL.BEIT3.FFN_DIM 96".split()
# Base-sized layers, and every choice of the released model.
MODELS = {
    "vit-b": ("configs/gRefCOCO/igvg_beit3_base_320_10ep.yaml", SMALL),
    "released": (
        "configs/gRefCOCO/instancevg_beit3_base_320_released.yaml",
        [*SMALL, *NARROW, "MODEL.QUERY_GENERATOR.NUM_OBJECT_QUERIES", "4"]
        + "INPUT.RESIZE_MODE letterbox".split(),
    ),
}


@pytest.fixture(scope="module")
def export():
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason=EXTRA)
    return load_script("tools/export.py")


@pytest.fixture(scope="module")
def formats(export):
    return sys.modules["exporting.formats"]


@pytest.mark.parametrize("name", MODELS)
def test_onnx_computes_what_pytorch_computes(name, export, formats, tmp_path, capsys):
    config, opts = MODELS[name]
    path, reference = tmp_path / "model.onnx", tmp_path / "reference.npz"
    torch.manual_seed(0)
    files = ["--output", str(path), "--reference", str(reference)]
    export.main(["--config-file", str(ROOT / config), *files, "--opts", *opts])
    printed = capsys.readouterr().out
    assert re.search(r"0 of \d+ points moved, boxes \d\.\de-0[6-9]", printed), printed
    cfg = setup_config(str(ROOT / config), opts)
    torch.manual_seed(0)
    graph = GroundingGraph(build_model(cfg).eval()).eval()
    run = formats.run_onnx(str(path))
    # Other sizes than those of the check: one text, and four of the shortest.
    for lengths in ((9,), (3, 3, 3, 3)):
        inputs = example_inputs(cfg, 256, lengths, seed=5)
        with torch.no_grad():
            expected = {key: value.numpy() for key, value in graph(*inputs).items()}
        found = run([value.numpy() for value in inputs])
        assert list(found) == list(expected)
        wrong = export.differences(expected, found)
        assert wrong.pop("points") == 0 and max(wrong.values()) <= 1e-4
    facts = read_metadata(str(path))
    before, after, words = (
        json.loads(facts[key]) for key in ("preprocessing", "postprocessing", "tokenizer")
    )
    assert before["image_size"] == [96, 128] and before["mean"] == [123.675, 116.28, 103.53]
    assert before["resize"] == ("pil" if name == "vit-b" else "cv2")
    assert before["resize_mode"] == ("squash" if name == "vit-b" else "letterbox")
    assert after["score_thresh"] == cfg.MODEL.IGVG.TEST.SCORE_THRESH_TEST
    assert words["words"][0] == "a" or len(words["words"]) > 50
    assert len(words["sha256"]) == 64 and facts["weights"] == "random"
    with np.load(reference) as arrays:
        assert arrays["inputs.image"].dtype == np.uint8 and arrays["inputs.text_ids"].shape == (
            2,
            7,
        )
        again = run([arrays[f"inputs.{key}"] for key in export.INPUTS])
        for key in found:
            np.testing.assert_array_equal(arrays[f"outputs.{key}"], again[key])


def test_a_graph_that_computes_something_else_is_not_written(export):
    expected = [{"points": np.zeros((1, 2, 2)), "masks": np.array([[2.0, -4.0]])}]
    close = {"points": np.zeros((1, 2, 2)) + 1e-7, "masks": np.array([[2.0, -4.0002]])}
    text = export.check(lambda _: close, [None], expected, "fp32")
    assert text == "0 of 2 points moved, masks 5.0e-05"
    for far in (
        {**close, "masks": np.array([[2.0, -4.001]])},
        {**close, "masks": np.array([[2.0, np.nan]])},
        {**close, "points": np.array([[[0.0, 0.1], [0.0, 0.0]]])},
    ):
        with pytest.raises(SystemExit, match="not exported: it does not compute what PyTorch"):
            export.check(lambda _: far, [None], expected, "fp32")
    text = export.check(lambda _: far, [None], expected, "int8")
    assert text == "1 of 2 points moved, masks 5.0e-05"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--model x", "--output and either --model or --config-file are needed"),
        ("--model x --output x.bin", "--output must end in .safetensors, .onnx, .pt2, .xml, got"),
        ("--model x --output x.onnx --format openvino", "--output must end in .xml"),
        ("--model x --output x.pt2 --precision int8", "--precision int8 is not written as torch"),
        ("--model x --output x.safetensors --reference y.npz", "--reference goes with a graph"),
        ("--model x --output none/x.onnx", "there is no folder for 'none/x.onnx'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        load_script("tools/export.py").parse_args(arguments.split())
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "model, opts, message",
    [
        (
            "shapes-tiny",
            ["INPUT.IMAGE_SIZE", "(95,96)"],
            "95 x 96 pixels; both must be multiples of 8",
        ),
        (
            "shapes-tiny",
            ["INPUT.TOKENIZER.MAX_TOKENS", "3"],
            "expected 4 or more for a graph.* found 3",
        ),
        ("demo/igvg_tiny_shapes.onnx", [], "shapes.onnx' is a graph, .* name the weights"),
    ],
)
def test_what_makes_no_graph_is_one_line_and_no_file(
    model, opts, message, export, tmp_path, monkeypatch
):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match=f"^export.py: .*{message}.*$"):
        export.main(["--model", model, "--output", str(tmp_path / "x.pt2"), "--opts", *opts])
    assert not list(tmp_path.iterdir())


def test_the_shortest_texts_make_a_graph(export, tmp_path):
    opts = ["--opts", "INPUT.TOKENIZER.MAX_TOKENS", "4"]
    export.main(["--model", "shapes-tiny", "--output", str(tmp_path / "x.pt2"), *opts])
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt2"]


@pytest.mark.parametrize("ending", [".onnx", ".pt2", ".safetensors"])
def test_a_file_that_is_no_export_is_named_in_one_line(tmp_path, ending):
    (tmp_path / f"text{ending}").write_text("text")
    for name in ("none", "text"):
        path = str(tmp_path / f"{name}{ending}")
        with pytest.raises(SystemExit, match=f"^export.py: cannot read '{path}': .*$"):
            load_script("tools/export.py").main(["--show", path])


def test_what_is_not_installed_is_named(monkeypatch):
    load_script("tools/export.py")
    formats = sys.modules["exporting.formats"]
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(SystemExit, match=r"pip install 'igvg_d2\[export\]'"):
        formats.needed("openvino")


def test_facts_of_tokenizers():
    cfg = setup_config("", ["INPUT.TOKENIZER.NAME", "ShapesTokenizer"])
    tokenizer = build_tokenizer(cfg)
    facts = tokenizer_facts(tokenizer)
    assert facts["bos_id"] == 0 and facts["max_tokens"] == cfg.INPUT.TOKENIZER.MAX_TOKENS
    for number, word in enumerate(facts["words"], facts["unk_id"] + 1):
        assert tokenizer(word) == [0, number, 2]
    assert tokenizer_facts(SimpleNamespace()) == {"name": "SimpleNamespace"}


def test_facts_of_an_onnx_file_are_read_without_its_weights(tmp_path):
    # ModelProto: field 1 a number, 7 a graph, 14 an entry of key and value.
    entry = b"\x0a\x01k\x12\x02va"
    whole = b"\x08\x09" + b"\x3a\x04" + b"\xff" * 4 + b"\x72" + bytes([len(entry)]) + entry
    path = tmp_path / "model.onnx"
    path.write_bytes(whole)
    assert read_onnx_metadata(str(path)) == {"k": "va"}
    # Also a field that ends within a number, one of number 0, and an entry longer than it says.
    cut = (b"\x09\0\0", b"\x0d\0", b"\x00\x01", b"\x72\x01\x0a\x01k", b"\x72\x02\x09k" + b"\0" * 9)
    for damaged in (whole[:6], whole[:-1], b"\x0b", b"\xff" * 20, *cut):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="no ONNX file"):
            read_onnx_metadata(str(path))
