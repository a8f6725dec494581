"""Ref-L4 and OpenRef by hand."""

import pytest

from igvg_d2.engine import setup_config
from igvg_d2.evaluation import build_grounding_evaluator


@pytest.fixture
def report_of(register, make_output, box_mask):
    """Callable: evaluator type, samples, (boxes, scores) of each -> results."""

    def _report_of(evaluator_type, samples, answers, size):
        name = register(samples, evaluator_type)
        evaluator = build_grounding_evaluator(setup_config(), name)
        evaluator.reset()
        mask = box_mask(None, size)
        outputs = [make_output(mask, not boxes, boxes, scores) for boxes, scores in answers]
        evaluator.process([{"sample_id": s["sample_id"]} for s in samples], outputs)
        return evaluator.report(evaluator.records)["results"]

    return _report_of


def test_ref_l4(make_sample, report_of):
    size = (400, 400)
    boxes = [[0, 0, 100, 100], [0, 0, 128, 128], [0, 0, 256, 256], [0, 0, 300, 300]]
    samples = [make_sample(f"{i}_0", [None], [box], size) for i, box in enumerate(boxes)]
    # IoU 0.5 is no hit; the candidate that counts is the one of the highest score.
    answers = [
        ([[0, 0, 100, 50]], [0.9]),
        ([[0, 0, 128, 128], [0, 0, 9, 9]], [0.9, 0.2]),
        ([[0, 0, 256, 204.8]], [0.9]),
        ([], []),
    ]
    found = report_of("ref_l4", samples, answers, size)["ref_l4"]
    assert found["Acc@0.5"] == 50.0 and found["Acc@0.75"] == 50.0 and found["Acc@0.9"] == 25.0
    # 1.0 passes 10 thresholds and 0.8 passes 0.5 ... 0.75.
    assert found["mAcc"] == pytest.approx(100 * 16 / 40, abs=2.5)
    assert (found["small_Acc@0.5"], found["medium_Acc@0.5"], found["large_Acc@0.5"]) == (0, 100, 0)
    assert found["large_mAcc"] == 0.0 and found["small_mAcc"] == 0.0


def test_openref(make_sample, report_of):
    size, left, right = (20, 40), [0, 0, 10, 10], [20, 0, 30, 10]
    samples = [
        make_sample("0_0", [None, None], [[0, 0, 10, 10], [20, 0, 10, 10]], size, kind="multi"),
        make_sample("1_0", [None], [[0, 0, 10, 10]], size, kind="single"),
        make_sample("2_1", [], [], size, kind="none"),
        make_sample("3_1", [], [], size, kind="negative"),
        make_sample("4_1", [], [], size, kind="negative"),
    ]
    answers = [
        ([left, [0, 15, 5, 20]], [0.75, 0.75]),  # one of two, and a wrong one: F1 1/2
        ([left, right], [0.75, 0.5]),  # the second is not kept: F1 1
        ([left], [0.5]),
        ([left, right], [0.75, 0.875]),
        ([], []),
    ]
    results = report_of("openref", samples, answers, size)
    found = results["openref"]
    assert found["F1"] == 75.0 and found["F1_micro"] == pytest.approx(100 * 4 / 6)
    assert found["NSR_absolute"] == 100.0 and found["NSR_relative"] == 50.0
    assert found["N3R_relative"] == pytest.approx(100 * (0.25 * 0.125 + 1) / 2)
    assert found["NSR"] == pytest.approx(200 / 3) and found["N3R_absolute"] == 100.0
    assert results["grec"]["F1score"] == 60.0
