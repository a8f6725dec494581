#!/usr/bin/env python
"""Check that data sets are complete before a training run trips over them.

    python datasets/check.py                        # every data set whose annotation file is found
    python datasets/check.py grefcoco_unc_val ...   # these
    python datasets/check.py --config-file my.yaml my_train my_val      # your own
    python datasets/check.py --quick --workers 8    # do not decode the images

Prints for each the SHA-256 of its files, the expressions by number of targets beside those known of
the public files and the published ones, every missing or unreadable image, box outside its image or
far from its mask and empty mask, and, without names, which data sets are not there and where to get
them. With a config it also prints the expressions that the tokenizer of this config does not know.
Exit status 0: all whole; 1: problems; 2: nothing found. datasets/README.md says where to get what.
"""

import argparse
import os
import sys
from functools import partial

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm

from igvg_d2.data import build_tokenizer
from igvg_d2.data.datasets.checks import KNOWN_COUNTS, KNOWN_FILES, check_dataset, published
from igvg_d2.engine.command_line import add_config_file, setup_data
from igvg_d2.io.terminal import printable

# Problems of one kind that are printed.
_LISTED = 5


def parse_args(args=None):
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="registered names; default: all that are found")
    add_config_file(parser)
    parser.add_argument("--quick", action="store_true", help="only look whether images exist")
    parser.add_argument(
        "--skip-invalid", action="store_true", help="list all malformed records, check the rest"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    return parser.parse_args(args)


def found_names():
    """Registered grounding data sets whose annotation file exists, each under one name.

    Returns:
        names, and {folder that is missing: (names, where to get it)}.
    """
    names, known, missing = [], set(), {}
    for name in DatasetCatalog.list():
        metadata = MetadataCatalog.get(name)
        path = metadata.get("reviewed_file", metadata.get("annotation_file", None))
        split = metadata.get("split", None)
        if path is None or (path, split) in known:
            continue
        known.add((path, split))
        if os.path.isfile(path):
            names.append(name)
        else:
            hint = metadata.get("hint", "registered by you")
            missing.setdefault(path, ([], hint))[0].append(name)
    return names, missing


def describe_missing(missing):
    """What is not there, and where it is obtained, as text."""
    lines = [f"not found: {len(missing)} annotation files (fine unless you need them)"]
    for path, (names, hint) in missing.items():
        lines.append(f"  {path}\n    for {', '.join(names)}\n    {hint}")
    return "\n".join(lines)


def describe(report):
    """The report as text."""
    status = "PROBLEMS" if report.problems else "whole"
    lines = [f"{report.name}: {status}"]
    for path, digest in report.hashes.items():
        release = f"  ({KNOWN_FILES[digest]})" if digest in KNOWN_FILES else ""
        lines.append(f"  sha256 {digest}  {path}{release}")
    if report.hashes:
        none, one, two, more = report.counts
        if report.masks[1]:
            masks, boxes = report.masks
            lines.append(f"  targets with a mask / with a box only: {masks} / {boxes}")
        known = KNOWN_COUNTS.get(report.name.replace("refcocop_", "refcoco+_"))
        lines.append(
            f"  {report.expressions} expressions on {report.images} images; without / with one / "
            f"several targets: {none} / {one} / {two + more} (two: {two}, more: {more})"
        )
        if known is not None:
            same = "as here" if known == (none, one, two + more) else "DIFFERENT"
            lines.append("  known of the public file: {} / {} / {}".format(*known) + f", {same}")
        if published(report.name):
            lines.append(f"  published: {published(report.name)}")
    for kind, found in report.problems.items():
        lines.append(f"  {kind}: {len(found)}")
        lines += [f"    {text}" for text in found[:_LISTED]]
        if len(found) > _LISTED:
            lines.append(f"    ... and {len(found) - _LISTED} more")
    return "\n".join(lines)


def main(args=None, add_config=()) -> int:
    """Check and print; see the module docstring for the exit status."""
    args = parse_args(args)
    try:
        cfg = setup_data(args.config_file, args.names, add_config=add_config)
        return check(args, build_tokenizer(cfg) if args.config_file else None)
    except (ValueError, OSError) as error:
        sys.exit(printable(f"cannot check: {error}"))


def check(args, tokenizer) -> int:
    """Exit status; ``tokenizer`` may be None."""
    found, missing = found_names()
    names = args.names or found
    if not names:
        root = os.environ.get("DETECTRON2_DATASETS", "datasets")
        print(f"no data set found below '{root}' (DETECTRON2_DATASETS); see datasets/README.md")
        print(describe_missing(missing))
        return 2
    whole = True
    for name in names:
        bar = partial(tqdm, desc=name, unit=" images", leave=False)
        report = check_dataset(
            name, not args.quick, args.workers, bar, args.skip_invalid, tokenizer
        )
        whole = whole and not report.problems
        print(printable(describe(report)), flush=True)
        if "missing images" in report.problems:
            folder = MetadataCatalog.get(name).get("image_root", "?")
            print(f"  images belong into '{folder}', see datasets/README.md")
    if missing and not args.names:
        print(describe_missing(missing))
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
