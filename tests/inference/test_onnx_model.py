"""An exported file answers as the model it was made of, in the predictor and without PyTorch."""

import importlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from igvg_d2.checkpoint import read_metadata
from igvg_d2.data.resize import build_resize
from igvg_d2.data.tokenizer import build_tokenizer
from igvg_d2.data.transforms import GeometricTransform
from igvg_d2.engine import setup_config
from igvg_d2.inference import GroundingPredictor
from igvg_d2.inference.graph import INPUTS, GroundingGraph, to_model_outputs, tokenizer_facts
from igvg_d2.inference.onnx_model import OnnxModel
from igvg_d2.modeling.batch import answer_batch, pad_texts
from igvg_d2.modeling.postprocessing import PostprocessOptions, rank_outputs
from igvg_d2.testing import random_batch, tiny_cfg
from tests.scripts import ROOT, load_script

pytest.importorskip("onnxruntime", reason="needs pip install 'igvg_d2[export]'")
EXPORTED = str(ROOT / "demo" / "igvg_tiny_shapes.onnx")
REFERENCE = ROOT / "demo" / "igvg_tiny_shapes_reference.npz"
SCENE = str(ROOT / "demo" / "images" / "scene.jpg")
TEXTS = ["all small squares", "the red circle", "all triangles", "the purple elephant"]
# What the demo must do without.
NO_TORCH = """
import runpy, sys
for name in ("torch", "torchvision", "detectron2", "igvg_d2", "cv2", "transformers", "onnx"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def predictors():
    """The shipped weights in PyTorch, and exported."""
    return [
        GroundingPredictor.from_pretrained(name, device="cpu") for name in ("shapes-tiny", EXPORTED)
    ]


@pytest.fixture(scope="module")
def demo():
    return load_script("demo/onnx_demo.py")


def test_reference_outputs_are_reproduced(predictors):
    """What a port to another runtime compares with."""
    with np.load(REFERENCE) as arrays:
        found = predictors[1].model.run({name: arrays[f"inputs.{name}"] for name in INPUTS})
        assert {f"outputs.{name}" for name in found} == set(arrays) - {
            f"inputs.{x}" for x in INPUTS
        }
        for name, value in found.items():
            expected = arrays[f"outputs.{name}"]
            assert value.dtype == np.float32 and value.shape == expected.shape
            assert np.abs(value - expected).max() <= 1e-4 * np.abs(expected).max(), name


def test_the_exported_file_answers_as_the_weights(predictors):
    expected, found = (predictor(SCENE, TEXTS) for predictor in predictors)
    assert any(result.no_target for result in expected) and sum(map(len, expected)) > 3
    for one, other in zip(expected, found):
        assert (one.no_target, len(one)) == (other.no_target, len(other))
        np.testing.assert_allclose(one.scores, other.scores, atol=0.01)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1.0)
        np.testing.assert_allclose(one.points, other.points, atol=1e-3)
        assert (one.mask != other.mask).mean() < 0.002
        assert other.attention_map.shape == one.attention_map.shape


def test_graph_and_model_end_in_the_same_bits(predictors, monkeypatch):
    """Between the outputs of a graph and the answer there is nothing else than with PyTorch."""
    torch_predictor, onnx_predictor = predictors
    graph = GroundingGraph(torch_predictor.model)

    def run(inputs):
        with torch.no_grad():
            outputs = graph(*(torch.from_numpy(inputs[name]) for name in INPUTS))
        return {name: value.numpy() for name, value in outputs.items()}

    monkeypatch.setattr(onnx_predictor.model, "run", run)
    for expected, found in zip(torch_predictor(SCENE, TEXTS), onnx_predictor(SCENE, TEXTS)):
        assert expected.to_dict().keys() == found.to_dict().keys()
        for name in ("boxes", "scores", "points", "masks", "mask"):
            np.testing.assert_allclose(
                getattr(found, name).astype(float), getattr(expected, name), atol=1e-4
            )
        assert found.no_target_score == pytest.approx(expected.no_target_score, abs=1e-6)


@pytest.mark.parametrize("name", ["PointGuided", ""])
def test_a_graph_has_what_the_answers_are_made_of(name):
    """With and without queries, of texts of several lengths, thresholds outside of the graph."""
    opts = ["MODEL.QUERY_GENERATOR.NAME", name and f"{name}QueryGenerator"]
    cfg = tiny_cfg([*opts, "MODEL.GROUNDING_HEAD.NAME", name and f"{name}GroundingHead"])
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    batch = random_batch((0, 0, 0), lengths=(5, 3, 9))
    with torch.no_grad():
        expected = model(batch)
        found = GroundingGraph(model)(
            torch.stack([x["image"] for x in batch]), *pad_texts(batch)[:2]
        )
    assert ("scores" in found) == ("points" in found) == bool(name)
    answers = answer_batch(batch, to_model_outputs(found), (64, 64), model.postprocess)
    # Not to the bit: with the kernels of some CPUs (AVX2) the scores of the two differ by rounding.
    for one, other in zip(expected, answers):
        assert one["no_target"] == other["no_target"]
        torch.testing.assert_close(one["candidates"].scores, other["candidates"].scores)
        masks = [torch.cat([x["mask"][None], x["candidates"].pred_masks]) for x in (one, other)]
        assert (masks[0] != masks[1]).float().mean() < 0.01
    with pytest.raises(TypeError, match="only graphs of IGVG are made, got Linear"):
        GroundingGraph(torch.nn.Linear(1, 1))


def test_the_demo_answers_without_pytorch(predictors, demo, tmp_path):
    output = tmp_path / "answer.png"
    command = [sys.executable, "-c", NO_TORCH, str(ROOT / "demo/onnx_demo.py"), EXPORTED, SCENE]
    run = subprocess.run(
        [*command, "all triangles", "--output", str(output)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    expected = predictors[1](SCENE, "all triangles")
    assert not answer["no_target"] and len(answer["boxes"]) == len(expected) > 0
    np.testing.assert_allclose(answer["boxes"], expected.boxes, atol=0.01)
    np.testing.assert_allclose(answer["scores"], expected.scores, atol=1e-4)
    np.testing.assert_allclose(answer["points"], expected.points, atol=0.01)
    assert abs(answer["mask_pixels"] - int(expected.mask.sum())) <= 0.01 * expected.mask.sum()
    assert Image.open(output).size == Image.open(SCENE).size


@pytest.mark.parametrize("resize", ["pil", "cv2"])
@pytest.mark.parametrize("mode", ["squash", "letterbox"])
def test_the_demo_resizes_as_the_library(demo, resize, mode):
    opts = ["INPUT.RESIZE", resize, "INPUT.RESIZE_MODE", mode, "INPUT.IMAGE_SIZE", "(64, 96)"]
    cfg = setup_config("", [*opts, "MODEL.PIXEL_MEAN", "[10.2, 20.7, 30.0]"])
    facts = {"image_size": [64, 96], "resize": resize, "resize_mode": mode, "channels": "BGR"}
    facts["mean"] = cfg.MODEL.PIXEL_MEAN
    image = Image.open(SCENE).convert("RGB").resize((150, 131))
    transform = GeometricTransform(build_resize(cfg), (131, 150))
    expected = transform.apply_image(np.ascontiguousarray(np.asarray(image)[..., ::-1]))
    found, content = demo.prepare(facts, image)
    assert content == transform.content_size
    difference = np.abs(found[0].transpose(1, 2, 0).astype(int) - expected)
    assert difference.max() <= (0 if resize == "pil" else 1)


@pytest.mark.parametrize("resize", ["logits", "binary"])
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("content", [(64, 64), (40, 64)])
def test_the_demo_makes_masks_as_the_library(demo, resize, align_corners, content):
    logits = torch.nn.functional.interpolate(
        torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)), 16, mode="bicubic"
    )
    options = PostprocessOptions(0.7, 0.35, "merge", resize, "softmax", align_corners)
    outputs = {"present": torch.ones(1), "sem_seg": logits[:, :1], "pred_masks": logits}
    outputs.update(scores=torch.ones(1, 3), pred_boxes=torch.ones(1, 3, 4) / 2)
    outputs["pred_points"] = outputs["pred_boxes"][..., :2]
    ranked = rank_outputs(outputs, (64, 64), [(90, 130)], options, [content])[0]
    expected = ranked.make_masks(ranked.mask_logits, (90, 130)).numpy()
    found = demo.to_masks(logits[0].numpy(), vars(options), (64, 64), content, (90, 130))
    assert (found != expected).sum() <= 3 and expected.any() and not expected.all()


def test_the_demo_suppresses_as_the_library(demo):
    corner = np.random.default_rng(0).random((40, 2)) * 30
    boxes = np.concatenate([corner, corner + 20], axis=1).astype(np.float32)
    scores = np.random.default_rng(1).random(40).astype(np.float32)
    kept = torch.ops.torchvision.nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.5)
    found = demo.suppress(boxes, scores, 0.5)
    assert sorted(np.flatnonzero(found)) == sorted(kept.tolist()) and 1 < len(kept) < 40


def test_the_demo_tokenizes_as_the_library(demo, shared_dir):
    file = str(shared_dir / "data" / "beit3_spm" / "beit3.spm")
    texts = [
        "The two men, on the left-hand side!",
        "a dog/cat  with #1",
        "naïve café 东京",
        "x " * 80,
    ]
    for clean in (True, False):
        opts = ["INPUT.TOKENIZER.FILE", file, "INPUT.TOKENIZER.CLEAN_TEXT", clean]
        tokenizer = build_tokenizer(setup_config("", opts))
        facts = tokenizer_facts(tokenizer)
        for text in texts:
            assert demo.tokenize(facts, text, file) == tokenizer(text), (clean, text)
    with pytest.raises(SystemExit, match="beit3.spm. is not the file of the model"):
        demo.tokenize({**facts, "sha256": "0"}, "a dog", file)


def test_what_does_not_fit_the_file_is_refused(tmp_path, monkeypatch):
    def load(*opts, path=EXPORTED, dtype=None):
        return GroundingPredictor.from_pretrained(path, device="cpu", opts=opts, dtype=dtype)

    with pytest.raises(ValueError, match=r"takes images of \(96, 96\) only, found \(64, 96\)"):
        load("INPUT.IMAGE_SIZE", "(64, 96)")
    with pytest.raises(ValueError, match="dtype: the numbers of .* were chosen at its export"):
        load(dtype="float16")
    name = "igvg_d2.inference.onnx_model.tokenizer_facts"
    monkeypatch.setattr(name, lambda _: {"sha256": "0" * 64})
    with pytest.raises(ValueError, match="INPUT.TOKENIZER: .*its words would have other numbers"):
        load()
    other = tmp_path / "other.onnx"
    other.write_bytes(b"\x08\x09")
    with pytest.raises(ValueError, match="other.onnx' has no config in its header"):
        load(path=str(other))
    options = PostprocessOptions.from_config(setup_config())
    with pytest.raises(ValueError, match="expected a file of tools/export.py with the format"):
        OnnxModel(str(other), options)
    with open(EXPORTED, "rb") as file:
        other.write_bytes(file.read()[:-200_000])
    with pytest.raises(ValueError, match="other.onnx' is not a whole file of ONNX: it is cut off"):
        load(path=str(other))


class OtherTokenizer:
    """Of an outside project."""

    def __init__(self, vocab_size, path):
        self.vocab_size, self.path = vocab_size, str(path)


def test_tokenizers_of_outside_projects_are_told_apart(tmp_path, monkeypatch):
    cfg = setup_config(EXPORTED)
    (tmp_path / "vocab.txt").write_text("a\nb")
    (tmp_path / "other.txt").write_text("b\na")
    exported = tokenizer_facts(OtherTokenizer(2, tmp_path / "vocab.txt"))
    facts = {**read_metadata(EXPORTED), "tokenizer": json.dumps(exported)}
    monkeypatch.setattr("igvg_d2.inference.onnx_model.read_metadata", lambda _: facts)
    OnnxModel.from_config(cfg, OtherTokenizer(2, tmp_path / "vocab.txt"))
    another = type("AnotherTokenizer", (OtherTokenizer,), {})
    for tokenizer in (
        OtherTokenizer(3, tmp_path / "vocab.txt"),
        OtherTokenizer(2, tmp_path / "other.txt"),
        another(2, tmp_path / "vocab.txt"),
        build_tokenizer(cfg),
    ):
        with pytest.raises(ValueError, match="exported with {'name': 'OtherTokenizer'"):
            OnnxModel.from_config(cfg, tokenizer)
    for key, text in (("tokenizer", "{}"), ("tokenizer", "x"), ("preprocessing", "[]")):
        monkeypatch.setitem(facts, key, text)
        with pytest.raises(ValueError, match="igvg_tiny_shapes.onnx': its facts are damaged"):
            OnnxModel.from_config(cfg, another(2, ""))


def test_a_missing_runtime_is_named(monkeypatch):
    def import_module(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(ImportError, match="igvg_tiny_shapes.onnx' needs 'pip install onnxruntime'"):
        GroundingPredictor.from_pretrained(EXPORTED, device="cpu")
