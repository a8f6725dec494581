#!/usr/bin/env python
"""Score anybody's predictions on a benchmark, under one or more named protocols.

    python tools/score_predictions.py --dataset grefcoco_unc_val --predictions P.json
    python tools/score_predictions.py --dataset refzom_final_test --predictions P.jsonl \\
        --protocol official,native --output R.json
    python tools/score_predictions.py --config-file my.yaml --dataset my_val --predictions P.jsonl

The predictions are a JSON list or JSON lines, one object per expression:

    {"ref_id": 5, "sent_id": 12,                     or "sample_id": "5_12"
     "mask": {"size": [480, 640], "counts": "..."},  COCO RLE of the union, original size
     "no_target": false, "no_target_score": 0.03,    optional; default: the mask is empty
     "boxes": [[x1, y1, x2, y2], ...], "scores": [0.9, ...], "masks": [RLE, ...]}    optional

train_net.py --eval-only writes such a file. Only annotation files are read, no images.

protocols:
  native           original resolution, every rate without a case is NaN
  official         rules and resolution (480x480) of the benchmark's authors
  released         the evaluation of the paper's authors: 320x320, no-target decided by the boxes
  official_native  the authors' rules, original resolution
  released_native  the rules of the paper's authors, original resolution
For a protocol at 480 or 320 pixels "mask" may have that size. A mask of the original size is
resized by PIL nearest, unless the record has "mask_480" or "mask_320" beside it. The targets are
resized otherwise, so the report says the ceiling: what a perfect mask of the original size reaches.

Unknown, repeated and missing samples and records that cannot be used (wrong size, NaN boxes, ...)
are listed, and are an error. With --allow-missing they are listed and counted as the official code
would: unknown ones are not looked at, of repeated ones the last counts, unusable ones are missing;
missing ones are in none of the numbers, and those of GREC and MDETR, whose scripts stop at a
missing sample, are NaN under official rules.
"""

import argparse
import functools
import os
import sys

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
from tqdm import tqdm

from igvg_d2.data.datasets import fingerprint
from igvg_d2.engine import setup_config
from igvg_d2.engine.command_line import add_config_file, setup_data
from igvg_d2.evaluation import (
    build_grounding_evaluator,
    merge_records,
    parse_protocols,
)
from igvg_d2.evaluation.predictions import PredictionError
from igvg_d2.evaluation.reporting import format_report, write_json
from igvg_d2.evaluation.scoring import has_masks, score_file
from igvg_d2.io.terminal import printable

# Problems of one kind that are listed by name.
_LISTED = 10
# What cannot be said without boxes; tasks of other protocols end in "_<protocol>".
_BOX_TASKS = ("grec", "grec_calibrated", "instance", "rec", "ref_l4", "openref")
_BOX_NUMBERS = {"F1score", "Acc@0.5"}


def parse_args(argv=None):
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_file(parser)
    parser.add_argument("--dataset", required=True, help="name of a registered data set")
    parser.add_argument("--predictions", required=True, help="JSON list or JSON lines")
    parser.add_argument("--protocol", default="native", help="names with commas (default native)")
    parser.add_argument("--output", help="write the results to this JSON file, too")
    parser.add_argument(
        "--num-workers", type=int, default=min(2, os.cpu_count() or 1), help="processes (default 2)"
    )
    parser.add_argument("--allow-missing", action="store_true", help="score what is there")
    parser.add_argument(
        "--calibration",
        metavar="FILE",
        help="of tools/calibrate.py: also report what its decision by no_target_score does, and "
        "what is promised of it; data that it or the model was fitted on are refused",
    )
    return parser.parse_args(argv)


