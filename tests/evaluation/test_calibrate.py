"""Thresholds with a guarantee: by hand, on scores that are drawn, on files, and on other data."""

import json
import math
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from igvg_d2.evaluation import Calibration, GRefCOCOEvaluator, read_calibration
from igvg_d2.evaluation.calibration import risk_percent
from igvg_d2.evaluation.predictions import output_to_prediction
from igvg_d2.evaluation.scoring import warn_of_empty_targets
from tests.scripts import load_script

ROOT = Path(__file__).resolve().parents[2]
FIELDS = (0.3, "false-answers", 0.1, 0.9, {"my_val": "a1"}, {"my_train": "b2"}, {"N_acc": 95.0})


calibrate, scorer = (load_script(f"tools/{x}.py") for x in ("calibrate", "score_predictions"))
# Of the shipped model, split -> number of expressions per image; no-target scores; and a letter for
# each expression: t with a target, a absent, l look-alike, a capital if it is answered.
SHAPES = json.loads(Path(__file__).with_name("shapes_tiny_scores.json").read_text())


def shapes_tiny(*splits):
    """Scores, is no target and image of each expression."""
    parts = [SHAPES[split] for split in splits]
    scores = np.concatenate([np.array(part["millionths"]) / 1e6 for part in parts])
    truth = np.array([letter not in "tT" for part in parts for letter in part["answers"]])
    sizes = [int(digit) for part in parts for digit in part["expressions_per_image"]]
    return scores, truth, np.repeat(np.arange(len(sizes)), sizes)


def test_conformal_risk_control_by_hand():
    # Ten images: (S + 1) / 11 <= 0.3 for S <= 2.3, so two of them may go wrong.
    scores = np.arange(1, 11) / 16
    nothing, images = np.ones(10, bool), list(range(10))
    assert calibrate.fit_threshold(scores, nothing, images, "false-answers", 0.3) == 3 / 16
    # Of missed targets it is the two highest scores: the threshold lies just above the third.
    found = calibrate.fit_threshold(scores, ~nothing, images, "missed-targets", 0.3)
    assert found == np.nextafter(8 / 16, 1) and (scores >= found).sum() == 2
    # All expressions in two images of five: (2/5 + 1) / 3 <= 0.5, and 3/5 is too much.
    found = calibrate.fit_threshold(scores, nothing, [i % 2 for i in images], "false-answers", 0.5)
    assert found == 3 / 16


def test_learn_then_test_by_hand():
    # P[Bin(22, 0.1) = 0] = 0.9**22 = 0.0985 admits no error, 21 images admit nothing.
    for count, admitted in ((22, True), (21, False)):
        single = {i: 1 for i in range(count)}
        assert calibrate.is_bounded(Fraction(0), single, 0.1, 0.9) is admitted
    # P[Bin(40, 0.1) <= 1] = 0.9**40 + 40 * 0.1 * 0.9**39 = 0.0805; with 2 it is 0.223.
    single = {i: 1 for i in range(40)}
    assert calibrate.is_bounded(Fraction(1), single, 0.1, 0.9)
    assert not calibrate.is_bounded(Fraction(2), single, 0.1, 0.9)
    # Losses between 0 and 1, 50 images: e * 0.9**50 = 0.014 by Bentkus; Hoeffding's has S = 0, too.
    several = {i: 2 for i in range(50)}
    assert calibrate.is_bounded(Fraction(0), several, 0.1, 0.9)
    cdf = sum(math.comb(50, k) * 0.1**k * 0.9 ** (50 - k) for k in range(2))
    assert math.e * cdf < 0.1 and calibrate.is_bounded(Fraction(1, 2), several, 0.1, 0.9)
    assert not calibrate.is_bounded(Fraction(2), several, 0.1, 0.9)
    # 0.29 * 100 is below 29 in floating point; the bound is what was written.
    assert calibrate.is_bounded(Fraction(28), {i: 1 for i in range(99)}, 0.29)


def test_the_risk_is_a_mean_over_images():
    flags, truth = [False, True, False, True], [True, True, True, False]
    assert risk_percent(flags, truth, "aabb", "false-answers") == 75.0
    assert risk_percent(flags, truth, "aabb", "missed-targets") == 100.0
    assert math.isnan(risk_percent(flags, [False] * 4, "aabb", "false-answers"))


