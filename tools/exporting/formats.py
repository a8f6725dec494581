"""Writers of the formats of tools/export.py.

Each is called as ``write(graph, cfg, path, precision, facts)`` with a GroundingGraph, and returns a
callable from the graph's inputs, numpy arrays in their order, to {output: numpy array}.
"""

import ast
import logging
import os
import sys
import tempfile

import numpy as np
import torch

from igvg_d2.inference.graph import INPUTS, example_inputs, trace
from igvg_d2.io.terminal import printable

# Weights of a tensor that are not worth halving: biases, scales.
_FEW_WEIGHTS = 4096
# Beginning of the names of nodes that int8 changes.
_ENCODER = "model.backbone."
# A protobuf message holds 2 GiB; larger weights go into a file beside it.
_LARGEST_MESSAGE = 1_900_000_000


def run_torch(graph, inputs):
    """Outputs of PyTorch as numpy arrays."""
    with torch.no_grad():
        outputs = graph(*map(torch.from_numpy, inputs))
    return {name: value.numpy() for name, value in outputs.items()}


def needed(module, extra="export"):
    """A module of an extra, or the end with what to install."""
    try:
        return __import__(module, fromlist=["_"])
    except ImportError as error:
        sys.exit(printable(f"this format needs {error.name}: pip install 'igvg_d2[{extra}]'"))


def write_torch(graph, cfg, path, precision, facts):
    """A program of torch.export; returns a callable that runs it."""
    torch.export.save(trace(graph, cfg), path, extra_files=facts)
    program = torch.export.load(path).module()
    return lambda inputs: run_torch(program, inputs)


def write_onnx(graph, cfg, path, precision, facts):
    """ONNX; returns a callable that runs it."""
    onnx = needed("onnx")
    needed("onnxscript")
    needed("onnxruntime")
    # It tells of every node that it does not simplify.
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    program = trace(graph, cfg)
    names = list(graph(*example_inputs(cfg, graph.model.backbone.vocab_size)))
    model = torch.onnx.export(
        program, dynamo=True, input_names=list(INPUTS), output_names=names, verbose=False
    ).model_proto
    tidy(model)
    if precision == "int8":
        model = quantize(model)
    elif precision == "fp16":
        halve(model)
    onnx.helper.set_model_props(model, facts)
    is_large = model.ByteSize() > _LARGEST_MESSAGE
    beside = os.path.basename(path) + ".data"
    onnx.save_model(model, path, save_as_external_data=is_large, location=beside)
    return run_onnx(path)


def tidy(model):
    """Name nodes after their modules and free sizes, and drop the places in source code."""
    for number, node in enumerate(model.graph.node):
        facts = {fact.key: fact.value for fact in node.metadata_props}
        scopes = ast.literal_eval(facts.get("pkg.torch.onnx.name_scopes", "[]"))
        scope = scopes[-2] if len(scopes) > 1 else ""
        node.name = f"{scope}/{node.op_type}_{number}"
    free = [dim.dim_param for dim in model.graph.input[1].type.tensor_type.shape.dim]
    names = dict(zip(free, ("batch", "length")))
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    for dim in (dim for value in values for dim in value.type.tensor_type.shape.dim):
        if dim.dim_param in names:
            dim.dim_param = names[dim.dim_param]
    for part in (*model.graph.node, *values, *model.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    model.graph.ClearField("metadata_props")


def halve(model):
    """Store weights in float16, in place; what is computed stays float32, on every runtime."""
    onnx = needed("onnx")
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type != onnx.TensorProto.FLOAT or np.prod(weight.dims) < _FEW_WEIGHTS:
            continue
        name, values = weight.name, onnx.numpy_helper.to_array(weight)
        weight.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), name + ".half"))
        cast = onnx.helper.make_node("Cast", [weight.name], [name], to=onnx.TensorProto.FLOAT)
        casts.append(cast)
    # Nodes stand in the order in which they are computed.
    nodes = [*casts, *model.graph.node]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)


def quantize(model):
    """Linear layers of the encoder and 3 x 3 convolutions to int8, as (model); the rest stays.

    Weights have a scale per output channel, activations one per tensor that is found at run time.
    The rest, query generation, decoder and heads, is small, and points are chosen by small
    differences.
    """
    quantization = needed("onnxruntime.quantization")
    quantize_convolutions(model)
    others = [node.name for node in model.graph.node if not node.name.startswith(_ENCODER)]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.onnx")
        quantization.quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            nodes_to_exclude=others,
            weight_type=quantization.QuantType.QInt8,
        )
        return needed("onnx").load(path)


