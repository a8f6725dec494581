#!/usr/bin/env python
"""Make one file out of a model: to share (safetensors), or for another runtime.

    python tools/export.py --model output/shapes_tiny --output output/igvg_tiny.safetensors
    python tools/export.py --model shapes-tiny --output output/igvg_tiny.onnx

--model takes the folder of a finished run, a name of igvg_d2.model_zoo, a .safetensors file
that it wrote, or a checkpoint. The ending of --output says the format:

    .safetensors  weights; a model for every script of this project
    .onnx         ONNX, for onnxruntime and others; GroundingPredictor and demo/onnx_demo.py take it
    .pt2          a program of torch.export
    .xml          OpenVINO's IR; its weights lie beside it in a .bin

Every file carries the config and, of a finished run, its command, seed and last metrics (--show
prints them). A graph takes images and token ids and gives what GroundingGraph in
igvg_d2/inference/graph.py describes, with any batch and any length of text. Before the file
appears, it is compared with PyTorch: at fp32 points must be the same, and other outputs within
1e-4 of their largest value. --precision fp16 stores weights in half the bytes and computes in
float32; int8 computes the encoder's linear layers and 3 x 3 convolutions in int8 (ONNX), or stores
all weights in int8 (OpenVINO). What they lose is printed.
"""

import argparse
import glob
import json
import os
import sys
import tempfile

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
import numpy as np
import torch
from detectron2.modeling import build_model

import igvg_d2.modeling  # noqa: F401  registers the models
from igvg_d2 import model_zoo
from igvg_d2.checkpoint import GroundingCheckpointer, export_safetensors, read_metadata
from igvg_d2.data.tokenizer import build_tokenizer
from igvg_d2.engine import setup_config
from igvg_d2.engine.config_files import config_for_header
from igvg_d2.inference.graph import (
    INPUTS,
    GroundingGraph,
    describe,
    example_inputs,
    longest_text,
)
from igvg_d2.io.json_stream import to_json_text
from igvg_d2.io.terminal import printable

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from exporting.formats import WRITERS, needed, run_torch  # noqa: E402

FORMATS = {"safetensors": ".safetensors", "onnx": ".onnx", "torch-export": ".pt2"}
FORMATS["openvino"] = ".xml"
PRECISIONS = {"safetensors": ("fp32",), "torch-export": ("fp32",)}
# Largest difference at fp32, as a part of the largest value of an output.
TOLERANCE = 1e-4
# Runtimes divide differently; the next cell is 1 / 40 away.
_SAME_POINT = 1e-5

_RUN_FILES = ("config.yaml", "model_final.pth", "run_summary.json")
# What of the metrics tells how good the model is.
_METRICS = ("gIoU", "N_acc", "T_acc", "F1score", "mask_AP", "mask_AP50", "box_AP50")
_METRICS += ("CoverAcc", "CoverAcc_all")


def parse_args(argv=None):
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="", metavar="NAME|FILE|RUN", help="what to export")
    add("--config-file", default="", help="config that names its weights, in place of --model")
    add("--output", help="file to write")
    add("--format", choices=sorted(FORMATS), help="default: by the ending of --output")
    add("--precision", choices=("fp32", "fp16", "int8"), default="fp32", help="of a graph")
    add("--reference", metavar="FILE.npz", help="write inputs and outputs of a graph, too")
    add("--show", metavar="FILE", help="print what a file says about itself, and end")
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="of the config")
    args = parser.parse_args(argv)
    if args.show:
        return args
    if not args.output or bool(args.model) == bool(args.config_file):
        parser.error("--output and either --model or --config-file are needed")
    endings = {ending: name for name, ending in FORMATS.items()}
    found = endings.get(os.path.splitext(args.output)[1])
    if found is None or args.format not in (None, found):
        wanted = FORMATS[args.format] if args.format else ", ".join(endings)
        parser.error(f"--output must end in {wanted}, got '{args.output}'")
    args.format = found
    if args.precision not in PRECISIONS.get(found, ("fp32", "fp16", "int8")):
        parser.error(f"--precision {args.precision} is not written as {found}")
    if found == "safetensors" and args.reference:
        parser.error("--reference goes with a graph, not with safetensors")
    for path in (args.output, args.reference or args.output):
        if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
            parser.error(f"there is no folder for '{path}'; make it first")
    return args


def read_config(args, add_config):
    """Config and facts of what is exported; its ``MODEL.WEIGHTS`` is a local path."""
    if args.config_file:
        opts = ["MODEL.DEVICE", "cpu", *args.opts]
        return setup_config(args.config_file, opts, add_config), {}
    if not os.path.isdir(args.model):
        return model_zoo.load(args.model, "cpu", args.opts, add_config), {}
    missing = [name for name in _RUN_FILES if not os.path.isfile(os.path.join(args.model, name))]
    if missing:
        sys.exit(f"'{args.model}' is not the folder of a finished run: it has no {missing}")
    weights = os.path.join(args.model, "model_final.pth")
    cfg = model_zoo.load(weights, "cpu", args.opts, add_config)
    facts = read_facts(args.model)
    if cfg.SOLVER.EMA.ENABLED:
        facts["weights"] = f"moving average, SOLVER.EMA.DECAY {cfg.SOLVER.EMA.DECAY}"
    return cfg, facts