@pytest.mark.parametrize("risk", ["false-answers", "missed-targets"])
def test_what_cannot_be_promised_is_refused(risk):
    truth = np.array([True, False])
    with pytest.raises(ValueError, match=f"1 images .*'{risk}'.* too few for alpha 0.1$"):
        calibrate.fit_threshold([0.2, 0.4], truth, [1, 2], risk, 0.1)
    with pytest.raises(ValueError, match="too few for alpha 0.1 with confidence 0.9"):
        calibrate.fit_threshold([0.2, 0.4], truth, [1, 2], risk, 0.1, 0.9)


def test_scores_of_zero_leave_no_threshold():
    with pytest.raises(ValueError, match="too many scores are 0"):
        calibrate.fit_threshold([0.0] * 20, [True] * 20, range(20), "false-answers", 0.1)
    # Nothing need be refused where nothing may be missed: the next number above 1.
    found = calibrate.fit_threshold([1.0] * 20, [False] * 20, range(20), "missed-targets", 0.06)
    assert found == np.nextafter(1.0, 2.0)


@pytest.mark.parametrize("confidence", [None, 0.9])
@pytest.mark.parametrize("risk", ["false-answers", "missed-targets"])
def test_the_promise_holds_where_the_risk_is_known(risk, confidence):
    """Scores uniform in [0, 1], two expressions of an image alike: the risk of t is known."""
    generator, exceeded, risks = np.random.default_rng(0), 0, []
    truth = np.full(240, risk == "false-answers")
    images = np.arange(240) // 2
    for _ in range(200):
        scores = np.repeat(generator.random(120), 2)
        scores = np.clip(scores + 0.02 * generator.random(240), 0.0, 1.0)
        t = calibrate.fit_threshold(scores, truth, images, risk, 0.1, confidence)
        fresh = np.clip(np.linspace(0, 1, 2001)[:, None] + 0.02 * np.linspace(0, 1, 21), 0, 1)
        risks.append(((fresh < t) if risk == "false-answers" else (fresh >= t)).mean())
        exceeded += risks[-1] > 0.1
    # Monte Carlo error of the mean: 0.03 / sqrt(200).
    assert np.mean(risks) <= 0.1 + 2 * 0.002 and np.mean(risks) > 0.05
    assert confidence is None or exceeded <= 20


@pytest.mark.parametrize("split", SHAPES)
def test_model_zoo_prints_hallucination_rates(split):
    letters = Counter(SHAPES[split]["answers"])

    def rate(kinds):
        answered, rest = (sum(letters[x] for x in part) for part in (kinds.upper(), kinds))
        return f"{100 * answered / (answered + rest):.1f} of {answered + rest}"

    row = f"| {split} | {rate('t')} | {rate('al')} | {rate('a')} | {rate('l')} |"
    assert row in (ROOT / "MODEL_ZOO.md").read_text()


@pytest.mark.parametrize(
    "risk, alpha, confidence",
    [
        *(("false-answers", 0.05, confidence) for confidence in (None, 0.9)),
        *(("false-answers", 0.1, confidence) for confidence in (None, 0.9)),
        *(("missed-targets", 0.05, confidence) for confidence in (None, 0.9)),
    ],
)
def test_the_promise_on_200_splits_of_shapes(risk, alpha, confidence):
    """As MODEL_ZOO.md prints it, and beside it what happens on testB."""
    bounds = (risk, alpha, confidence)
    rows = calibrate.check_splits(*shapes_tiny("val", "testA"), *bounds, 200)
    mean, above = rows[:, 0].mean(), int((rows[:, 0] > 100 * alpha).sum())
    assert mean <= 100 * alpha and (confidence is None or above <= 200 * 0.1)
    t = calibrate.fit_threshold(*shapes_tiny("val", "testA"), *bounds)
    scores, truth, images = shapes_tiny("testB")
    on_b = risk_percent(scores >= t, truth, images, risk)
    promise = "on average" if confidence is None else "in 9 of 10 sets"
    n_acc, t_acc = rows[:, 2:].mean(0)
    row = f"| {risk} | {100 * alpha:g}, {promise} | {mean:.2f} | {above} | {n_acc:.1f} |"
    assert f"{row} {t_acc:.1f} | {on_b:.2f} |" in (ROOT / "MODEL_ZOO.md").read_text()


