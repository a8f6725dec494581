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
        sys.exit(f"this format needs {error.name}: pip install 'igvg_d2[{extra}]'")


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
    """Linear layers of the encoder to int8; ranges of activations are found at run time.

    What follows it stays in float32: it is small, and points are chosen by small differences.
    """
    quantization = needed("onnxruntime.quantization")
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
