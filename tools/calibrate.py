#!/usr/bin/env python
"""Fit the threshold of "nothing matches" so that a kind of error is bounded, with a guarantee.

    python train_net.py --eval-only --config-file shapes-tiny DATASETS.TEST "('shapes_val',)"
    python tools/calibrate.py --config-file shapes-tiny --dataset shapes_val \\
        --predictions output/inference/shapes_val/shapes_val_predictions.jsonl \\
        --risk false-answers --alpha 0.1 --confidence 0.9 --output C.json
    python tools/score_predictions.py --dataset shapes_testA --predictions P.jsonl \\
        --calibration C.json

"Nothing matches" is then said where no_target_score >= t. One of two errors can be bounded:

  false-answers    an expression without target is answered (less often with a smaller t)
  missed-targets   one with targets is answered by "nothing matches" (with a larger t)

C.json holds t, what is promised under which assumption, and the hashes of the data that the model
and the threshold were fitted on: evaluations of those are refused. Predictors and evaluations take
it by the config key TEST.CALIBRATION, GroundingPredictor.from_pretrained as calibration="C.json".

Expressions about one image are dependent, images are not. The example is therefore an image with
expressions of the kind concerned, its loss L(t) in [0, 1] the share of them that go wrong, and the
risk R(t) the mean of L over images. From the strictest threshold on, which makes no error, others
are admitted while their sum of losses S(t) over the n calibration images is small enough:

* without --confidence on average, by conformal risk control (Angelopoulos, Bates, Fisch, Lei and
  Schuster, ICLR 2024, Theorem 1): (S(t) + 1) / (n + 1) <= alpha. If the n images and a new one are
  exchangeable, then E[L(t)] <= alpha for the new one, the mean taken over calibration sets and new
  images. It needs n >= 1 / alpha - 1: 9 images for alpha 0.1.
* with --confidence 1 - delta by Learn then Test (Angelopoulos, Bates, Candes, Jordan and Lei, arXiv
  2110.01052): the hypotheses R(t) > alpha are tested in this order, each at level delta, up to the
  first that is not rejected (fixed-sequence testing). If images are drawn independently, then
  R(t) <= alpha with probability 1 - delta or more over the calibration set. R is monotone in t, so
  the sequence may be all numbers, and no grid is chosen. The p-value is P[Bin(n, alpha) <= S] if
  each image has one expression, else that of Hoeffding and Bentkus, min(exp(-n h(S/n, alpha)),
  e P[Bin(n, alpha) <= ceil(S)]) with h(a, b) = a ln(a/b) + (1 - a) ln((1 - a)/(1 - b)). It needs
  n >= ln(delta) / ln(1 - alpha), 22 images for 0.1 and 0.1 (31 by Bentkus).

Nothing is promised for single images or kinds of expressions, nor where images or expressions are
drawn otherwise: gRefCOCO's val has no expression with exactly one target, so that a bound on missed
targets from there does not carry over to testA. Images that the model was trained on are refused.
--check-splits 200 tells whether the promise holds on random halves of the data: images are split,
not expressions.

Thresholds of scores and masks stay as they are: a prediction file has masks of one threshold only.
"""

import argparse
import math
import os
import reprlib
import sys
from collections import Counter
from fractions import Fraction
from itertools import groupby

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
import numpy as np
from detectron2.data import DatasetCatalog
from scipy.special import bdtr, rel_entr
from tabulate import tabulate

from igvg_d2.data.datasets import fingerprint
from igvg_d2.engine.command_line import add_config_file, check_registered, setup_data
from igvg_d2.evaluation.calibration import RISKS, Calibration, auroc, risk_percent
from igvg_d2.evaluation.metrics import no_target_accuracy, target_accuracy
from igvg_d2.evaluation.predictions import PredictionError, read_predictions
from igvg_d2.evaluation.reporting import write_json
from igvg_d2.io.hub import file_sha256
from igvg_d2.io.terminal import printable


def parse_args(argv=None):
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_file(parser)
    add = parser.add_argument
    add("--dataset", nargs="+", required=True, help="names of registered data sets")
    add("--predictions", nargs="+", required=True, help="a file for each, as for the scorer")
    add("--risk", choices=list(RISKS), default="false-answers", help="default: %(default)s")
    add("--alpha", type=share, required=True, help="largest share of errors, such as 0.1")
    add("--confidence", type=share, help="such as 0.9; left out, the promise is one on average")
    add(
        "--trained-on",
        nargs="*",
        metavar="NAME",
        help="data sets that the model was trained on (default: DATASETS.TRAIN of --config-file, "
        "without one none); no name: it cannot be told, and is not checked",
    )
    add("--output", help="JSON file for --calibration and TEST.CALIBRATION")
    add("--check-splits", type=int, default=0, metavar="N", help="fit on N random halves, too")
    args = parser.parse_args(argv)
    if len(args.dataset) != len(args.predictions):
        parser.error("--predictions: expected one file for each --dataset")
    if len(set(args.dataset)) != len(args.dataset):
        parser.error("--dataset: expected every name once")
    if args.check_splits < 0:
        parser.error(f"--check-splits: expected 0 or more, found {args.check_splits}")
    return args


