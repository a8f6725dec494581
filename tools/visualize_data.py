#!/usr/bin/env python
"""Draw a data set, as annotated or as the data loader hands it to the model.

    python tools/visualize_data.py --source annotation --config-file configs/Shapes/igvg_tiny.yaml \
        --output-dir output/data_images --num 20
"""

import argparse
import logging
import os
import re
import sys
from itertools import chain, islice

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
from detectron2.data import DatasetCatalog
from detectron2.utils.logger import setup_logger
from PIL import Image

from igvg_d2.data import build_grounding_train_loader
from igvg_d2.engine.command_line import add_config_file, setup_data
from igvg_d2.io.terminal import printable
from igvg_d2.visualization import GroundingVisualizer

logger = logging.getLogger("igvg_d2.visualize_data")


def parse_args(argv=None):
    """Command line; Detectron2's tool of the same name has the same flags."""
    parser = argparse.ArgumentParser(description="Draw ground truth of grounding data sets.")
    parser.add_argument(
        "--source",
        choices=["annotation", "dataloader"],
        required=True,
        help="draw the annotations, or the output of the training loader after its augmentation",
    )
    add_config_file(parser, required=True)
    parser.add_argument("--output-dir", default="output/data_images", help="folder to write to")
    parser.add_argument("--num", type=int, default=20, help="number of images")
    parser.add_argument(
        "--dataset", help="registered data set instead of DATASETS.TRAIN, e.g. shapes_val"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the config")
    return parser.parse_args(argv)


def setup(args, add_config=()):
    """Config with the loader in this process."""
    cfg = setup_data(
        args.config_file, [args.dataset] if args.dataset else [], args.opts, add_config
    )
    cfg.DATALOADER.NUM_WORKERS = 0
    if args.dataset:
        cfg.DATASETS.TRAIN = (args.dataset,)
    cfg.freeze()
    return cfg


def draw_annotations(cfg, visualizer, num):
    """Yield (sample id, image) of ``num`` dataset dicts, evenly spread over the data sets.

    The first ones would be several expressions of a few images.
    """
    samples = list(chain.from_iterable(DatasetCatalog.get(name) for name in cfg.DATASETS.TRAIN))
    for sample in samples[:: max(1, len(samples) // num)]:
        yield sample["sample_id"], visualizer.draw_annotation(sample)


def draw_loader(cfg, visualizer):
    """Yield (sample id, image) of what the training loader gives, in its random order."""
    for sample in chain.from_iterable(build_grounding_train_loader(cfg)):
        yield sample["sample_id"], visualizer.draw_model_input(sample, cfg.INPUT.FORMAT)


def main(argv=None, add_config=()) -> None:
    """Draw ``--num`` images; exit status 1 with one line of reason if that fails."""
    args = parse_args(argv)
    setup_logger(name="igvg_d2")
    try:
        draw(args, setup(args, add_config))
    except (ValueError, OSError) as error:
        sys.exit(printable(f"cannot draw: {error}"))


def draw(args, cfg) -> None:
    """Write the images."""
    os.makedirs(args.output_dir, exist_ok=True)
    visualizer = GroundingVisualizer()
    if args.source == "annotation":
        images = draw_annotations(cfg, visualizer, args.num)
    else:
        images = draw_loader(cfg, visualizer)
    count = 0
    for sample_id, image in islice(images, args.num):
        name = re.sub(r"[^\w.-]", "_", sample_id)
        Image.fromarray(image).save(os.path.join(args.output_dir, f"{count:04d}_{name}.png"))
        count += 1
    logger.info("Wrote %d images to %s", count, args.output_dir)


if __name__ == "__main__":
    main()
