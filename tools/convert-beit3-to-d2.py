#!/usr/bin/env python
"""Convert a BEiT-3 checkpoint, as downloaded, to the weights of this project's encoder.

    python tools/convert-beit3-to-d2.py beit3_base_patch16_224.zip beit3_base.safetensors

OUT ends in .pth or .safetensors and holds the encoder only. Every tensor of the file is
accounted for, or the conversion fails.
"""

import argparse
import logging

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
from detectron2.utils.logger import setup_logger

from igvg_d2.checkpoint import check_output, convert_beit3, read_checkpoint, write_checkpoint
from igvg_d2.io.terminal import printable
from igvg_d2.model_zoo import resolve_weights

logger = logging.getLogger("igvg_d2.tools.convert_beit3")


def parse_args(argv=None):
    """Command line."""
    parser = argparse.ArgumentParser(description="BEiT-3 checkpoint to igvg_d2.")
    parser.add_argument("input", help="checkpoint, whatever its ending, as MODEL.WEIGHTS takes it")
    parser.add_argument("output", help="file to write, .pth or .safetensors")
    parser.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        default=(320, 320),
        metavar=("HEIGHT", "WIDTH"),
        help="MODEL.BEIT3.PRETRAIN_IMAGE_SIZE that the position table is resized to",
    )
    parser.add_argument("--patch-size", type=int, default=16, help="MODEL.BEIT3.PATCH_SIZE")
    return parser.parse_args(argv)


def main(argv=None) -> None:
    """Convert one file and report what was found and dropped."""
    args = parse_args(argv)
    setup_logger(name="igvg_d2")
    image_size = tuple(args.image_size)
    try:
        check_output(args.output)
        checkpoint = read_checkpoint(resolve_weights(args.input))
        state, report = convert_beit3(checkpoint, image_size, args.patch_size)
        write_checkpoint(args.output, state, "BEiT-3")
    except (OSError, ValueError) as error:
        raise SystemExit(printable(f"{args.input}: {error}")) from error
    for key, reason in report.dropped.items():
        logger.info(f"Not carried over: {key} ({reason})")
    size = report.size
    logger.info(
        f"Wrote {len(state)} tensors to {args.output}; the config must have MODEL.BEIT3.EMBED_DIM "
        f"{size.embed_dim} DEPTH {size.depth} FFN_DIM {size.ffn_dim} NUM_HEADS {size.num_heads} "
        f"PATCH_SIZE {args.patch_size} PRETRAIN_IMAGE_SIZE {image_size}"
    )


if __name__ == "__main__":
    main()
