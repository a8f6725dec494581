"""The evaluators as the trainer uses them: look-up, gathering, files, selection."""

import json
import math

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.evaluation import print_csv_format
from detectron2.structures import Boxes

from igvg_d2.config import add_igvg_config
from igvg_d2.evaluation import (
    GRefCOCOEvaluator,
    GroundingEvaluator,
    GroundTruth,
    RefCOCOEvaluator,
    build_grounding_evaluator,
    merge_records,
)

LEFT, RIGHT = [0, 0, 10, 10], [20, 0, 30, 10]


@pytest.fixture
def case(register, make_sample, make_output, box_mask):
    """Four samples with 0, 0, 1 and 2 targets and plausible outputs; (name, inputs, outputs)."""
    left, right, both = box_mask(LEFT), box_mask(RIGHT), box_mask(LEFT) | box_mask(RIGHT)
    samples = [
        make_sample("1_0", [], [], kind="absent", absent_kind="absent"),
        make_sample("1_1", [], [], kind="absent", absent_kind="lookalike"),
        make_sample("2_2", [left], [[0, 0, 10, 10]], kind="attribute"),
        make_sample("2_10", [left, right], [[0, 0, 10, 10], [20, 0, 10, 10]], kind="plural"),
    ]
    boxes = [LEFT, RIGHT]
    masks, points = [left, right], [[5.0, 5.0], [15.0, 15.0]]
    outputs = [
        make_output(both, True, boxes, [0.3, 0.2], masks, points),  # rejected, mask not cleared
        make_output(left, False, boxes, [0.8, 0.2], masks, points),  # missed: 100 px in the union
        make_output(left, False, boxes, [0.9, 0.1], masks, points),  # perfect
        make_output(left, False, boxes, [0.9, 0.6], masks, points),  # one of two
    ]
    return register(samples), [{"sample_id": s["sample_id"]} for s in samples], outputs


def evaluate(evaluator, inputs, outputs):
    """One pass, as inference_on_dataset runs it."""
    evaluator.reset()
    for model_input, output in zip(inputs, outputs):
        evaluator.process([model_input], [output])
    return evaluator.evaluate()


def test_hand_worked_case(case, tmp_path):
    name, inputs, outputs = case
    evaluator = GRefCOCOEvaluator(dataset_name=name, output_folder=str(tmp_path))
    results = evaluate(evaluator, inputs, outputs)
    gres, grec = results["gres"], results["grec"]
    assert gres["gIoU"] == pytest.approx(100 * (1 + 0 + 1 + 0.5) / 4)
    assert gres["cIoU"] == pytest.approx(100 * (100 + 100) / (100 + 100 + 200))
    assert (gres["N_acc"], gres["T_acc"]) == (50.0, 100.0)
    assert (gres["Pr@0.7"], gres["Pr@0.9"]) == (50.0, 50.0)
    assert (gres["gIoU_0"], gres["gIoU_1"], gres["gIoU_2"]) == (50.0, 100.0, 50.0)
    assert math.isnan(gres["gIoU_3plus"])
    assert [gres[f"count_{k}"] for k in ("0", "1", "2", "3plus")] == [2, 1, 1, 0]
    # F1: rejected 1, kept on no-target 0, perfect 1, one of two 2/3
    assert (grec["F1score"], grec["N_acc"], grec["T_acc"]) == (50.0, 50.0, 100.0)
    assert (grec["F1_0"], grec["F1_1"], grec["F1_2"]) == (50.0, 100.0, 0.0)
    # Of two without target the look-alike gets a mask and a box at 0.7 or more.
    rates = [{k: v for k, v in task.items() if "hallucination" in k} for task in (gres, grec)]
    assert rates[0] == pytest.approx(rates[1], nan_ok=True)
    assert math.isnan(rates[0].pop("hallucination_unnamed"))
    assert rates[0] == {
        "hallucination": 50.0,
        "hallucination_absent": 0.0,
        "hallucination_lookalike": 100.0,
    }
    # CoverAcc: 1 of 1 and 1 of 2 boxes hold a point
    assert results["instance"]["CoverAcc"] == pytest.approx(75.0)
    print_csv_format(results)

    report = json.loads((tmp_path / f"{name}_metrics.json").read_text())
    assert report["results"]["gres"]["gIoU_3plus"] is None
    assert report["protocol"].startswith("native") and report["num_samples"] == 4
    assert report["breakdown"]["kind"]["absent"] == {"samples": 2, "gIoU": 50.0, "F1score": 50.0}
    kinds = report["breakdown"]["kind of no-target expression"]
    assert kinds["lookalike"] == {"samples": 1, "gIoU": 0.0, "F1score": 0.0}
    assert report["breakdown"]["95% interval"]["hallucination_absent"] == {"low": 0, "high": 0}
    assert report["settings"]["gres_hallucination"] == "not flagged and a pixel in the mask"
    assert report["settings"]["grec_hallucination"] == "a box score >= 0.7"
    records = json.loads((tmp_path / f"{name}_records.json").read_text())
    assert [r["sample_id"] for r in records] == ["1_0", "1_1", "2_10", "2_2"]
    assert {r["group_id"] for r in records} == {1, 2}
    assert evaluator.summarize(merge_records([records]))["grec"] == pytest.approx(grec, nan_ok=True)


