#!/usr/bin/env python
"""Score anybody's predictions on a benchmark, at the original resolution ("native" protocol).

    python tools/score_predictions.py --dataset grefcoco_unc_val --predictions P.json
    python tools/score_predictions.py --dataset refzom_final_test --predictions P.jsonl \\
        --output R.json

The predictions are a JSON list or JSON lines, one object per expression:

    {"ref_id": 5, "sent_id": 12,                     or "sample_id": "5_12"
     "mask": {"size": [480, 640], "counts": "..."},  COCO RLE of the union, original size
     "no_target": false, "no_target_score": 0.03,    optional; default: the mask is empty
     "boxes": [[x1, y1, x2, y2], ...], "scores": [0.9, ...], "masks": [RLE, ...]}    optional

train_net.py --eval-only writes such a file. Only annotation files are read, no images. Unknown and
repeated samples are errors; so are missing ones without --allow-missing, with which only the
samples that are there count, as ReLA's evaluator does.
"""

import argparse
import os
import sys

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from tqdm import tqdm

import igvg_d2.data  # noqa: F401  registers the data sets
from igvg_d2.config import add_igvg_config
from igvg_d2.evaluation import build_grounding_evaluator, merge_records
from igvg_d2.evaluation.predictions import (
    PredictionError,
    prediction_to_output,
    read_predictions,
)
from igvg_d2.evaluation.reporting import format_report, write_json

# Problems of one kind that are listed by name.
_LISTED = 10
# What cannot be said without boxes.
_BOX_TASKS = ("grec", "instance", "rec")


def parse_args(args=None):
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", required=True, help="name of a registered data set")
    parser.add_argument("--predictions", required=True, help="JSON list or JSON lines")
    parser.add_argument("--output", help="write the results to this JSON file, too")
    parser.add_argument("--allow-missing", action="store_true", help="score what is there")
    return parser.parse_args(args)


def score(dataset, path, allow_missing=False):
    """Report of the predictions in a file, see ``GroundingEvaluator.report``.

    Raises:
        PredictionError: the file or a prediction is wrong, or samples do not match the data set.
        KeyError, FileNotFoundError: the data set is not registered or its files are missing.
    """
    cfg = get_cfg()
    add_igvg_config(cfg)
    evaluator = build_grounding_evaluator(cfg, dataset)
    evaluator.output_folder = None
    evaluator.reset()
    samples = evaluator.samples
    seen, unknown, repeated, with_boxes = set(), [], [], False
    for prediction in tqdm(read_predictions(path), total=len(samples), unit=" samples"):
        name = prediction["sample_id"]
        if name not in samples or name in seen:
            (repeated if name in seen else unknown).append(name)
            continue
        seen.add(name)
        with_boxes = with_boxes or "boxes" in prediction
        evaluator.process([{"sample_id": name}], [prediction_to_output(prediction, samples[name])])
    missing = sorted(samples.keys() - seen)
    problems = {"unknown": unknown, "repeated": repeated}
    if not allow_missing:
        problems["missing"] = missing
    found = [
        f"{len(names)} {kind} samples: {', '.join(names[:_LISTED])}"
        for kind, names in problems.items()
        if names
    ]
    if found:
        hint = " (--allow-missing scores what is there)" if not allow_missing and missing else ""
        raise PredictionError(f"{path} does not fit data set '{dataset}': {'; '.join(found)}{hint}")
    if not seen:
        raise PredictionError(f"{path}: no prediction at all")
    report = evaluator.report(merge_records([evaluator.records]))
    if not with_boxes:
        results = report["results"]
        report["results"] = {k: v for k, v in results.items() if k not in _BOX_TASKS}
    return {**report, "predictions": path}


def main(args=None):
    """Print the report; exit status 1 with one line of reason if there is none."""
    args = parse_args(args)
    if args.dataset not in DatasetCatalog.list():
        sys.exit(f"no data set '{args.dataset}'; registered: {', '.join(DatasetCatalog.list())}")
    try:
        report = score(args.dataset, args.predictions, args.allow_missing)
    except (ValueError, OSError) as error:
        sys.exit(f"cannot score: {error}")
    print(format_report(report))
    if args.output:
        write_json(report, os.path.abspath(args.output), indent=2)


if __name__ == "__main__":
    main()
