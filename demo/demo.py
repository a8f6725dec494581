#!/usr/bin/env python
"""Ask a question about an image: masks, boxes and points of what an expression refers to.

    python demo/demo.py --input scene.png --expression "the two red circles" --output answer.png

Without further options the small model trained on the Shapes data set answers, which knows coloured
shapes only. Other models: --config-file FILE --opts MODEL.WEIGHTS FILE.
"""

import argparse
import logging
import os
import sys
from typing import List

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.utils.logger import setup_logger
from PIL import Image

from igvg_d2.engine import GroundingPredictor, setup_config
from igvg_d2.io.terminal import printable
from igvg_d2.visualization import GroundingVisualizer

logger = logging.getLogger("igvg_d2.demo")

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DEFAULT_CONFIG = os.path.join(_ROOT, "configs", "Shapes", "igvg_tiny.yaml")
DEFAULT_WEIGHTS = os.path.join(_ROOT, "demo", "igvg_tiny_shapes.safetensors")
_IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def parse_args(argv=None):
    """Command line; the flags are those of Detectron2's demo, plus --expression."""
    parser = argparse.ArgumentParser(description="Ground an expression in images.")
    parser.add_argument("--input", nargs="+", required=True, help="image files")
    parser.add_argument("--expression", required=True, help="what to look for, in words")
    parser.add_argument(
        "--output",
        default="output/demo",
        help="folder, or a file name for a single image (default: %(default)s)",
    )
    parser.add_argument("--config-file", metavar="FILE", help="default: the small Shapes model")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs for the config"
    )
    return parser.parse_args(argv)


def setup_cfg(args, add_config=()):
    """Config with weights; those of `make demo` unless others are named."""
    config_file = args.config_file or DEFAULT_CONFIG
    if not os.path.isfile(config_file):
        raise FileNotFoundError(f"no config file '{config_file}'; pass one by --config-file")
    defaults = [] if args.config_file else ["MODEL.WEIGHTS", DEFAULT_WEIGHTS]
    cfg = setup_config(config_file, [*defaults, *args.opts], add_config)
    cfg.freeze()
    if not cfg.MODEL.WEIGHTS or not os.path.isfile(cfg.MODEL.WEIGHTS):
        raise FileNotFoundError(
            f"no trained model at MODEL.WEIGHTS '{cfg.MODEL.WEIGHTS}'. Train one with 'make demo' "
            "and pass --config-file configs/Shapes/igvg_tiny.yaml --opts MODEL.WEIGHTS "
            "output/shapes_tiny/model_final.pth"
        )
    return cfg


def output_paths(inputs: List[str], output: str) -> List[str]:
    """One output file per input; names get a number where two inputs are called alike."""
    if output.lower().endswith(_IMAGE_ENDINGS):
        if len(inputs) > 1:
            raise ValueError(f"--output '{output}' is one file, but there are {len(inputs)} images")
        os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
        return [output]
    os.makedirs(output, exist_ok=True)
    paths: List[str] = []
    for path in inputs:
        stem = os.path.splitext(os.path.basename(path))[0]
        candidate, number = os.path.join(output, f"{stem}.png"), 1
        while candidate in paths:
            number += 1
            candidate = os.path.join(output, f"{stem}_{number}.png")
        paths.append(candidate)
    return paths


def describe(output) -> str:
    """The answer in words."""
    score = float(output["no_target_score"])
    if output["no_target"]:
        return f"no target (score {score:.2f})"
    instances = output["instances"]
    boxes = [
        f"box ({', '.join(f'{x:.0f}' for x in box)}) score {s:.2f}"
        for box, s in zip(instances.pred_boxes.tensor.tolist(), instances.scores.tolist())
    ]
    count = "1 target" if len(boxes) == 1 else f"{len(boxes)} targets"
    return "; ".join([count, *boxes])


def main(argv=None, add_config=()) -> None:
    """Answer for every image and draw the answers."""
    args = parse_args(argv)
    setup_logger(name="igvg_d2")
    try:
        predictor = GroundingPredictor(setup_cfg(args, add_config))
        visualizer = GroundingVisualizer()
        for source, target in zip(args.input, output_paths(args.input, args.output)):
            image = predictor.read_image(source)
            output = predictor(image, args.expression)
            logger.info("%s: %s", source, describe(output))
            rgb = convert_image_to_rgb(image, predictor.image_format)
            drawn = visualizer.draw_prediction(rgb, args.expression, output)
            Image.fromarray(drawn).save(target)
            logger.info("Wrote %s", target)
    except (FileNotFoundError, ValueError) as error:
        # What the user mistyped is told in one line, without a traceback.
        sys.exit(printable(f"demo.py: {error}"))


if __name__ == "__main__":
    main()
