#!/usr/bin/env python
"""Ask questions about images: boxes, masks and points of what each expression refers to."""

import argparse
import logging
import os
import signal
import sys
import tempfile
import warnings
from itertools import groupby, islice
from typing import Callable, Dict, Iterator, List, Sequence, Tuple

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
import numpy as np
from detectron2.utils.logger import setup_logger
from PIL import Image
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from igvg_d2 import model_zoo
from igvg_d2.data.tokenizer import build_tokenizer, warn_of_unknown_words_in
from igvg_d2.inference import GroundingPredictor, GroundingResult
from igvg_d2.inference.images import to_rgb
from igvg_d2.inference.result import check_thresholds
from igvg_d2.io.terminal import printable

# Not there when a test or another project runs this file.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from answers import KINDS, AnswerFiles  # noqa: E402
from questions import STDIN, Row, assign, find_images, read_expressions  # noqa: E402

logger = logging.getLogger("igvg_d2.demo")

EXAMPLES = """examples:
  python demo/demo.py --input demo/images/scene.jpg --expression "the orange cross" "all circles"
      Two questions about one image, answered by the small model that ships with the project. It
      knows coloured shapes only.

  python demo/demo.py --model instancevg-grefcoco --input photos "more/**/*.jpg" \\
      --expression "every dog" --save overlay,masks,coco --output output/dogs
      All images of a folder and of the folders below another one, asked of a released model.

  find photos -name "*.jpg" | python demo/demo.py --input - --expressions-file questions.txt \\
      --output - | jq -c '[.path, .expression, .boxes]'
      Names through a pipe, answers as lines of JSON.

Every answer has a file name of its own, and no input is overwritten. The exit status is 1 if an
image could not be read; the others are answered.
"""


def parse_args(argv=None) -> argparse.Namespace:
    """Command line; --input, --output, --config-file and --opts are those of Detectron2's demo."""
    parser = argparse.ArgumentParser(
        description="Ask what expressions refer to in images: every object, or nothing.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    _add_questions(parser)
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "--model",
        metavar="NAME",
        help="a name that 'python -m igvg_d2.model_zoo --list' prints, an exported .safetensors or "
        ".onnx, or a checkpoint in the folder of its training run (default: shapes-tiny)",
    )
    model.add_argument("--config-file", metavar="FILE", help="of a model of your own; see --opts")
    add(
        "--output",
        default="output/demo",
        help="folder; a file name, for one drawing; - writes each answer as a line of JSON to "
        "standard output, and no file (default: %(default)s)",
    )
    add(
        "--save",
        type=_kinds,
        default=["overlay"],
        metavar="KINDS",
        help=f"what to write, of {','.join(KINDS)} (default: overlay)",
    )
    add("--threshold", "--confidence-threshold", type=float, help="least score of an object")
    add("--mask-threshold", type=float, help="least probability of a pixel of a mask")
    add("--no-target-threshold", type=float, help="least no-target score of the answer 'none'")
    add("--batch-size", type=int, default=8, help="answers at a time (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: %(default)s)")
    add("--max-pixels", type=int, help="largest image; 178,956,970 pixels if not given")
    add("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs of the config")
    args = parser.parse_args(argv)
    if args.batch_size < 1 or (args.max_pixels or 1) < 1:
        parser.error("--batch-size and --max-pixels must be 1 or more")
    return args


def _add_questions(parser: argparse.ArgumentParser) -> None:
    """The options for images and expressions."""
    parser.add_argument(
        *("--input", "-i"),
        nargs="+",
        action="extend",
        default=[],
        metavar="PATH",
        help="images, folders, patterns (quoted; ** is any depth), or - for names, or the bytes of "
        "one image, through standard input",
    )
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument(
        *("--expression", "-e"),
        nargs="+",
        action="extend",
        metavar="TEXT",
        help="what to look for, each in quotes; all are asked about all images",
    )
    asked.add_argument(
        "--expressions-file",
        metavar="FILE",
        help=".txt (one a line), .csv with a column expression, or .json (a list); a column image "
        "in a .csv, or {image, expression} in a .json, asks about single images: those of --input, "
        "or else paths from the folder of the file",
    )


def _kinds(text: str) -> List[str]:
    """The value of --save."""
    kinds = list(dict.fromkeys(text.split(",")))
    if set(kinds) - set(KINDS):
        raise argparse.ArgumentTypeError(f"expected some of {','.join(KINDS)}, got '{text}'")
    return kinds


def load_predictor(args: argparse.Namespace, add_config=()) -> GroundingPredictor:
    """The model of the command line with its weights."""
    name = args.model or args.config_file or "shapes-tiny"
    cfg = model_zoo.load(name, args.device, args.opts, add_config)
    if not cfg.MODEL.WEIGHTS:
        raise ValueError(f"no weights for '{name}': add --opts MODEL.WEIGHTS FILE")
    return GroundingPredictor(cfg)


def describe(result: GroundingResult) -> str:
    """The answer in words."""
    if result.no_target:
        return f"no target (score {result.no_target_score:.2f})"
    if not len(result):
        return f"a mask of {np.count_nonzero(result.mask):,} pixels"
    boxes = [
        f"box ({', '.join(f'{x:.0f}' for x in box)}) score {score:.2f}"
        for box, score in zip(result.boxes.tolist(), result.scores.tolist())
    ]
    return "; ".join(["1 target" if len(boxes) == 1 else f"{len(boxes)} targets", *boxes])


