"""What tools/export.py does to weights, and its other formats."""

import json
import sys

import numpy as np
import pytest

from tests.inference.test_export import EXTRA, MODELS, NARROW, SMALL
from tests.scripts import ROOT, load_script

onnx = pytest.importorskip("onnx", reason=EXTRA)
pytest.importorskip("onnxruntime", reason=EXTRA)
FLOAT = onnx.TensorProto.FLOAT


@pytest.fixture(scope="module")
def export():
    return load_script("tools/export.py")


@pytest.fixture(scope="module")
def formats(export):
    return sys.modules["exporting.formats"]


def make_model(node, shape, weights):
    """A model of one node from "image" to "masks", whose other inputs are weights."""
    sizes = {"image": shape, "masks": [None] * len(shape)}
    ends = [onnx.helper.make_tensor_value_info(name, FLOAT, size) for name, size in sizes.items()]
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = onnx.helper.make_graph([node], "graph", ends[:1], ends[1:], tensors)
    opset = [onnx.helper.make_opsetid("", 18)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)


def run(formats, model, image, path):
    onnx.checker.check_model(model)
    onnx.save_model(model, str(path))
    return formats.run_onnx(str(path))([image])["masks"]


def test_half_weights_are_computed_in_float32(formats, tmp_path):
    weights = np.linspace(-1, 1, 128 * 64, dtype=np.float32).reshape(128, 64)
    bias = np.full(64, 1 / 3, np.float32)
    node = onnx.helper.make_node("Gemm", ["image", "weights", "bias"], ["masks"])
    model = make_model(node, [1, 128], {"weights": weights, "bias": bias})
    formats.halve(model)
    image = np.ones((1, 128), np.float32)
    found = run(formats, model, image, tmp_path / "half.onnx")
    assert (tmp_path / "half.onnx").stat().st_size < 1.1 * 2 * weights.size
    rounded = image @ weights.astype(np.float16).astype(np.float32) + bias
    np.testing.assert_allclose(found, rounded, rtol=1e-5)


@pytest.mark.parametrize("lowest", [0, -128])
@pytest.mark.parametrize("has_bias", [True, False])
def test_integer_convolutions_are_exact_on_integers(formats, tmp_path, lowest, has_bias):
    """Values that are whole numbers of the scale 1, with a zero that is 0 or 128, and padding."""
    rng = np.random.default_rng(0)
    image = rng.integers(lowest, lowest + 256, (2, 5, 4, 7)).astype(np.float32)
    image.flat[:2] = lowest, lowest + 255
    weights = {"weights": rng.integers(-127, 128, (3, 5, 3, 3)).astype(np.float32)}
    weights["weights"][:, 0, 0, 0] = 127
    if has_bias:
        weights["bias"] = np.array([1.5, -2.5, 0], np.float32)
    options = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3], "strides": [1, 1]}
    node = onnx.helper.make_node("Conv", ["image", *weights], ["masks"], "conv", **options)
    model = make_model(node, ["batch", 5, 4, 7], weights)
    expected = run(formats, model, image, tmp_path / "float.onnx")
    formats.quantize_convolutions(model)
    kinds = {node.op_type for node in model.graph.node}
    assert "MatMulInteger" in kinds and "Conv" not in kinds
    assert {w.name for w in model.graph.initializer if w.data_type == FLOAT} - {"bias"} == {
        "conv/weight_scale"
    }
    found = run(formats, model, image, tmp_path / "integer.onnx")
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("other", [{"strides": [2, 2]}, {"group": 5}, {"dilations": [2, 2]}])
def test_other_convolutions_stay(formats, other):
    shape = (5, 1, 3, 3) if "group" in other else (2, 5, 3, 3)
    weights = {"weights": np.ones(shape, np.float32)}
    node = onnx.helper.make_node("Conv", ["image", "weights"], ["masks"], pads=[1] * 4, **other)
    model = make_model(node, ["batch", 5, 4, 7], weights)
    formats.quantize_convolutions(model)
    assert [node.op_type for node in model.graph.node] == ["Conv"]


def test_int8_keeps_what_chooses_points_in_float(formats, tmp_path):
    """Layers by their names: the encoder's are integer, those of the query generator are not."""
    graphs = []
    for name in ("model.backbone.encoder.layers.0/MatMul_1", "model.query_generator.mlp/MatMul_2"):
        node = onnx.helper.make_node("MatMul", ["image", "weights"], ["masks"], name)
        weights = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
        model = formats.quantize(make_model(node, ["batch", 64], {"weights": weights}))
        graphs.append({node.op_type for node in model.graph.node})
        image = np.random.default_rng(1).normal(size=(3, 64)).astype(np.float32)
        found = run(formats, model, image, tmp_path / "int8.onnx")
        expected = image @ weights
        assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    assert "MatMulInteger" in graphs[0] and graphs[1] == {"MatMul"}


def test_what_a_file_says_about_itself(export, capsys):
    export.main(["--show", str(ROOT / "demo" / "igvg_tiny_shapes.onnx")])
    facts = json.loads(capsys.readouterr().out)
    assert facts["format"] == "igvg_d2 1" and facts["precision"] == "fp16"
    assert "EMBED_DIM: 160" in facts["config"]
    assert json.loads(facts["preprocessing"])["image_size"] == [96, 96]


@pytest.mark.parametrize("name", ["model.pt2", "model.xml"])
def test_other_formats_compute_the_same_and_carry_the_facts(name, export, tmp_path, capsys):
    if name == "model.xml":
        pytest.importorskip("openvino", reason=EXTRA)
    config = str(ROOT / MODELS["released"][0])
    opts = [*SMALL, *NARROW, "MODEL.QUERY_GENERATOR.NUM_OBJECT_QUERIES", "3"]
    path = str(tmp_path / name)
    export.main(["--config-file", config, "--output", path, "--opts", *opts])
    assert "largest difference from PyTorch: 0 of 18 points moved" in capsys.readouterr().out
    export.main(["--show", path])
    facts = json.loads(capsys.readouterr().out)
    assert facts["format"] == "igvg_d2 1" and facts["precision"] == "fp32"
    assert json.loads(facts["preprocessing"])["image_size"] == [96, 128]
