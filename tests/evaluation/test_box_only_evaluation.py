"""Targets with a box and no mask: in REC and GREC, and in no mask metric."""

import json
import math

import pytest

from igvg_d2.evaluation import GRefCOCOEvaluator, RefCOCOEvaluator, RefZOMEvaluator
from igvg_d2.evaluation.reporting import format_report
from igvg_d2.evaluation.scoring import score_file

LEFT, RIGHT = [0, 0, 10, 10], [20, 0, 30, 10]
PROTOCOLS = ("native", "official", "released")


@pytest.fixture
def case(make_sample, make_output, box_mask):
    """Samples with a mask, with a box only, and without target; outputs with the left box."""
    left = box_mask(LEFT)
    samples = [
        make_sample("1_0", [left], [[0, 0, 10, 10]]),
        make_sample("2_0", [None], [[0, 0, 10, 10]]),
        make_sample("3_0", [None], [[20, 0, 10, 10]]),
        make_sample("4_0", [], []),
    ]
    answer = make_output(left, False, [LEFT], [0.9], [left])
    nothing = make_output(box_mask(None), True, [LEFT], [0.1], [left])
    return samples, [answer, answer, answer, nothing]


def report_of(evaluator, samples, outputs):
    """Report of one pass."""
    evaluator.reset()
    evaluator.process([{"sample_id": s["sample_id"]} for s in samples], outputs)
    return evaluator.report(evaluator.records)


def test_mixed_data_by_hand(case, register):
    samples, outputs = case
    evaluator = GRefCOCOEvaluator(dataset_name=register(samples), protocols=PROTOCOLS)
    report = report_of(evaluator, samples, outputs)
    results = report["results"]
    # The right mask and the right refusal; of the boxes one of three is wrong.
    assert results["gres"]["gIoU"] == 100.0 and results["gres"]["cIoU"] == 100.0
    assert results["gres"]["Pr@0.7"] == 100.0 and results["gres"]["gIoU_1"] == 100.0
    assert (results["gres"]["N_acc"], results["gres"]["T_acc"]) == (100.0, 100.0)
    assert results["grec"]["F1score"] == 75.0
    assert results["instance"]["mask_AP50"] == pytest.approx(100.0)
    assert 0 < results["instance"]["box_AP50"] < 100.0
    for name in PROTOCOLS[1:]:
        assert results[f"gres_{name}"]["gIoU"] == 100.0
    assert report["num_without_masks"] == 2 and [r["iou"] for r in evaluator.records][1] is None
    text = format_report(report)
    assert "2 samples have a target without mask" in text and "mask metrics leave" in text
    assert report["breakdown"]["95% interval"]["gIoU"]["low"] == 100.0


def test_boxes_only_have_no_mask_metric(case, register):
    samples, outputs = case[0][1:], case[1][1:]
    evaluator = GRefCOCOEvaluator(dataset_name=register(samples))
    results = report_of(evaluator, samples, outputs)["results"]
    # The refusal alone would make a gIoU of 100.
    for task, key in (("gres", "gIoU"), ("gres", "cIoU"), ("instance", "mask_AP")):
        assert math.isnan(results[task][key])
    assert results["grec"]["F1score"] == pytest.approx(200 / 3)
    assert results["gres"]["N_acc"] == 100.0 and results["gres"]["T_acc"] == 100.0


def test_boxes_alone_show_what_they_hallucinate(case, register, tmp_path):
    """Which the missing masks do not: they would say 0."""
    path, samples = tmp_path / "predictions.jsonl", case[0][1:]
    samples[-1].update(kind="negative", absent_kind="absent")
    lines = [{"sample_id": s["sample_id"], "boxes": [LEFT], "scores": [0.9]} for s in samples]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluator = GRefCOCOEvaluator(dataset_name=register(samples))
    evaluator.reset()
    score_file(evaluator, str(path))
    report = evaluator.report(evaluator.records)
    gres, grec = (report["results"][task] for task in ("gres", "grec"))
    assert grec["hallucination"] == grec["hallucination_absent"] == 100.0
    assert math.isnan(gres["hallucination"]) and math.isnan(gres["hallucination_absent"])
    assert math.isnan(report["breakdown"]["kind"]["negative"]["gIoU"])


def test_classic_rec_of_boxes(case, register):
    samples, outputs = case[0][:3], case[1][:3]
    evaluator = RefCOCOEvaluator(dataset_name=register(samples), protocols=PROTOCOLS)
    results = report_of(evaluator, samples, outputs)["results"]
    assert results["rec"]["Acc@0.5"] == pytest.approx(200 / 3)
    for task in ("res", "res_official", "res_union_gt_official", "res_released"):
        assert results[task]["mIoU"] == 100.0, task


def test_benchmarks_of_masks_refuse_boxes(case, register):
    samples, outputs = case
    evaluator = RefZOMEvaluator(dataset_name=register(samples))
    with pytest.raises(ValueError, match="sample '2_0': this benchmark needs the masks"):
        report_of(evaluator, samples, outputs)


def test_predictions_need_a_mask_only_where_the_data_have_one(case, register, tmp_path):
    path = tmp_path / "predictions.jsonl"
    lines = [
        {"sample_id": "2_0", "boxes": [LEFT], "scores": [0.9]},
        {"sample_id": "3_0", "boxes": [RIGHT], "scores": [0.9]},
        {"sample_id": "4_0", "boxes": [], "scores": []},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluator = GRefCOCOEvaluator(dataset_name=register(case[0][1:]))
    evaluator.reset()
    problems, with_boxes = score_file(evaluator, str(path))
    assert not any(problems.values()) and with_boxes
    results = evaluator.report(evaluator.records)["results"]
    assert results["grec"]["F1score"] == 100.0
    assert results["gres"]["N_acc"] == 100.0 and results["gres"]["T_acc"] == 100.0
    assert results["instance"]["decision_agreement"] == 100.0
    evaluator = GRefCOCOEvaluator(dataset_name=register(case[0]))
    evaluator.reset()
    problems, _ = score_file(evaluator, str(path))
    assert len(problems["unusable"]) == 3 and "no 'mask'" in problems["unusable"][0][1]