def share(text):
    """A number between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < 1.0:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, found {text}")
    return value


def read_scores(samples, path, dataset):
    """no_target_score of every sample of a data set, in its order.

    Raises:
        PredictionError: names the file, the sample and what is wrong with it.
    """
    scores = {sample["sample_id"]: None for sample in samples}
    for prediction in read_predictions(path):
        name, score = prediction["sample_id"], prediction.get("no_target_score")
        if scores.get(name, 0) is not None:
            what = "twice in the file" if name in scores else f"not in data set '{dataset}'"
            raise PredictionError(f"{path}: sample '{name}' is {what}")
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not 0 <= score <= 1:
            raise PredictionError(
                f"{path}: sample '{name}' needs a 'no_target_score' in [0, 1], found "
                f"{reprlib.repr(score)}"
            )
        scores[name] = float(score)
    missing = [name for name, score in scores.items() if score is None]
    if missing:
        raise PredictionError(
            f"{path}: {len(missing)} of {len(scores)} samples of '{dataset}' are missing, first "
            f"{missing[:3]}; a choice of samples promises nothing about all"
        )
    return list(scores.values())


def image_of(sample):
    """What tells images apart, also those of several data sets."""
    return os.path.realpath(sample["file_name"])


def is_bounded(total, counts, alpha, confidence=None):
    """Whether a threshold is admitted; see the head of this file.

    Args:
        total: S(t), the sum of losses over images, a Fraction.
        counts: Counter of the expressions concerned of each image.
        alpha: largest risk.
        confidence: None for conformal risk control.
    """
    # As written: in floating point 0.29 * 100 is less than 29.
    count, bound = len(counts), Fraction(str(alpha))
    if confidence is None:
        return total + 1 <= bound * (count + 1)
    delta = float(1 - Fraction(str(confidence)))
    if not count or total > bound * count:
        return False
    if set(counts.values()) == {1}:
        return bool(bdtr(int(total), count, alpha) <= delta)
    mean = float(total / count)
    entropy = rel_entr(mean, alpha) + rel_entr(1.0 - mean, 1.0 - alpha)
    bentkus = math.e * bdtr(math.ceil(total), count, alpha)
    return bool(min(math.exp(-count * entropy), bentkus) <= delta)


def fit_threshold(scores, is_no_target, images, risk, alpha, confidence=None):
    """The least strict threshold t of no_target_score >= t that is admitted.

    Args:
        scores: float (N,) in [0, 1].
        is_no_target: bool (N,), ground truth.
        images: N ids.
        risk: key of RISKS.
        alpha, confidence: see `is_bounded`.

    Raises:
        ValueError: there are too few images, or only saying "nothing matches" to all keeps it.
    """
    scores, falling = np.asarray(scores, np.float64), risk == "false-answers"
    concerned = np.flatnonzero(np.asarray(is_no_target, bool) == falling)
    # False answers have low scores; missed targets have high ones.
    values = scores if falling else -scores
    counts = Counter(images[i] for i in concerned)
    order = concerned[np.argsort(values[concerned], kind="stable")]
    total, last = Fraction(0), None
    for value, group in groupby(order, key=lambda i: values[i]):
        # What comes before this value goes wrong.
        if not is_bounded(total, counts, alpha, confidence):
            break
        last = float(value)
        total += sum(Fraction(1, counts[images[i]]) for i in group)
    if last is None:
        raise ValueError(
            f"{len(counts)} images have expressions that '{risk}' is about: too few for alpha "
            f"{alpha:g}" + ("" if confidence is None else f" with confidence {confidence:g}")
        )
    # The last value itself still goes right.
    threshold = last if falling else float(np.nextafter(-last, 2.0))
    if threshold <= 0.0:
        raise ValueError(f"no threshold keeps '{risk}' at {alpha:g}: too many scores are 0")
    return threshold


def check_splits(scores, is_no_target, images, risk, alpha, confidence, number, seed=0):
    """Fit on half of the images and measure on the other half, over and over.

    Returns:
        float (number, 4): risk of the held-out half, risk of all images, N_acc and T_acc of the
        held-out half, in percent.

    Raises:
        ValueError: a half has no such threshold.
    """
    generator, names = np.random.default_rng(seed), sorted(set(images))
    scores, is_no_target = np.asarray(scores, np.float64), np.asarray(is_no_target, bool)
    index = {name: i for i, name in enumerate(names)}
    places, rows = np.array([index[image] for image in images]), []
    for _ in range(number):
        chosen = np.zeros(len(names), bool)
        chosen[generator.permutation(len(names))[: len(names) // 2]] = True
        mine, rest = (np.flatnonzero(part) for part in (chosen[places], ~chosen[places]))
        drawn = (scores[mine], is_no_target[mine], places[mine])
        try:
            t = fit_threshold(*drawn, risk, alpha, confidence)
        except ValueError as error:
            raise ValueError(f"half of the images (the fit above stands): {error}") from error
        flags, truth = scores[rest] >= t, is_no_target[rest]
        rows.append(
            (
                risk_percent(flags, truth, places[rest], risk),
                risk_percent(scores >= t, is_no_target, places, risk),
                no_target_accuracy(truth, flags),
                target_accuracy(truth, flags),
            )
        )
    return np.array(rows)


def describe_splits(rows, alpha, confidence):
    """The table of `check_splits`, and what it says about the promise."""
    table = tabulate(
        np.percentile(rows, [0, 50, 100], axis=0).round(2).tolist()
        + [rows.mean(0).round(2).tolist()],
        headers=["", "risk, held out", "risk, all images", "N_acc", "T_acc"],
        showindex=["least", "median", "most", "mean"],
    )
    held, pooled = ((rows[:, k] > 100 * alpha).sum() for k in (0, 1))
    promise = f"mean <= {100 * alpha:g}"
    if confidence is not None:
        promise = f"above {100 * alpha:g} in at most {len(rows) * (1 - confidence):g}"
    return (
        f"{table}\n{len(rows)} splits, promised: {promise}. Found above {100 * alpha:g}: held-out "
        f"half in {held}, all images in {pooled}"
    )


def load(args, add_config=()):
    """(scores, is_no_target, images, {calibration set: hash}, {training set: hash})."""
    named = args.trained_on is not None
    names = [*args.dataset, *(args.trained_on or ())]
    cfg = setup_data(args.config_file, names, add_config=add_config)
    training = args.trained_on if named else cfg.DATASETS.TRAIN if args.config_file else ()
    check_registered(training)
    scores, is_no_target, images, own = [], [], [], {}
    for name, path in zip(args.dataset, args.predictions):
        samples = DatasetCatalog.get(name)
        own[name] = fingerprint(samples)
        scores += read_scores(samples, path, name)
        is_no_target += [not sample["annotations"] for sample in samples]
        images += map(image_of, samples)
    trained_on = {}
    for name in training:
        samples = DatasetCatalog.get(name)
        trained_on[name] = fingerprint(samples)
        shared = set(images) & set(map(image_of, samples))
        if shared:
            raise ValueError(
                f"{len(shared)} images are in '{name}', which the model was trained on, first "
                f"{min(shared)}: its scores there say nothing about new images"
            )
    return scores, is_no_target, images, own, trained_on


def fit(args, data):
    """The `Calibration` of a command line; `data` as `load` returns them."""
    scores, is_no_target, images, own, trained_on = data
    bounds = (args.risk, args.alpha, args.confidence)
    threshold = fit_threshold(scores, is_no_target, images, *bounds)
    flags = np.array(scores) >= threshold
    facts = {
        "method": "conformal risk control" if args.confidence is None else "Learn then Test",
        "images": len(set(images)),
        "expressions": len(scores),
        "expressions_without_target": sum(is_no_target),
        **{risk: risk_percent(flags, is_no_target, images, risk) for risk in RISKS},
        "N_acc": no_target_accuracy(is_no_target, flags),
        "T_acc": target_accuracy(is_no_target, flags),
        "AUROC": auroc(scores, is_no_target),
        "predictions_sha256": [file_sha256(path) for path in args.predictions],
    }
    return Calibration(threshold, *bounds, own, trained_on, facts)


def main(argv=None, add_config=()):
    """Print the fit; exit status 1 with one line of reason if there is none."""
    args = parse_args(argv)
    try:
        data = load(args, add_config)
        calibration = fit(args, data)
        if args.output:
            write_json(calibration.to_dict(), os.path.abspath(args.output), indent=2)
        facts = {k: v for k, v in calibration.facts.items() if k != "predictions_sha256"}
        rows = [(k, f"{v:.2f}" if isinstance(v, float) else v) for k, v in facts.items()]
        print(tabulate(rows, disable_numparse=True))
        print(printable(f"{calibration.guarantee}; {calibration.assumption}"))
        if not calibration.training_sets:
            print("not told what the model was trained on (--trained-on): that is not checked")
        if args.check_splits:
            bounds = (args.risk, args.alpha, args.confidence)
            rows = check_splits(*data[:3], *bounds, args.check_splits)
            print(describe_splits(rows, args.alpha, args.confidence))
    except (ValueError, OSError) as error:
        sys.exit(printable(f"cannot calibrate: {error}"))


if __name__ == "__main__":
    main()
