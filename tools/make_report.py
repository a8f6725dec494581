#!/usr/bin/env python
"""One-page HTML report of a finished or running training run.

    python tools/make_report.py output/shapes_tiny

Writes <output_dir>/report.html from the metrics, and images found there.
"""

import argparse

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
from detectron2.utils.logger import setup_logger

from igvg_d2.visualization import build_report


def parse_args(argv=None):
    """Command line."""
    parser = argparse.ArgumentParser(description="Write report.html into a run's output folder.")
    parser.add_argument("output_dir", help="OUTPUT_DIR of the run")
    parser.add_argument("--title", help="heading; default: the name of the folder")
    parser.add_argument(
        "--link", action="store_true", help="link the images instead of embedding them"
    )
    return parser.parse_args(argv)


def main(argv=None) -> str:
    """Write the page and return its path."""
    args = parse_args(argv)
    setup_logger(name="igvg_d2")
    return build_report(args.output_dir, embed=not args.link, title=args.title)


if __name__ == "__main__":
    main()
