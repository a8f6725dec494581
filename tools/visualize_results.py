#!/usr/bin/env python
"""Draw a trained model's answers on a registered data set.

    python tools/visualize_results.py --config-file configs/Shapes/igvg_tiny.yaml \
        --dataset shapes_val --num 40 MODEL.WEIGHTS output/shapes_tiny/model_final.pth

With the records of an evaluation (found in OUTPUT_DIR/inference, or given by --records) the worst
and best cases by number of targets are drawn, otherwise samples spread over the data set.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
from detectron2.utils.logger import setup_logger

from igvg_d2.engine.command_line import add_config_file, setup_data
from igvg_d2.inference import GroundingPredictor
from igvg_d2.io.terminal import printable
from igvg_d2.visualization.result_images import load_records, render_result_images


def parse_args(argv=None):
    """Command line."""
    parser = argparse.ArgumentParser(description="Draw predictions of a trained model.")
    add_config_file(parser, required=True)
    parser.add_argument("--dataset", help="registered name; default: the first of DATASETS.TEST")
    parser.add_argument("--num", type=int, default=40, help="number of images")
    parser.add_argument("--records", metavar="FILE", help="<dataset>_records.json of an evaluation")
    parser.add_argument(
        "--output-dir", help="folder to write to; default: OUTPUT_DIR/images/<dataset>"
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs, e.g. MODEL.WEIGHTS model.pth"
    )
    return parser.parse_args(argv)


def main(argv=None, add_config=()) -> None:
    """Draw ``--num`` images and their index; exit status 1 with one line if that fails."""
    args = parse_args(argv)
    setup_logger(name="fvcore")
    setup_logger(name="igvg_d2")
    try:
        names = [args.dataset] if args.dataset else []
        draw(args, setup_data(args.config_file, names, args.opts, add_config))
    except (ValueError, OSError) as error:
        sys.exit(printable(f"cannot draw: {error}"))


def draw(args, cfg) -> None:
    """Write the images."""
    cfg.freeze()
    dataset = args.dataset or cfg.DATASETS.TEST[0]
    output_dir = args.output_dir or os.path.join(cfg.OUTPUT_DIR, "images", dataset)
    model = GroundingPredictor(cfg).model
    if args.records:
        records = json.loads(Path(args.records).read_text(encoding="utf-8"))
    else:
        records = load_records(cfg.OUTPUT_DIR, dataset)
    render_result_images(cfg, model, dataset, output_dir, args.num, records)


if __name__ == "__main__":
    main()