def score(
    dataset,
    path,
    allow_missing=False,
    protocols=("native",),
    calibration=None,
    num_workers=0,
    add_config=(),
):
    """Report of the predictions in a file, see ``GroundingEvaluator.report``.

    Raises:
        PredictionError: the file or a prediction is wrong, or samples do not match the data set.
        ValueError: the calibration is wrong, or was fitted on this data set.
        KeyError, FileNotFoundError: the data set is not registered or its files are missing.
    """
    evaluator = build_evaluator(dataset, protocols, calibration, add_config)
    progress = functools.partial(tqdm, total=len(evaluator.samples), unit=" samples")
    problems, with_boxes = score_file(evaluator, path, num_workers, progress)
    samples, records = evaluator.samples, evaluator.records
    done = {record["sample_id"] for record in records}
    unusable = {name for name, _ in problems["unusable"]}
    missing = sorted(samples.keys() - done - unusable)
    listed = {
        "unknown samples": problems["unknown"],
        "repeated samples": problems["repeated"],
        "missing samples": missing,
        "unusable records": [text for _, text in problems["unusable"]],
    }
    found = [
        f"{len(names)} {kind}: {', '.join(names[:_LISTED])}{', ...' if names[_LISTED:] else ''}"
        for kind, names in listed.items()
        if names
    ]
    summary = f"{path} does not fit data set '{dataset}': {'; '.join(found)}"
    if found and not allow_missing:
        raise PredictionError(f"{summary} (--allow-missing scores what is there)")
    if not records:
        raise PredictionError(f"{path}: no prediction at all{'; ' + summary if found else ''}")
    if found:
        tqdm.write(printable(f"warning: {summary}"), file=sys.stderr)
    if not with_boxes and not needs_no_boxes(evaluator):
        raise PredictionError(
            f"{path}: data without masks and rules called 'released' are about boxes; no "
            "prediction has 'boxes' (none found is an empty list)"
        )
    report = evaluator.report(merge_records([records]))
    if not with_boxes:
        drop_box_tasks(report, evaluator.protocols)
    problems = {kind: {"number": len(n), "first": n[:_LISTED]} for kind, n in listed.items() if n}
    return {**report, "predictions": path, "problems": problems}


def build_evaluator(dataset, protocols, calibration=None, add_config=()):
    """The data set's evaluator, writing no files."""
    cfg = setup_config(add_config=add_config)
    cfg.TEST.PROTOCOLS = tuple(protocol.name for protocol in parse_protocols(protocols))
    cfg.TEST.CALIBRATION = calibration or ""
    evaluator = build_grounding_evaluator(cfg, dataset)
    evaluator.output_folder = None
    evaluator.allow_missing = True
    evaluator.fingerprint = fingerprint
    evaluator.reset()
    return evaluator


def needs_no_boxes(evaluator):
    """Whether masks alone are enough: classic data sets, or no released rules; and masks."""
    released = any(protocol.rules == "released" for protocol in evaluator.protocols)
    is_classic = type(evaluator).__name__ == "RefCOCOEvaluator"
    return has_masks(evaluator) and (is_classic or not released)


def drop_box_tasks(report, protocols):
    """Take what cannot be said without boxes out of a report."""
    absent = {task + protocol.suffix for task in _BOX_TASKS for protocol in protocols}
    for block in (report, *report["protocols"].values()):
        names = absent if block is report else _BOX_TASKS
        block["results"] = {k: v for k, v in block["results"].items() if k not in names}
    for table in report["breakdown"].values():
        for numbers in (table, *table.values()):
            for name in _BOX_NUMBERS & numbers.keys():
                del numbers[name]


def main(argv=None, add_config=()):
    """Print the report; exit status 1 with one line of reason if there is none."""
    args = parse_args(argv)
    try:
        setup_data(args.config_file, [args.dataset], add_config=add_config)
        report = score(
            args.dataset,
            args.predictions,
            args.allow_missing,
            args.protocol,
            args.calibration,
            args.num_workers,
            add_config,
        )
    except (ValueError, OSError) as error:
        sys.exit(printable(f"cannot score: {error}"))
    print(printable(format_report(report)))
    if args.output:
        write_json(report, os.path.abspath(args.output), indent=2)


if __name__ == "__main__":
    main()