def quantize_convolutions(model):
    """3 x 3 convolutions as products of shifted maps, in place.

    onnxruntime has fast integer products, but its ConvInteger takes 4 times as long as the
    convolution in float32.
    """
    onnx = needed("onnx")
    weights = {weight.name: weight for weight in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        is_plain = node.op_type == "Conv" and node.input[1] in weights
        is_plain = is_plain and list(weights[node.input[1]].dims[2:]) == [3, 3]
        is_plain = is_plain and options.get("pads") == [1] * 4 and options.get("group", 1) == 1
        is_plain = is_plain and {*options.get("strides", [1]), *options.get("dilations", [1])} == {
            1
        }
        if is_plain:
            nodes += integer_convolution(model, node, weights)
        else:
            nodes.append(node)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [weight for weight in model.graph.initializer if weight.name in used]
    model.graph.ClearField("initializer")
    model.graph.initializer.extend(kept)


def integer_convolution(model, conv, weights):
    """Nodes that compute a 3 x 3 convolution of stride 1 with int8 weights."""
    onnx = needed("onnx")
    nodes, prefix = [], conv.name + "/"

    def add(kind, inputs, *outputs, **options):
        names = [prefix + name for name in outputs]
        nodes.append(onnx.helper.make_node(kind, inputs, names, prefix + outputs[0], **options))
        return names[0]

    def constant(name, values):
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, prefix + name))
        return prefix + name

    weight = onnx.numpy_helper.to_array(weights[conv.input[1]])
    scale = np.maximum(np.abs(weight).max(axis=(1, 2, 3)), 1e-12) / np.float32(127)
    integers = np.rint(weight / scale[:, None, None, None]).astype(np.int8)
    # Rows in the order of the shifted maps: (dy, dx, channel).
    integers = integers.transpose(2, 3, 1, 0).reshape(-1, len(weight))
    pixels = add("DynamicQuantizeLinear", [conv.input[0]], "q", "scale", "zero")
    pixels = add("Transpose", [pixels], "last", perm=[0, 2, 3, 1])
    pads = constant("pads", np.array([0, 1, 1, 0, 0, 1, 1, 0]))
    pixels = add("Pad", [pixels, pads, prefix + "zero"], "padded")
    axes, shifted = constant("axes", np.array([1, 2])), []
    for y, x in np.ndindex(3, 3):
        ends = [(-2, -1, np.iinfo(np.int64).max)[i] for i in (y, x)]
        window = [constant(f"{k}{y}{x}", np.array(v)) for k, v in (("from", (y, x)), ("to", ends))]
        shifted.append(add("Slice", [pixels, *window, axes], f"shift{y}{x}"))
    columns = add("Concat", shifted, "columns", axis=3)
    product = [columns, constant("weight", integers), prefix + "zero"]
    sums = add("Cast", [add("MatMulInteger", product, "sums")], "float", to=onnx.TensorProto.FLOAT)
    factor = add("Mul", [prefix + "scale", constant("weight_scale", scale)], "factor")
    out = add("Mul", [sums, factor], "scaled")
    if len(conv.input) > 2:
        out = add("Add", [out, conv.input[2]], "biased")
    nodes.append(
        onnx.helper.make_node("Transpose", [out], conv.output, conv.name, perm=[0, 3, 1, 2])
    )
    return nodes


def run_onnx(path):
    """Callable from inputs to outputs by name."""
    session = needed("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(None, dict(zip(INPUTS, inputs)))))


def write_openvino(graph, cfg, path, precision, facts):
    """OpenVINO's IR by way of ONNX; returns a callable that runs it."""
    openvino = needed("openvino")
    with tempfile.TemporaryDirectory() as folder:
        onnx_path = os.path.join(folder, "model.onnx")
        write_onnx(graph, cfg, onnx_path, "fp32", facts)
        model = openvino.Core().read_model(onnx_path)
        if precision == "int8":
            nncf = needed("nncf")
            model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
        for name, value in facts.items():
            model.set_rt_info(value, ["igvg_d2", name])
        openvino.save_model(model, path, compress_to_fp16=precision == "fp16")
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", exact)
    names = [output.get_any_name() for output in compiled.outputs]
    return lambda inputs: dict(zip(names, compiled(dict(zip(INPUTS, inputs))).to_tuple()))


WRITERS = {"torch-export": write_torch, "onnx": write_onnx, "openvino": write_openvino}
