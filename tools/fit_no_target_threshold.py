#!/usr/bin/env python
"""Fit the threshold of the no-target score on held-out training data, to be applied to test data.

    python train_net.py --config-file X --eval-only MODEL.WEIGHTS Y \\
        DATASETS.TEST "('held_out_train',)"
    python tools/fit_no_target_threshold.py --config-file X --dataset held_out_train \\
        --predictions output/inference/held_out_train/held_out_train_predictions.jsonl \\
        --output T.json
    python tools/score_predictions.py --dataset grefcoco_unc_val --predictions P.jsonl \\
        --no-target-threshold T.json

Held-out training data are expressions of the training split that the model was not trained on, for
example a file of them that DATASETS.EXPRESSION_FILES of X names (datasets/README.md). A threshold
fitted on the split it is applied to would be tuned on it; data sets whose split is not "train" are
therefore refused without --any-split.

The threshold maximises the mean of N_acc and T_acc when no_target_score >= threshold decides.
Printed are the curve over thresholds, AUROC and ECE. T.json holds the threshold and where it comes
from; the config key TEST.NO_TARGET_THRESHOLD takes the number.
"""

import argparse
import os
import sys

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
from detectron2.data import DatasetCatalog, MetadataCatalog
from tabulate import tabulate

from igvg_d2.data.datasets import fingerprint
from igvg_d2.engine.command_line import add_config_file, setup_data
from igvg_d2.evaluation.calibration import (
    fit_threshold,
    summarize_calibration,
    threshold_table,
)
from igvg_d2.evaluation.predictions import PredictionError, read_predictions
from igvg_d2.evaluation.reporting import write_json
from igvg_d2.io.terminal import printable


def fit(dataset, path, any_split=False):
    """Threshold, rates there, AUROC, ECE and curve of the scores in a prediction file.

    Raises:
        ValueError: names the file or the sample and what is wrong with it.
    """
    split = MetadataCatalog.get(dataset).get("split", None)
    if split not in (None, "train") and not any_split:
        raise ValueError(
            f"data set '{dataset}' is the split '{split}': fit on held-out training data, or pass "
            "--any-split if this split is for choosing"
        )
    samples = {sample["sample_id"]: sample for sample in DatasetCatalog.get(dataset)}
    scores = {}
    for prediction in read_predictions(path):
        name, score = prediction["sample_id"], prediction.get("no_target_score")
        if name not in samples or name in scores:
            what = "twice in the file" if name in scores else f"not in data set '{dataset}'"
            raise PredictionError(f"{path}: sample '{name}' is {what}")
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not 0 <= score <= 1:
            raise PredictionError(
                f"{path}: sample '{name}' needs a 'no_target_score' in [0, 1], found {score!r}"
            )
        scores[name] = float(score)
    names = sorted(scores)
    is_no_target = [not samples[name]["annotations"] for name in names]
    values = [scores[name] for name in names]
    return {
        **fit_threshold(values, is_no_target),
        **summarize_calibration(values, is_no_target),
        "criterion": "mean of N_acc and T_acc",
        "dataset": dataset,
        "dataset_hash": fingerprint(samples.values()),
        "num_samples": len(names),
        "num_no_target": sum(is_no_target),
        "predictions": path,
        "curve": threshold_table(values, is_no_target),
    }


def main(argv=None, add_config=()):
    """Print the fit; exit status 1 with one line of reason if there is none."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_file(parser)
    parser.add_argument("--dataset", required=True, help="name of a registered data set")
    parser.add_argument("--predictions", required=True, help="as for tools/score_predictions.py")
    parser.add_argument("--output", help="JSON file for --no-target-threshold of the scorer")
    parser.add_argument("--any-split", action="store_true", help="fit on a split other than train")
    args = parser.parse_args(argv)
    try:
        setup_data(args.config_file, [args.dataset], add_config=add_config)
        result = fit(args.dataset, args.predictions, args.any_split)
    except (ValueError, OSError) as error:
        sys.exit(printable(f"cannot fit: {error}"))
    rows = [[t, rates["N_acc"], rates["T_acc"]] for t, rates in result["curve"].items()]
    print(tabulate(rows, headers=["threshold", "N_acc", "T_acc"], floatfmt=".2f"))
    print(
        f"{result['num_samples']} samples, {result['num_no_target']} without target: "
        f"AUROC {result['AUROC']:.2f}, ECE {result['ECE']:.2f}\n"
        f"fitted threshold {result['threshold']:.6g}: N_acc {result['N_acc']:.2f}, "
        f"T_acc {result['T_acc']:.2f}"
    )
    if args.output:
        write_json(result, os.path.abspath(args.output), indent=2)


if __name__ == "__main__":
    main()
