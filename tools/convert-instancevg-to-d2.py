#!/usr/bin/env python
"""Convert a released InstanceVG checkpoint to this project's weights, or back.

    python tools/convert-instancevg-to-d2.py released.pth instancevg_base.safetensors
    python tools/convert-instancevg-to-d2.py --to-released model_final.pth released.pth

OUT ends in .pth or .safetensors and is used as MODEL.WEIGHTS with a config that builds on
configs/Released-IGVG.yaml. Every tensor of the file is accounted for, or the conversion fails.
"""

import argparse
import logging

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
from detectron2.utils.logger import setup_logger

from igvg_d2.checkpoint import (
    check_output,
    convert_instancevg,
    read_checkpoint,
    read_weights,
    restore_instancevg,
    write_checkpoint,
)
from igvg_d2.io.terminal import printable
from igvg_d2.model_zoo import resolve_weights

logger = logging.getLogger("igvg_d2.tools.convert_instancevg")

# Of the released models for gRefCOCO, Ref-ZOM and R-RefCOCO.
DEFAULT_QUERIES = 10


def parse_args(argv=None):
    """Command line."""
    parser = argparse.ArgumentParser(description="Released InstanceVG checkpoint to igvg_d2.")
    parser.add_argument("input", help="checkpoint, as MODEL.WEIGHTS takes it")
    parser.add_argument("output", help="file to write, .pth or .safetensors")
    parser.add_argument(
        "--to-released", action="store_true", help="the reverse: from our names to the release's"
    )
    parser.add_argument(
        "--num-queries",
        type=int,
        help="N_q of the model, --to-released only: 10, or 1 for RefCOCO (default: what the input "
        "records, as files of this tool do, else 10)",
    )
    return parser.parse_args(argv)


def convert(args) -> None:
    """A released file to ours."""
    state, report = convert_instancevg(read_checkpoint(resolve_weights(args.input)))
    write_checkpoint(args.output, state, "InstanceVG", num_queries=report.size.num_queries)
    for key, reason in report.dropped.items():
        logger.info(f"Not carried over: {key} ({reason})")
    for alias, key in report.aliases.items():
        logger.info(f"Stored once: {alias} equals {key}")
    options = " ".join(str(option).replace(" ", "") for option in report.size.config_options())
    logger.info(
        f"Wrote {len(state)} tensors to {args.output}; the config must agree with {options}"
    )


def restore(args) -> None:
    """Our weights to a released file, with the prefix that the release's loader expects."""
    weights = read_weights(resolve_weights(args.input))
    num_queries = args.num_queries or weights.get("num_queries", DEFAULT_QUERIES)
    if args.num_queries is None and "num_queries" not in weights:
        logger.warning(
            f"{args.input} does not record the number of queries, {num_queries} are assumed; give "
            "--num-queries 1 for a model of configs/RefCOCO."
        )
    state, report = restore_instancevg(weights, num_queries)
    state = {f"module.{key}": tensor for key, tensor in state.items()}
    write_checkpoint(args.output, state, "igvg_d2", container="state_dict")
    for key in report.dropped:
        logger.info(f"Filled with zeros where the release has unused values: {key}")
    logger.info(f"Wrote {len(state)} tensors for {num_queries} queries to {args.output}")


def main(argv=None) -> None:
    """Convert one file and report what was found and dropped."""
    args = parse_args(argv)
    setup_logger(name="igvg_d2")
    try:
        check_output(args.output)
        restore(args) if args.to_released else convert(args)
    except (OSError, ValueError) as error:
        raise SystemExit(printable(f"{args.input}: {error}")) from error


if __name__ == "__main__":
    main()
