"""Hand-worked tables of every metric function."""

import math

import numpy as np
import pytest

from igvg_d2.evaluation import metrics
from igvg_d2.io.rle import mask_to_rle


def test_pixels_are_counted():
    pred, gt = np.zeros((4, 6), bool), np.zeros((4, 6), bool)
    pred[:2], gt[1:, :3] = True, True  # 12 and 9 pixels, 3 in common
    assert metrics.count_pixels(pred, gt) == [3, 18, 12, 9]
    with pytest.raises(ValueError, match="one shape"):
        metrics.count_pixels(pred, gt.T)
    with pytest.raises(ValueError, match="one shape"):
        metrics.count_pixels(pred, mask_to_rle(gt.T))


@pytest.mark.parametrize("order", ["C", "F"])
def test_pixels_of_rles_are_those_of_masks(order):
    rng = np.random.default_rng(0)
    for density in (0.0, 0.05, 0.5, 1.0):
        pred, gt = rng.random((2, 19, 23)) < np.array([0.4, density])[:, None, None]
        pred = np.asarray(pred, order=order)
        # Of every form, with both corners set and not.
        for corner in (False, True):
            pred[0, 0] = gt[-1, -1] = pred[-1, -1] = corner
            expected = [(pred & gt).sum(), (pred | gt).sum(), pred.sum(), gt.sum()]
            for first in (pred, mask_to_rle(pred)):
                for second in (gt, mask_to_rle(gt)):
                    assert metrics.count_pixels(first, second) == expected


def test_gres_rules_row_by_row():
    # no target: rejected with a full mask, missed with 7 px, missed with an empty mask;
    # target: 30/40, flagged 30/40, empty ground truth and empty mask
    gt_none = [True, True, True, False, False, False]
    flagged = [True, False, False, False, True, False]
    counts = metrics.gres_counts([0, 0, 0, 30, 30, 0], [99, 7, 0, 40, 40, 0], gt_none, flagged)
    np.testing.assert_array_equal(counts[0], [0, 0, 0, 30, 0, 0])
    np.testing.assert_array_equal(counts[1], [0, 7, 0, 40, 40, 0])
    np.testing.assert_array_equal(counts[2], [1, 0, 0, 0.75, 0, 0])
    assert metrics.mean_percent(counts[2]) == pytest.approx(100 * 1.75 / 6)
    assert metrics.overall_iou(counts[0], counts[1]) == pytest.approx(100 * 30 / 87)
    assert metrics.no_target_accuracy(gt_none, flagged) == pytest.approx(100 / 3)
    assert metrics.target_accuracy(gt_none, flagged) == pytest.approx(200 / 3)


def test_thresholds_are_inclusive():
    ious = metrics.iou_ratio([70, 80, 90, 69], [100, 100, 100, 100])
    assert [metrics.precision_at(ious, t) for t in (0.7, 0.8, 0.9)] == [75.0, 50.0, 25.0]


def test_undefined_rates_are_nan():
    assert math.isnan(metrics.mean_percent([]))
    assert math.isnan(metrics.overall_iou([], []))
    assert math.isnan(metrics.overall_iou([0], [0]))
    assert math.isnan(metrics.no_target_accuracy([False], [False]))
    assert math.isnan(metrics.target_accuracy([True], [True]))
    assert math.isnan(metrics.precision_at([], 0.7))
    assert math.isnan(metrics.cover_accuracy([0], [0]))


def test_cardinality_groups():
    values, targets = [1, 0, 0.5, 0.25, 0.75], [0, 1, 1, 3, 7]
    groups = metrics.by_cardinality(values, targets)
    assert groups["0"] == 100 and groups["1"] == 25 and groups["3plus"] == 50
    assert math.isnan(groups["2"])
    assert metrics.count_by_cardinality(targets) == {"0": 1, "1": 2, "2": 0, "3plus": 2}


