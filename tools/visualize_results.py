#!/usr/bin/env python
"""Pictures of a trained model's answers on a registered data set.

    python tools/visualize_results.py --config-file configs/Shapes/igvg_tiny.yaml \
        --dataset shapes_val --num 40 MODEL.WEIGHTS output/shapes_tiny/model_final.pth

With the records of an evaluation (found in OUTPUT_DIR/inference, or given by --records) the worst
and best cases by number of targets are drawn, otherwise samples spread over the data set.
"""

import argparse
import json
import logging
import os
from glob import escape, glob

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
from detectron2.utils.logger import setup_logger

from igvg_d2.engine import GroundingPredictor, setup_config
from igvg_d2.visualization.result_images import render_result_pictures

logger = logging.getLogger("igvg_d2.visualize_results")


def parse_args(argv=None):
    """Command line."""
    parser = argparse.ArgumentParser(description="Draw predictions of a trained model.")
    parser.add_argument("--config-file", metavar="FILE", required=True, help="path to config file")
    parser.add_argument("--dataset", help="registered name; default: the first of DATASETS.TEST")
    parser.add_argument("--num", type=int, default=40, help="number of pictures")
    parser.add_argument("--records", metavar="FILE", help="<dataset>_records.json of an evaluation")
    parser.add_argument(
        "--output-dir", help="folder to write to; default: OUTPUT_DIR/pictures/<dataset>"
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs, e.g. MODEL.WEIGHTS model.pth"
    )
    return parser.parse_args(argv)


def find_records(args, cfg, dataset):
    """Records of the data set, or None."""
    path = args.records
    if path is None:
        pattern = os.path.join(
            escape(cfg.OUTPUT_DIR), "inference", "**", escape(f"{dataset}_records.json")
        )
        path = next(iter(sorted(glob(pattern, recursive=True))), None)
    if path is None:
        logger.info("No records of %s below %s: drawing samples evenly", dataset, cfg.OUTPUT_DIR)
        return None
    logger.info("Choosing worst and best cases by %s", path)
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def main(argv=None, add_config=()) -> None:
    """Draw ``--num`` pictures and their index."""
    args = parse_args(argv)
    setup_logger(name="fvcore")
    setup_logger(name="igvg_d2")
    cfg = setup_config(args.config_file, args.opts, add_config)
    cfg.freeze()
    dataset = args.dataset or cfg.DATASETS.TEST[0]
    output_dir = args.output_dir or os.path.join(cfg.OUTPUT_DIR, "pictures", dataset)
    model = GroundingPredictor(cfg).model
    records = find_records(args, cfg, dataset)
    render_result_pictures(cfg, model, dataset, output_dir, args.num, records)


if __name__ == "__main__":
    main()