def answers(
    args,
    predictor: GroundingPredictor,
    asked: Dict[str, List[str]],
    skip: Callable[[str, Exception], None],
) -> Iterator[Tuple[str, GroundingResult]]:
    """(path of the image, answer) of every question, image by image.

    ``skip`` is called with the path and the error of an image that cannot be read.
    """
    unread = set()

    def ask(pairs: Sequence[Tuple[str, str]]) -> List[Tuple[str, GroundingResult]]:
        paths, expressions = zip(*pairs)
        try:
            results = predictor(
                list(paths),
                list(expressions),
                threshold=args.threshold,
                mask_threshold=args.mask_threshold,
                no_target_threshold=args.no_target_threshold,
                batch_size=args.batch_size,
            )
        except (OSError, ValueError):
            if len(set(paths)) > 1:  # those of the others, and the error of the one
                parts = groupby(pairs, key=lambda pair: pair[0])
                return [result for _, part in parts for result in ask(list(part))]
            try:
                to_rgb(paths[0])
            except (OSError, ValueError) as error:
                unread.add(paths[0])
                skip(paths[0], error)
                return []
            raise  # of the model, not of the image
        if not isinstance(results[0], GroundingResult):
            name = predictor.cfg.MODEL.META_ARCHITECTURE
            raise ValueError(f"{name} returns no ranked masks (IGVG does), which this needs")
        return list(zip(paths, results))

    pairs = ((path, text) for path, texts in asked.items() for text in texts if path not in unread)
    while group := list(islice(pairs, args.batch_size)):
        yield from ask(group)


def answer(
    args, predictor: GroundingPredictor, asked: Dict[str, List[str]], stdin: str = ""
) -> List[str]:
    """Answer and write everything; returns the paths of images that cannot be read.

    Args:
        asked: expressions by path of the image.
        stdin: path of the image that came through standard input.
    """
    inputs = [path for path in (args.expressions_file, args.config_file, args.model) if path]
    files = None if args.output == "-" else AnswerFiles(args.output, args.save, asked, inputs)
    unread: List[str] = []
    bar = tqdm(total=sum(map(len, asked.values())), unit=" answers", disable=None)

    def skip(path: str, error: Exception) -> None:
        logger.error("%s", error)
        unread.append(path)
        bar.total -= len(asked[path])

    with bar, logging_redirect_tqdm([logging.getLogger("igvg_d2")]):
        try:
            for path, result in answers(args, predictor, asked, skip):
                result.path = "-" if path == stdin else path
                if files is None:
                    print(result.to_json(), flush=True)
                else:
                    first, *more = files.write(result, path) or [args.output]
                    written = f"{first} and {len(more)} more" if more else first
                    text = f"'{result.expression}': {describe(result)}"
                    logger.info("%s: %s -> %s", path, text, written)
                bar.update()
        finally:
            # Also of what was answered before an interrupt.
            if files is not None:
                files.close()
    return unread


def run(args, add_config=()) -> str:
    """Everything after the command line; returns a message about images that were not read."""
    with tempfile.TemporaryDirectory() as folder:
        images = find_images(args.input, folder)
        rows = [Row(text, None) for text in args.expression or ()]
        if args.expressions_file:
            rows = read_expressions(args.expressions_file)
        asked = assign(rows, images, os.path.dirname(args.expressions_file or ""))
        unasked = [path for path, expressions in asked.items() if not expressions]
        if unasked:
            logger.warning("%d images have no expression: %s", len(unasked), _first(unasked))
            asked = {path: expressions for path, expressions in asked.items() if expressions}
        predictor = load_predictor(args, add_config)
        # Before the first answer: what does not fit is refused, words that are not read are said.
        check_thresholds(args.threshold, args.mask_threshold, args.no_target_threshold)
        tokenizer = build_tokenizer(predictor.cfg)
        for expression in dict.fromkeys(row.expression for row in rows):
            warn_of_unknown_words_in(tokenizer, expression)
        unread = answer(args, predictor, asked, os.path.join(folder, STDIN))
    if not unread:
        return ""
    return f"{len(unread)} of {len(asked)} images could not be read: {_first(unread)}"


def _first(paths: List[str]) -> str:
    return ", ".join(paths[:5]) + ", ..." * (len(paths) > 5)


def main(argv=None, add_config=()) -> None:
    """Answer every question about every image; see EXAMPLES."""
    args = parse_args(argv)
    for handler in setup_logger(name="igvg_d2").handlers:
        if type(handler) is logging.StreamHandler:
            handler.stream = sys.stderr  # standard output is for answers
    if args.max_pixels:
        # Pillow warns above this, and refuses above twice as many.
        Image.MAX_IMAGE_PIXELS = -(-args.max_pixels // 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            message = run(args, add_config)
    except (OSError, ValueError) as error:
        # What the user mistyped is told in one line, without a traceback.
        sys.exit(printable(f"demo.py: {error}"))
    if message:
        sys.exit(printable(f"demo.py: {message}"))


if __name__ == "__main__":
    # A pipe that is closed early, as by head, is no error.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    main()