def test_generalized_iou_hand_cases():
    gt = [[0, 0, 10, 10]]
    shifted = metrics.generalized_iou_scores([[2, 0, 12, 10]], gt)[0, 0]
    assert shifted == pytest.approx(80 / 120)  # hull = union
    diagonal = metrics.generalized_iou_scores([[2, 1.5, 12, 11.5]], gt)[0, 0]
    iou, hull = 68 / 132, 12 * 11.5
    assert iou > 0.5 > diagonal and diagonal == pytest.approx(iou - (hull - 132) / hull)
    apart = metrics.generalized_iou_scores([[20, 0, 30, 10]], gt)[0, 0]
    assert apart == pytest.approx(-1 / 3)
    assert metrics.generalized_iou_scores([[3, 3, 3, 3]], [[3, 3, 3, 3]])[0, 0] == 0
    assert metrics.generalized_iou_scores(np.zeros((0, 4)), gt).shape == (0, 1)
    for bad in ([10, 0, 0, 10], [0, 0, float("nan"), 1]):
        with pytest.raises(ValueError, match="x1 <= x2"):
            metrics.generalized_iou_scores([bad], gt)


def test_matching_is_greedy_not_optimal():
    # optimal: 0.8 + 0.6; greedy takes 0.9 first and is left with 0.1
    assert metrics.greedy_match_count(np.array([[0.9, 0.6], [0.8, 0.1]]), 0.5) == 1
    assert metrics.greedy_match_count(np.array([[0.9, 0.1], [0.6, 0.5]]), 0.5) == 2
    assert metrics.greedy_match_count(np.zeros((0, 3)), 0.5) == 0


def test_grec_f1_table():
    gt = np.array([[0, 0, 10, 10], [20, 0, 30, 10]])
    both = [[20, 0, 30, 10], [0, 0, 10, 10]]
    assert metrics.grec_f1(both, [0.8, 0.7], gt) == (1.0, 2, 2)
    assert metrics.grec_f1(both, [0.8, 0.69], gt) == (2 / 3, 1, 1)
    assert metrics.grec_f1(both[:1] * 2, [0.8, 0.8], gt) == (0.5, 2, 1)  # a duplicate is a FP
    assert metrics.grec_f1([], [], gt) == (0.0, 0, 0)
    none = np.zeros((0, 4))
    assert metrics.grec_f1(both, [0.69, 0.1], none) == (1.0, 0, 0)
    assert metrics.grec_f1(both, [0.7, 0.1], none) == (0.0, 1, 0)
    assert metrics.grec_f1([], [], none) == (1.0, 0, 0)


def test_float32_score_at_the_threshold_is_dropped():
    gt = np.array([[0, 0, 10, 10]])
    assert metrics.grec_f1(gt, np.array([0.7], dtype=np.float32), gt)[1] == 0
    assert metrics.grec_f1(gt, [0.7], gt)[1] == 1


@pytest.mark.parametrize("far", [1e16, 1e19, 1e20, 3e38, 1e200, math.inf, math.nan])
@pytest.mark.parametrize("measure", [metrics.pairwise_box_iou, metrics.generalized_iou_scores])
def test_boxes_whose_areas_overflow_are_refused(measure, far):
    usual, giant = np.array([[0.0, 0, 10, 10]]), np.array([[-far, -far, far, far]])
    for boxes in ((usual, giant), (giant, usual)):
        with pytest.raises(ValueError, match=r"numbers up to 1e\+15, got \["), np.errstate(
            all="ignore"
        ):
            measure(*boxes)
    largest = np.array([[-1e15, -1e15, 1e15, 1e15]])
    assert measure(usual, largest).item() < 1e-9 and measure(largest, usual).item() < 1e-9


def test_an_undefined_overlap_is_no_match():
    assert metrics.greedy_match_count(np.array([[math.nan, 0.9]]), 0.5) == 0


def test_cover_accuracy_by_hand():
    boxes = [[0, 0, 10, 10], [20, 20, 30, 30], [5, 5, 12, 12]]
    # (10, 10) is on the edge of the first box and inside the third; nothing in the second
    assert metrics.num_covered_boxes([[10, 10], [15, 3]], boxes) == 2
    assert metrics.num_covered_boxes([[15, 3]], boxes) == 0
    assert metrics.num_covered_boxes(np.zeros((0, 2)), boxes) == 0
    # (2/3 + 1/1) / 2: by sample, not by box; the no-target sample is left out
    assert metrics.cover_accuracy([2, 0, 1], [3, 0, 1]) == pytest.approx(100 * (2 / 3 + 1) / 2)