def test_masks_and_boxes_hallucinate_apart(register, make_sample, make_output, box_mask):
    """An unflagged sample with an empty mask shows nothing; of a flagged one boxes still count."""
    nothing, something = box_mask(None), box_mask(LEFT)
    outputs = [
        make_output(nothing, False, [LEFT], [0.69]),
        make_output(something, True, [LEFT], [0.7001]),
        make_output(something, False, [LEFT], [0.2]),
        make_output(something, True, [LEFT], [0.2]),
    ]
    kinds = ("unnamed", "absent", "lookalike", None)
    samples = [
        make_sample(f"{i}_0", [], [], **({"absent_kind": kind} if kind else {}))
        for i, kind in enumerate(kinds)
    ]
    name = register(samples)
    results = evaluate(
        GRefCOCOEvaluator(dataset_name=name),
        [{"sample_id": s["sample_id"]} for s in samples],
        outputs,
    )
    gres, grec = results["gres"], results["grec"]
    assert (gres["N_acc"], gres["hallucination"], grec["hallucination"]) == (50.0, 25.0, 25.0)
    assert math.isnan(gres["T_acc"]) and grec["hallucination"] == 100 - grec["N_acc"]
    rates = [[task[f"hallucination_{kind}"] for kind in kinds[:3]] for task in (gres, grec)]
    assert rates == [[0.0, 0.0, 100.0], [0.0, 100.0, 0.0]]


@pytest.mark.parametrize("kind, task", [("refzom", "refzom"), ("rrefcoco", "rref")])
def test_benchmarks_of_masks_say_what_is_answered(
    register, make_sample, make_output, box_mask, tmp_path, kind, task
):
    left, nothing = box_mask(LEFT), box_mask(None)
    kinds = ("absent", "lookalike", "lookalike")
    samples = [make_sample(f"1_{i}", [], [], absent_kind=name) for i, name in enumerate(kinds)]
    samples += [make_sample(f"1_{i}", [left], [[0, 0, 10, 10]]) for i in (3, 4)]
    masks = [nothing, left, nothing, left, nothing]
    cfg = get_cfg()
    add_igvg_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path)
    evaluator = build_grounding_evaluator(cfg, register(samples, kind))
    outputs = [make_output(mask, True) for mask in masks]
    results = evaluate(evaluator, [{"sample_id": s["sample_id"]} for s in samples], outputs)
    rates = {name: results[task][name] for name in results[task] if "hallucination" in name}
    assert rates.pop("hallucination") == pytest.approx(100 / 3)
    assert math.isnan(rates.pop("hallucination_unnamed")) and results[task]["T_acc"] == 50.0
    assert rates == {"hallucination_absent": 0.0, "hallucination_lookalike": 50.0}
    if task == "rref":
        # Masks whose flag is set are empty.
        assert results["rref_flag"]["hallucination"] == results["rref_flag"]["T_acc"] == 0.0


def test_order_sharding_and_duplicates_do_not_matter(case):
    name, inputs, outputs = case
    expected = evaluate(GRefCOCOEvaluator(dataset_name=name), inputs, outputs)
    order = [3, 1, 0, 2, 1]
    shuffled = evaluate(
        GRefCOCOEvaluator(dataset_name=name),
        [inputs[i] for i in order],
        [outputs[i] for i in order],
    )
    np.testing.assert_equal(shuffled, expected)

    shards = []
    for indices in ([2, 0, 2], [3, 1, 0]):
        evaluator = GRefCOCOEvaluator(dataset_name=name)
        evaluator.process([inputs[i] for i in indices], [outputs[i] for i in indices])
        shards.append(evaluator.records)
    assert merge_records(shards) == merge_records(shards[::-1])
    np.testing.assert_equal(evaluator.summarize(merge_records(shards)), expected)


