"""Average precision against COCOeval's own file-based path, and hand cases."""

import contextlib
import io
import math

import numpy as np
import pycocotools.mask as mask_util
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from igvg_d2.evaluation.grounding_evaluation import GroundTruth
from igvg_d2.evaluation.instance_evaluation import make_instance_record, summarize_instances


@pytest.fixture
def make_records(make_sample, make_output, box_mask):
    """Callable: [(XYXY target boxes, XYXY candidate boxes, scores)] -> instance records."""

    def _make_records(cases, min_score=0.05):
        records = []
        for i, (targets, boxes, scores) in enumerate(cases):
            xywh = [[b[0], b[1], b[2] - b[0], b[3] - b[1]] for b in targets]
            sample = make_sample(f"{i}_{i}", [box_mask(b) for b in targets], xywh)
            output = make_output(
                box_mask(None),
                False,
                boxes,
                scores,
                [box_mask(b) for b in boxes],
                [[0.0, 0.0]] * len(boxes),
            )
            record = make_instance_record(
                GroundTruth.from_sample(sample), output["candidates"], min_score=min_score
            )
            records.append({**record, "num_targets": len(targets)})
        return records

    return _make_records


def random_box(rng):
    x, y = rng.integers(0, 20), rng.integers(0, 12)
    return [int(v) for v in (x, y, x + rng.integers(2, 10), y + rng.integers(2, 8))]


def test_perfect_predictions_score_100(make_records):
    a, b = [0, 0, 10, 10], [20, 0, 30, 10]
    results = summarize_instances(make_records([([a, b], [a, b], [0.9, 0.8]), ([], [], [])]))
    assert results.pop("CoverAcc") == results.pop("CoverAcc_all") == 50.0
    assert all(value == pytest.approx(100.0) for value in results.values())


def test_false_positive_above_all_hits_halves_precision(make_records):
    a = [0, 0, 10, 10]
    # One candidate on a no-target sample outranks the only hit: precision 1/2 at every recall.
    results = summarize_instances(make_records([([], [a], [0.9]), ([a], [a], [0.8])]))
    assert results["box_AP50"] == pytest.approx(50.0)
    # Below min_score it takes no part.
    results = summarize_instances(make_records([([], [a], [0.9]), ([a], [a], [0.8])], 0.85))
    assert results["box_AP50"] == 0.0


@pytest.mark.parametrize("score, covered", [(0.0, 0.0), (0.69, 0.0), (0.7, 100.0)])
def test_points_that_predict_nothing_cover_nothing(
    make_sample, make_output, box_mask, score, covered
):
    sample = make_sample("0_0", [box_mask([0, 0, 5, 5])], [[0, 0, 5, 5]])
    points = [[x, y] for x in range(0, 30, 3) for y in range(0, 20, 3)]
    boxes, scores = [[0, 0, 1, 1]] * len(points), [score] * len(points)
    output = make_output(box_mask(None), False, boxes, scores, points=points)
    output["candidates"].scores = output["candidates"].scores.double().fill_(score)
    record = make_instance_record(GroundTruth.from_sample(sample), output["candidates"])
    results = summarize_instances([{**record, "num_targets": 1}])
    # Eq. 3 knows no scores: all points that there are.
    assert results["CoverAcc"] == covered and results["CoverAcc_all"] == 100.0


def test_undefined_is_nan(make_records, make_sample, make_output, box_mask):
    results = summarize_instances(make_records([([], [[0, 0, 5, 5]], [0.9])]))
    assert results.pop("box_mask_IoU") == 100.0  # a false alarm, but box and mask agree
    assert all(math.isnan(value) for value in results.values())
    target = GroundTruth.from_sample(make_sample("0_0", [box_mask([0, 0, 5, 5])], [[0, 0, 5, 5]]))
    output = make_output(box_mask(None), False, [[0, 0, 5, 5]], [0.9])  # neither masks nor points
    record = make_instance_record(target, output["candidates"])
    results = summarize_instances([{**record, "num_targets": 1}])
    assert results["box_AP"] == pytest.approx(100.0)
    assert math.isnan(results["mask_AP"]) and math.isnan(results["CoverAcc"])


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_equals_file_based_cocoeval(make_records, box_mask, iou_type):
    rng = np.random.default_rng(0)
    cases = []
    for _ in range(40):
        targets = [random_box(rng) for _ in range(rng.integers(0, 4))]
        boxes = [random_box(rng) for _ in range(rng.integers(0, 5))]
        boxes += [[b[0], b[1], b[2] + int(rng.integers(0, 3)), b[3]] for b in targets]
        # Few distinct scores, so that ties between and within samples occur.
        scores = rng.choice([0.1, 0.3, 0.5, 0.7, 0.9], len(boxes)).astype(np.float32)
        cases.append((targets, boxes, scores.tolist()))

    def annotation(image_id, index, box):
        rle = mask_util.encode(np.asfortranarray(box_mask(box).astype(np.uint8)))
        xywh = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
        fields = dict(id=index, image_id=image_id, category_id=0, iscrowd=0, area=1.0)
        return {**fields, "bbox": xywh, "segmentation": rle}

    gts = [annotation(i, 0, b) for i, c in enumerate(cases) for b in c[0]]
    for index, gt in enumerate(gts):
        gt["id"] = index + 1
    dts = []
    for i, (_, boxes, scores) in enumerate(cases):
        for box, score in zip(boxes, scores):
            dt = annotation(i, 0, box)
            # loadRes takes a bbox for a box result and would derive a polygon from it.
            dt.pop("bbox" if iou_type == "segm" else "segmentation")
            dts.append({**dt, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = dict(
            images=[dict(id=i, height=20, width=30) for i in range(len(cases))],
            annotations=gts,
            categories=[dict(id=0, name="target")],
        )
        coco.createIndex()
        reference = COCOeval(coco, coco.loadRes(dts), iou_type)
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    name = "mask" if iou_type == "segm" else "box"
    results = summarize_instances(make_records(cases))
    ours = [results[f"{name}_AP"], results[f"{name}_AP50"], results[f"{name}_AP75"]]
    assert 5 < ours[0] < 95
    np.testing.assert_allclose(ours, 100 * reference.stats[:3], rtol=1e-9)