def read_facts(run):
    """Command, seed and metrics of a run, all as text."""
    with open(os.path.join(run, "run_summary.json"), encoding="utf-8") as file:
        facts = {key: str(value) for key, value in json.load(file).items()}
    for path in sorted(
        glob.glob(os.path.join(glob.escape(run), "inference", "*", "*_metrics.json"))
    ):
        with open(path, encoding="utf-8") as file:
            report = json.load(file)
        for task, metrics in report["results"].items():
            for key in _METRICS:
                if metrics.get(key) is not None:
                    facts[f"{report['dataset']}/{task}/{key}"] = f"{metrics[key]:.2f}"
    return facts


def example_cases(cfg, vocab_size):
    """Inputs as numpy arrays: batches of 2, 1 and 3 with texts from the shortest to the longest."""
    longest = longest_text(cfg)
    for seed, lengths in enumerate(((7, 4), (3,), (5, longest, 3))):
        inputs = example_inputs(cfg, vocab_size, lengths, seed)
        yield tuple(value.numpy() for value in inputs)


def differences(expected, found):
    """{output: largest difference as a part of the largest value}, of "points" in their number."""
    wrong = {}
    for name, value in expected.items():
        if name == "points":
            is_same = np.abs(value - found[name]) <= _SAME_POINT
            wrong[name] = float((~is_same).any(-1).sum())
        else:
            wrong[name] = float(np.abs(value - found[name]).max() / np.abs(value).max())
    return wrong


def check(run, cases, expected, precision):
    """The largest differences of all cases; fp32 must not have any. NaN is one, too."""
    found = [differences(outputs, run(inputs)) for inputs, outputs in zip(cases, expected)]
    largest = {name: max(part[name] for part in found) for name in found[0]}
    wrong = [name for name, value in largest.items() if not value <= TOLERANCE]
    text = ", ".join(f"{name} {value:.1e}" for name, value in largest.items() if name != "points")
    if "points" in largest:
        number = sum(
            outputs["points"].shape[0] * outputs["points"].shape[1] for outputs in expected
        )
        text = f"{sum(part['points'] for part in found):.0f} of {number} points moved, {text}"
    if precision == "fp32" and wrong:
        sys.exit(f"not exported: it does not compute what PyTorch computes, see {wrong}: {text}")
    return text


def export_graph(model, cfg, facts, args):
    """Write a graph that computes what the model does; returns a line about it."""
    graph = GroundingGraph(model).eval()
    cases = list(example_cases(cfg, model.backbone.vocab_size))
    expected = [run_torch(graph, inputs) for inputs in cases]
    facts = {**facts, **describe(cfg, build_tokenizer(cfg)), "precision": args.precision}
    folder = os.path.dirname(os.path.abspath(args.output))
    with tempfile.TemporaryDirectory(dir=folder) as unfinished:
        path = os.path.join(unfinished, os.path.basename(args.output))
        run = WRITERS[args.format](graph, cfg, path, args.precision, facts)
        text = check(run, cases, expected, args.precision)
        for name in sorted(os.listdir(unfinished)):
            os.replace(os.path.join(unfinished, name), os.path.join(folder, name))
    if args.reference:
        arrays = {f"inputs.{name}": value for name, value in zip(INPUTS, cases[0])}
        arrays.update({f"outputs.{name}": value for name, value in run(cases[0]).items()})
        np.savez_compressed(args.reference, **arrays)
    return f"largest difference from PyTorch: {text}"


def show(path):
    """What a file says about itself.

    Raises:
        ValueError: it is missing, or not of the format that its name says.
    """
    try:
        if path.endswith(".pt2"):
            names = ("format", "config", "preprocessing", "tokenizer", "postprocessing")
            facts = dict.fromkeys((*names, "precision"), "")
            torch.export.load(path, extra_files=facts)
        elif path.endswith(".xml"):
            facts = needed("openvino").Core().read_model(path).get_rt_info(["igvg_d2"]).value
        else:
            facts = read_metadata(path)
    except Exception as error:  # those of each library
        raise ValueError(f"cannot read '{path}': {error}") from error
    print(to_json_text(facts, indent=2))


def export(args, add_config=()):
    """Write the file, and print a line about it."""
    cfg, facts = read_config(args, add_config)
    model = build_model(cfg).eval()
    if cfg.MODEL.WEIGHTS:
        GroundingCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    else:
        facts["weights"] = "random"
        print("MODEL.WEIGHTS is empty: the weights are random")
    text = f"{sum(p.numel() for p in model.parameters()):,} parameters"
    if args.format == "safetensors":
        facts["config"] = config_for_header(cfg)
        export_safetensors(model, args.output, facts)
    else:
        text += "; " + export_graph(model, cfg, facts, args)
    print(f"{args.output}: {os.path.getsize(args.output) / 1e6:.1f} MB, {text}")


def main(argv=None, add_config=()):
    """Export a model, or show what a file says; exit status 1 with one line of reason."""
    args = parse_args(argv)
    try:
        if args.show:
            show(args.show)
        else:
            export(args, add_config)
    except (ValueError, OSError) as error:
        sys.exit(printable(f"export.py: {error}"))


if __name__ == "__main__":
    main()