def test_conflicting_duplicates_are_settled_by_content():
    a, b = {"sample_id": "1_0", "iou": 0.5}, {"sample_id": "1_0", "iou": 0.5000001}
    assert merge_records([[a], [b]]) == merge_records([[b], [a]])


def test_missing_and_unknown_samples(case, caplog):
    name, inputs, outputs = case
    with pytest.raises(RuntimeError, match=r"1 of 4 samples.*\['2_10'\]"):
        evaluate(GRefCOCOEvaluator(dataset_name=name), inputs[:3], outputs[:3])
    lenient = GRefCOCOEvaluator(dataset_name=name, allow_missing=True)
    with caplog.at_level("WARNING", logger="igvg_d2"):
        assert math.isnan(evaluate(lenient, inputs[:3], outputs[:3])["gres"]["gIoU_2"])
    assert "2_10" in caplog.text
    with pytest.raises(KeyError, match="'9_9' is not in data set"):
        lenient.process([{"sample_id": "9_9"}], outputs[:1])


def test_no_record_at_all_is_nan(case):
    evaluator = GRefCOCOEvaluator(dataset_name=case[0], allow_missing=True)
    results = evaluate(evaluator, [], [])
    for task in ("gres", "grec", "instance"):
        rates = {k: v for k, v in results[task].items() if not k.startswith("count")}
        assert all(math.isnan(v) for v in rates.values())


def test_wrong_outputs_are_named(case, box_mask):
    name, inputs, outputs = case
    evaluator = GRefCOCOEvaluator(dataset_name=name)
    with pytest.raises(ValueError, match=r"'2_2'.*\(30, 20\)"):
        evaluator.process(inputs[2:3], [{**outputs[2], "mask": torch.zeros(30, 20)}])
    with pytest.raises(KeyError, match="needs 'no_target'"):
        output = {k: v for k, v in outputs[2].items() if k != "no_target"}
        evaluator.process(inputs[2:3], [output])
    outputs[2]["candidates"].pred_boxes = Boxes(torch.tensor([[0.0, 0, 10, 10], [9, 0, 1, 10]]))
    evaluator.process(inputs[2:3], outputs[2:3])  # inverted at score 0.1: nobody looks at it
    outputs[2]["candidates"].pred_boxes.tensor[1, 0] = float("nan")
    with pytest.raises(ValueError, match="'2_2': candidate 1"):
        evaluator.process(inputs[2:3], outputs[2:3])


def test_ground_truth_of_another_size_is_named(register, make_sample, make_output, box_mask):
    sample = make_sample("1_0", [box_mask(LEFT, (20, 31))], [[0, 0, 10, 10]])
    evaluator = GRefCOCOEvaluator(dataset_name=register([sample]))
    with pytest.raises(ValueError, match=r"sample '1_0': .*size \[20, 30\].*\[20, 31\]"):
        evaluator.process([{"sample_id": "1_0"}], [make_output(box_mask(LEFT))])


@pytest.mark.parametrize("kind", ["grefcoco", "refcoco", "refzom", "rrefcoco"])
@pytest.mark.parametrize("far", [1e7, 1e19, 1e300, math.inf, -math.inf, math.nan])
def test_ground_truth_boxes_that_would_match_everything_are_refused(
    register, make_sample, make_output, box_mask, tmp_path, kind, far
):
    sample = make_sample("1_0", [box_mask(LEFT)], [[0, 0, far, 10]])
    cfg = get_cfg()
    add_igvg_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path)
    cfg.TEST.PROTOCOLS = ("native", "official", "released")
    evaluator = build_grounding_evaluator(cfg, register([sample], kind))
    output = make_output(box_mask(LEFT), False, [LEFT], [0.9])
    with pytest.raises(ValueError, match="ground truth of sample '1_0': expected XYXY boxes"):
        evaluator.process([{"sample_id": "1_0"}], [output])


