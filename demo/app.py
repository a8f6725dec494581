#!/usr/bin/env python
"""A web page that answers questions about images; it sends nothing out and loads nothing."""

import argparse
import importlib.util
import logging
import os
import signal
import sys
import tempfile
from pathlib import Path

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
from detectron2.utils.logger import setup_logger

from igvg_d2 import model_zoo
from igvg_d2.inference import GroundingPredictor
from igvg_d2.io.terminal import printable

logger = logging.getLogger("igvg_d2.demo")

FOLDER = Path(__file__).resolve().parent
SHAPES = [
    [str(FOLDER / "images" / "shapes.jpg"), "all of the circles"],
    [str(FOLDER / "images" / "shapes.jpg"), "all the triangles but the blue one"],
    [str(FOLDER / "images" / "shapes.jpg"), "the red cross left of the circle"],
    [str(FOLDER / "images" / "scene.jpg"), "the orange cross"],
]
EXAMPLES = """examples:
  python demo/app.py
      The small model that ships with the project; it knows coloured shapes only.

  python demo/app.py --model instancevg-grefcoco --device cuda --examples photos
      A released model, with photos of yours to try.

The page listens on this machine alone. --host 0.0.0.0 shows it to the network, without a password.
Uploads and downloads lie in a folder that is removed when the server ends.
"""


def parse_args(argv=None) -> argparse.Namespace:
    """Command line; the model is named as for demo.py."""
    parser = argparse.ArgumentParser(
        description="Serve a page on which expressions are grounded in images.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    model = parser.add_mutually_exclusive_group().add_argument
    model("--model", metavar="NAME", help="name, hf:// address or file (default: shapes-tiny)")
    model("--config-file", metavar="FILE", help="a config, with --opts MODEL.WEIGHTS FILE")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: %(default)s)")
    add("--examples", metavar="DIR", help="images to offer (default: two of Shapes)")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, help="default: the first free one from 7860 on")
    add("--upload-limit", type=int, default=20, metavar="MB", help="default: %(default)s")
    add("--concurrency", type=int, default=2, help="questions at a time (default: %(default)s)")
    add("--queue", type=int, default=64, help="questions that may wait (default: %(default)s)")
    add("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs for the config")
    args = parser.parse_args(argv)
    if min(args.upload_limit, args.concurrency, args.queue) < 1:
        parser.error("--upload-limit, --concurrency and --queue must be 1 or more")
    return args


def serve(args: argparse.Namespace, add_config=()) -> None:
    """Serve the page until Ctrl-C or SIGTERM."""
    from questions import find_images

    if args.examples and not os.path.isdir(args.examples):
        raise ValueError(f"--examples: there is no folder '{args.examples}'")
    examples = (
        [[path, ""] for path in find_images([args.examples], "")] if args.examples else SHAPES
    )
    name = args.model or args.config_file or "shapes-tiny"
    cfg = model_zoo.load(name, args.device, args.opts, add_config)
    if not cfg.MODEL.WEIGHTS:
        raise ValueError(f"no weights for '{name}': add --opts MODEL.WEIGHTS FILE")
    from page import GroundingPage, gr

    predictor = GroundingPredictor(cfg)
    page = GroundingPage(predictor, os.path.basename(name), examples, args.concurrency).build()
    page.queue(max_size=args.queue, default_concurrency_limit=args.concurrency)
    page.launch(
        server_name=args.host,
        server_port=args.port,
        max_file_size=f"{args.upload_limit}mb",
        share=False,
        ssr_mode=False,
        run_history=False,
        footer_links=[],
        quiet=True,
        prevent_thread_lock=True,
        css_paths=FOLDER / "page.css",
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    )
    logger.info("Listening on %s (Ctrl-C ends)", page.local_url)
    page.block_thread()


def main(argv=None, add_config=()) -> None:
    """Serve until the end; see EXAMPLES."""
    args = parse_args(argv)
    setup_logger(name="igvg_d2")
    if importlib.util.find_spec("gradio") is None:
        sys.exit("app.py: the page needs Gradio; run: pip install -e '.[demo]'")
    # Not there when a test or another project runs this file.
    sys.path.insert(0, str(FOLDER))
    # Both are read when Gradio is imported. A proxy is for addresses outside, and Gradio asks its
    # own server whether it is up.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["NO_PROXY"] = f"{os.environ.get('NO_PROXY', '')},127.0.0.1,localhost".lstrip(",")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="igvg_app_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            serve(args, add_config)
        except (OSError, ValueError) as error:
            # What the user mistyped is told in one line, without a traceback.
            sys.exit(printable(f"app.py: {error}"))


if __name__ == "__main__":
    main()
