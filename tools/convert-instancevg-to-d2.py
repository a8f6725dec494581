#!/usr/bin/env python
"""Convert a released InstanceVG checkpoint to this project's weights.

    python tools/convert-instancevg-to-d2.py released.pth instancevg_base.safetensors

OUT ends in .pth or .safetensors and is used as MODEL.WEIGHTS with a config that builds on
configs/Released-IGVG.yaml. Every tensor of the file is accounted for, or the conversion fails.
"""

import argparse
import logging
import os

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
import torch
from detectron2.utils.logger import setup_logger
from safetensors.torch import load_file, save_file

from igvg_d2.checkpoint import convert_instancevg

logger = logging.getLogger("igvg_d2.tools.convert_instancevg")


def parse_args(args=None):
    """Command line."""
    parser = argparse.ArgumentParser(description="Released InstanceVG checkpoint to igvg_d2.")
    parser.add_argument("input", help="released checkpoint, as downloaded or as .safetensors")
    parser.add_argument("output", help="file to write, .pth or .safetensors")
    return parser.parse_args(args)


def read_checkpoint(path: str):
    """The content of a checkpoint file; no code in it is run."""
    if not os.path.isfile(path):
        raise SystemExit(f"No file '{path}'.")
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        # Memory-mapped, so that optimizer states in the file cost nothing.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise SystemExit(
            f"'{path}' cannot be read as a checkpoint of plain tensors (truncated, not a PyTorch "
            f"file, or holding pickled objects, which are refused): {error}"
        ) from error


def main(args=None) -> None:
    """Convert one file and report what was found and dropped."""
    args = parse_args(args)
    setup_logger(name="igvg_d2")
    if not args.output.endswith((".pth", ".safetensors")):
        raise SystemExit(f"OUT must end in .pth or .safetensors, got '{args.output}'.")
    try:
        state, report = convert_instancevg(read_checkpoint(args.input))
    except ValueError as error:
        raise SystemExit(f"'{args.input}': {error}") from error
    if args.output.endswith(".safetensors"):
        save_file(state, args.output, metadata={"author": "InstanceVG"})
    else:
        torch.save({"model": state, "__author__": "InstanceVG"}, args.output)
    for key, reason in report.dropped.items():
        logger.info(f"Not carried over: {key} ({reason})")
    options = " ".join(str(option).replace(" ", "") for option in report.size.config_options())
    logger.info(
        f"Wrote {len(state)} tensors to {args.output}; the config must agree with {options}"
    )


if __name__ == "__main__":
    main()