@pytest.fixture
def case(make_sample, make_output, box_mask, register, tmp_path):
    """Callable (number) -> arguments for a data set of as many images and its predictions.

    The first half has a target; by its own flag the model takes everything for one, and its score,
    ascending, knows better.
    """

    def make(number, folder="images", **changes):
        mask, lines, samples = box_mask((2, 3, 12, 13)), [], []
        for i in range(number):
            has = i < number // 2
            samples.append(make_sample(f"{i}_0", [mask] * has, [[2, 3, 10, 10]] * has))
            samples[-1].update(file_name=f"{folder}/{i}.jpg")
            output = make_output(mask, False, [[2, 3, 12, 13]], [0.9])
            output["no_target_score"] = (i + 1) / (number + 1)
            lines.append({**output_to_prediction(output, samples[-1]), **changes})
        name = register(samples)
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, lines)))
        return ["--dataset", name, "--predictions", str(path)]

    return make


def test_fit_then_apply(case, tmp_path, capsys):
    fitted, report = tmp_path / "c.json", tmp_path / "r.json"
    calibrate.main([*case(60), "--alpha", "0.1", "--output", str(fitted)])
    printed = " ".join(capsys.readouterr().out.split())
    # 30 images without target, 31 * 0.1 = 3.1: two of them may be answered.
    assert "on average over calibration sets, at most 10 % of expressions without" in printed
    assert "not told what the model was trained on" in printed
    calibration = read_calibration(str(fitted))
    assert calibration.no_target_threshold == 33 / 61 and calibration.confidence is None
    assert calibration.facts["false-answers"] == pytest.approx(100 * 2 / 30)
    assert calibration.facts["N_acc"] == pytest.approx(100 * 28 / 30)
    assert json.loads(fitted.read_text())["guarantee"] == calibration.guarantee
    scorer.main([*case(8, "others"), "--calibration", str(fitted), "--output", str(report)])
    assert f"calibrated: {calibration.guarantee}; {calibration.assumption}" in (
        capsys.readouterr().out
    )
    results = json.loads(report.read_text())["protocols"]["native"]["results"]
    # Scores 5/9 ... 8/9 are above 33/61 = 0.54.
    assert (results["gres"]["N_acc"], results["gres_calibrated"]["N_acc"]) == (0.0, 100.0)
    assert (results["gres"]["gIoU"], results["gres_calibrated"]["gIoU"]) == (50.0, 100.0)
    assert (results["grec"]["F1score"], results["grec_calibrated"]["F1score"]) == (50.0, 100.0)
    assert results["gres"]["hallucination"] == results["grec"]["hallucination"] == 100.0
    assert results["gres_calibrated"]["hallucination"] == 0.0
    found = {"false_answers": 0.0, "alpha": 10.0, "N_acc": 100.0, "T_acc": 100.0}
    assert results["calibrated"] == found


def test_its_own_data_are_refused(case, tmp_path):
    fitted, data, training = str(tmp_path / "c.json"), case(60), case(40, "trained")
    trained_on = ["--trained-on", training[1]]
    calibrate.main([*data, "--alpha", "0.1", "--output", fitted, *trained_on])
    for own in (data, training):
        with pytest.raises(SystemExit, match=f"data set '{own[1]}' has the hash of '{own[1]}'"):
            scorer.main([*own, "--calibration", fitted])
    with pytest.raises(SystemExit, match="60 images are in .* the model was trained on"):
        calibrate.main([*data, "--alpha", "0.1", "--trained-on", data[1]])
    with pytest.raises(SystemExit, match="cannot calibrate: no data set 'nowhere'"):
        calibrate.main([*data, "--alpha", "0.1", "--trained-on", "nowhere"])
    config = tmp_path / "my.yaml"
    config.write_text("DATASETS: {TRAIN: ['nowhere']}")
    with pytest.raises(SystemExit, match="cannot calibrate: no data set 'nowhere'"):
        calibrate.main([*data, "--alpha", "0.1", "--config-file", str(config)])


def test_data_sets_are_taken_together_and_splits_are_shown(case, capsys):
    parts = [case(40), case(40, "more")]
    args = [[part[k] for part in parts] for k in (1, 3)]
    calibrate.main(
        ["--dataset", *args[0], "--predictions", *args[1], "--alpha", "0.2", "--check-splits", "5"]
    )
    printed = capsys.readouterr().out
    assert "5 splits, promised: mean <= 20. Found above 20: held-out half in" in printed
    with pytest.raises(SystemExit, match="2"):
        calibrate.main(["--dataset", "a", "b", "--predictions", "p", "--alpha", "0.2"])


