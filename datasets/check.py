#!/usr/bin/env python
"""Check that data sets are complete before a training trips over them.

    python datasets/check.py                        # every data set whose annotation file is found
    python datasets/check.py grefcoco_unc_val ...   # these
    python datasets/check.py --quick --workers 8    # do not decode the pictures

Prints for each the SHA-256 of its files, the expressions by number of targets beside those known of
the public files, and every missing or unreadable picture, box outside its picture and empty mask.
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

import igvg_d2.data  # noqa: F401  registers the data sets
from igvg_d2.data.datasets.checks import KNOWN_COUNTS, check_dataset

# Problems of one kind that are printed.
_LISTED = 5


def parse_args(args=None):
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="registered names; default: all that are found")
    parser.add_argument("--quick", action="store_true", help="only look whether pictures exist")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    return parser.parse_args(args)


def found_names():
    """Registered grounding data sets whose annotation file exists, each under one name."""
    names, known = [], set()
    for name in DatasetCatalog.list():
        metadata = MetadataCatalog.get(name)
        path, split = metadata.get("annotation_file", None), metadata.get("split", None)
        if path is None or not os.path.isfile(path) or (path, split) in known:
            continue
        known.add((path, split))
        names.append(name)
    return names


def describe(report):
    """The report as text."""
    status = "PROBLEMS" if report.problems else "whole"
    lines = [f"{report.name}: {status}"]
    lines += [f"  sha256 {digest}  {path}" for path, digest in report.hashes.items()]
    if report.hashes:
        none, one, several = report.counts
        known = KNOWN_COUNTS.get(report.name)
        beside = "" if known is None else " (known of the public file: {} / {} / {})".format(*known)
        lines.append(
            f"  {sum(report.counts)} expressions on {report.images} pictures; without / with one / "
            f"several targets: {none} / {one} / {several}{beside}"
        )
    for kind, found in report.problems.items():
        lines.append(f"  {kind}: {len(found)}")
        lines += [f"    {text}" for text in found[:_LISTED]]
        if len(found) > _LISTED:
            lines.append(f"    ... and {len(found) - _LISTED} more")
    return "\n".join(lines)


def main(args=None) -> int:
    """Check and print; see the module docstring for the exit status."""
    args = parse_args(args)
    unknown = [name for name in args.names if name not in DatasetCatalog.list()]
    if unknown:
        sys.exit(f"no data set {unknown}; registered: {', '.join(DatasetCatalog.list())}")
    names = args.names or found_names()
    if not names:
        root = os.environ.get("DETECTRON2_DATASETS", "datasets")
        print(f"no data set found below '{root}' (DETECTRON2_DATASETS); see datasets/README.md")
        return 2
    whole = True
    for name in names:
        bar = partial(tqdm, desc=name, unit=" pictures", leave=False)
        report = check_dataset(name, not args.quick, max(1, args.workers), bar)
        whole = whole and not report.problems
        print(describe(report), flush=True)
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
