"""The no-target score over thresholds, and bootstrap intervals, by hand."""

import numpy as np
import pytest

from igvg_d2.evaluation.bootstrap import bootstrap_intervals
from igvg_d2.evaluation.calibration import auroc, threshold_table
from igvg_d2.evaluation.instance_evaluation import summarize_sets


def test_set_metrics_by_hand():
    # The second sample has a mask but no box, the others decide alike by flag, mask and boxes.
    rows = [(2, 1, 1, False, 9), (0, 0, 2, True, 9), (0, 0, 0, True, 0)]
    keys = ("num_kept", "num_matched", "num_targets", "pred_no_target", "pred_area")
    records = [dict(zip(keys, row)) for row in rows]
    results = summarize_sets(records)
    assert np.isnan(results.pop("recall_3plus")) and np.isnan(summarize_sets([])["F1"])
    assert results == pytest.approx(
        {
            "F1": 40.0,
            "precision": 50.0,
            "recall": 100 / 3,
            "count_acc": 100 / 3,
            "decision_agreement": 200 / 3,
            "recall_1": 100.0,
            "recall_2": 0.0,
        }
    )


def test_auroc_counts_pairs():
    # Positives 0.9 and 0.5 against negatives 0.5 and 0.1: won, won, tied, won.
    assert auroc([0.9, 0.5, 0.5, 0.1], [True, True, False, False]) == pytest.approx(87.5)
    assert auroc([0.2, 0.8], [True, False]) == 0.0
    assert np.isnan(auroc([0.2, 0.8], [True, True])) and np.isnan(auroc([], []))


def test_auroc_is_the_area_of_the_plain_curve():
    generator = np.random.default_rng(0)
    positive = generator.random(200) < 0.3
    scores = np.round(generator.random(200) + 0.4 * positive, 2)
    pairs = scores[positive][:, None] - scores[~positive][None]
    expected = 100 * ((pairs > 0).mean() + 0.5 * (pairs == 0).mean())
    assert auroc(scores, positive) == pytest.approx(expected)


def test_threshold_table_includes_the_threshold():
    table = threshold_table([0.5, 0.45, 0.2], [True, True, False])
    assert table["0.5"] == {"N_acc": 50.0, "T_acc": 100.0}
    assert table["0.1"] == {"N_acc": 100.0, "T_acc": 0.0}


def test_intervals_cover_the_mean_and_shrink_with_the_data():
    generator = np.random.default_rng(1)
    widths = []
    for count in (200, 3200):
        values = generator.random(count) < 0.4
        ratios = {"mean": (values, np.ones(count))}
        limits = bootstrap_intervals(ratios, list(range(count)))["mean"]
        assert limits["low"] < 100 * values.mean() < limits["high"]
        normal = 2 * 1.96 * 100 * (values.std() / count**0.5)
        assert limits["high"] - limits["low"] == pytest.approx(normal, rel=0.15)
        widths.append(limits["high"] - limits["low"])
    assert widths[0] > 3 * widths[1]


def test_samples_of_an_image_are_drawn_together():
    values = np.repeat(np.random.default_rng(0).random(100) < 0.5, 10)
    ones = np.ones(1000)
    alone = bootstrap_intervals({"x": (values, ones)}, list(range(1000)))["x"]
    together = bootstrap_intervals({"x": (values, ones)}, [i // 10 for i in range(1000)])["x"]
    assert together["high"] - together["low"] > 2 * (alone["high"] - alone["low"])


def test_intervals_do_not_depend_on_order_and_may_be_undefined():
    generator = np.random.default_rng(2)
    values, ones, clusters = generator.random(60), np.ones(60), [i % 20 for i in range(60)]
    first = bootstrap_intervals({"x": (values, ones)}, clusters)
    again = bootstrap_intervals({"x": (values[::-1], ones)}, clusters[::-1])
    assert first["x"] == pytest.approx(again["x"])
    nothing = bootstrap_intervals({"x": (ones * 0, ones * 0)}, clusters)["x"]
    assert np.isnan(nothing["low"]) and np.isnan(nothing["high"])