def test_options_that_mean_nothing_are_refused(case, capsys):
    args = [*case(8), "--alpha", "0.2"]
    for wrong, words in (
        (["--check-splits", "-1"], "--check-splits: expected 0 or more, found -1"),
        (["--dataset", "a", "a", "--predictions", "p", "p"], "--dataset: expected every name once"),
        (["--confidence", "high"], "expected a number between 0 and 1, found high"),
    ):
        with pytest.raises(SystemExit, match="2"):
            calibrate.main([*args, *wrong])
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"half of the images \(the fit above stands\): \d images"):
        calibrate.main([*args, "--check-splits", "3"])
    assert "no_target_score >= " in capsys.readouterr().out


def test_scores_of_all_samples_are_needed(case, tmp_path):
    args = case(4)
    lines = Path(args[3]).read_text().splitlines()
    other = tmp_path / "other.jsonl"
    for text, reason in (
        ("\n".join(lines[1:]), "1 of 4 samples of .* are missing, first .'0_0'"),
        ("\n".join([*lines, lines[0]]), "'0_0' is twice"),
        ("\n".join([*lines, lines[0].replace("0_0", "9_9")]), "'9_9' is not in data set"),
        ("\n".join(lines).replace("no_target_score", "score"), "needs a 'no_target_score' in"),
        (lines[0].replace("0.2", '"' + "9" * 999 + '"'), r"in \[0, 1\], found '9{9,19}\.\.\.9+'$"),
    ):
        other.write_text(text)
        with pytest.raises(SystemExit, match=f"cannot calibrate: .*{reason}"):
            calibrate.main([*args[:3], str(other), "--alpha", "0.5"])


def test_predictions_without_scores_cannot_be_calibrated(case, tmp_path):
    fitted = tmp_path / "c.json"
    fitted.write_text(json.dumps(Calibration(*FIELDS).to_dict()))
    args = [*case(6, no_target_score=None), "--calibration", str(fitted)]
    with pytest.raises(SystemExit, match="needs 'no_target_score' of every sample: 6 of 6"):
        scorer.main(args)
    fitted.write_text("{}")
    with pytest.raises(SystemExit, match="cannot score: calibration file .*no JSON object with"):
        scorer.main(args)


def test_a_file_read_again_is_the_same(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(Calibration(*FIELDS).to_dict()))
    assert read_calibration(str(path)) == Calibration(*FIELDS)
    assert "with confidence 90 % over the calibration set, at most 10 %" in (
        read_calibration(str(path)).guarantee
    )


DAMAGES = [
    *({"no_target_threshold": x} for x in (0, -1, 1.1, math.nan, math.inf, None, True, "0.3")),
    *({"alpha": x} for x in (0.0, 1.0, math.nan, 1, "0.1", None)),
    *({"confidence": x} for x in (0.0, 2.0, [0.9])),
    *({"risk": x} for x in ("all", ["false-answers"], None)),
    *({"calibration_sets": x} for x in ({}, None, {"a": 1}, ["a"])),
    *({"training_sets": x} for x in (None, {"a": None})),
    *({"facts": []}, {"format": "other"}, {"version": 2}, {"version": {}}),
]


@pytest.mark.parametrize("change", DAMAGES, ids=str)
def test_what_is_no_calibration_is_refused(tmp_path, change):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({**Calibration(*FIELDS).to_dict(), **change}))
    with pytest.raises(ValueError, match=f"^calibration file {path}: "):
        read_calibration(str(path))


@pytest.mark.parametrize("text", ["", "[]", "{", "\ufffe", "[" * 100_000, '{"a": 1, "a": 2}'])
def test_damaged_files_are_named(tmp_path, text):
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^calibration file {path}: "):
        read_calibration(str(path))


def test_a_target_without_area_is_named(make_sample, register, caplog):
    empty = np.zeros((20, 30), bool)
    name = register([make_sample("4_1", [empty], [[2, 3, 10, 10]]), make_sample("5_1", [], [])])
    warn_of_empty_targets(GRefCOCOEvaluator(dataset_name=name))
    assert "1 samples have a target without area" in caplog.text and "['4_1']" in caplog.text