def test_ground_truth_of_any_reader_is_checked_before_pycocotools_sees_it(make_sample, box_mask):
    runs = {"size": [20, 30], "counts": [100, 7, 493]}
    polygon = [[0.0, 0.0, 10.0, 0.0, 10.0, 10.0, 0.0, 10.0]]
    sample = make_sample("1_0", [runs, polygon], [[0, 0, 10, 10]] * 2)
    assert mask_util.area(GroundTruth.from_sample(sample).rles).tolist() == [7, 100]
    assert sample["annotations"][1]["segmentation"] is polygon  # the data set's own stays
    for counts in (b"~", b"5", "oooooooooo0", [600, 2**64, -(2**64)]):
        sample = make_sample("1_0", [{"size": [20, 30], "counts": counts}], [[0, 0, 10, 10]])
        with pytest.raises(ValueError, match="ground truth of sample '1_0': expected"):
            GroundTruth.from_sample(sample)


def test_ground_truth_is_decoded_in_double_precision(make_sample, box_mask):
    masks = [box_mask([0, 0, 2, 3]), box_mask([1, 0, 4, 1])]
    boxes = [[0.1, 0.2, 1.7, 2.6], [1, 0, 3, 1]]
    target = GroundTruth.from_sample(make_sample("1_0", masks, boxes))
    assert target.boxes.tolist() == [[0.1, 0.2, 0.1 + 1.7, 0.2 + 2.6], [1, 0, 4, 1]]
    np.testing.assert_array_equal(mask_util.decode(target.rles).transpose(2, 0, 1), masks)
    assert target.union.sum() == 6 + 3 - 1


def test_refcoco_hand_case(register, make_sample, make_output, box_mask):
    left = box_mask(LEFT)
    samples = [make_sample(f"1_{i}", [left], [[0, 0, 10, 10]]) for i in range(3)]
    name = register(samples, "refcoco")
    outputs = [
        make_output(left, False, [LEFT, RIGHT], [0.2, 0.1]),
        make_output(box_mask([0, 0, 10, 5]), False, [[0, 0, 10, 5]], [0.9]),  # IoU exactly 0.5
        make_output(box_mask(None), True),  # no candidate at all
    ]
    inputs = [{"sample_id": s["sample_id"]} for s in samples]
    results = evaluate(RefCOCOEvaluator(dataset_name=name), inputs, outputs)
    assert results["res"]["mIoU"] == pytest.approx(50.0)
    assert results["res"]["oIoU"] == pytest.approx(50.0)
    assert results["res"]["Pr@0.5"] == pytest.approx(200 / 3)
    assert results["res"]["Pr@0.6"] == pytest.approx(100 / 3)
    assert results["rec"]["Acc@0.5"] == pytest.approx(200 / 3)


def test_refcoco_refuses_generalized_samples(case):
    name, inputs, outputs = case
    with pytest.raises(ValueError, match="exactly 1 target, found 0"):
        RefCOCOEvaluator(dataset_name=name).process(inputs[:1], outputs[:1])


def test_build_by_metadata(register, tmp_path):
    cfg = get_cfg()
    add_igvg_config(cfg)
    cfg.OUTPUT_DIR = str(tmp_path)
    evaluator = build_grounding_evaluator(cfg, register([], "grefcoco"))
    assert type(evaluator) is GRefCOCOEvaluator
    assert evaluator.output_folder == str(tmp_path / "inference")
    assert evaluator.score_threshold == 0.7
    # A registered class name works as well: the door for outside projects.
    evaluator = build_grounding_evaluator(cfg, register([], "RefCOCOEvaluator"), "elsewhere")
    assert type(evaluator) is RefCOCOEvaluator and evaluator.output_folder == "elsewhere"
    with pytest.raises(ValueError, match="found 'coco'"):
        build_grounding_evaluator(cfg, register([], "coco"))
    with pytest.raises(ValueError, match="found None; set it"):
        name = register([])
        MetadataCatalog.remove(name)
        build_grounding_evaluator(cfg, name)


def test_duplicate_sample_ids_are_refused(register, make_sample):
    name = register([make_sample("1_0", [], []), make_sample("1_0", [], [])])
    with pytest.raises(ValueError, match="sample_id must be unique"):
        GRefCOCOEvaluator(dataset_name=name).samples


def test_groups_are_available_to_subclasses(register, make_sample, make_output, box_mask):
    class ByGroup(GroundingEvaluator):
        """Share of positive pixels per group, the shape of R-RefCOCO's evaluator."""

        def summarize(self, records):
            return {"group": {str(r["group_id"]): r["pred_area"] for r in records}}

    name = register([make_sample("1_0", [], [], group_id=7)])
    output = make_output(box_mask(LEFT))
    results = evaluate(ByGroup(dataset_name=name), [{"sample_id": "1_0"}], [output])
    assert results == {"group": {"7": 100}}
