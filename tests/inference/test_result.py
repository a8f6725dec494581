"""GroundingResult: thresholds, masks, exports and drawings, on hand-made answers."""

import dataclasses
import gc
import json
import sys
import tracemalloc
import weakref

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from igvg_d2.inference import GroundingResult
from igvg_d2.inference.exports import brush_rle
from igvg_d2.inference.masks import encode_mask
from igvg_d2.io.rle import mask_to_rle
from igvg_d2.modeling.postprocessing import PostprocessOptions, make_answer, rank_outputs

OPTIONS = dict(
    score_thresh=0.5,
    mask_thresh=0.5,
    output_mask="merge",
    weight_scores=False,
    mask_resize="logits",
    no_target_test="softmax",
    align_corners=False,
)
SIZE = (30, 40)


def rank(size=SIZE, scores=(0.9, 0.3, 0.7), present=0.8, cells=(8, 8), seed=0, **changes):
    """A ranked answer of random smooth masks; query 1 is the worst."""
    generator = torch.Generator().manual_seed(seed)
    count = len(scores)
    logit = torch.logit(torch.tensor(scores))
    outputs = {
        "pred_logits": torch.stack([logit, torch.zeros(count)], dim=-1)[None],
        "pred_boxes": torch.rand(1, count, 4, generator=generator) * 0.5 + 0.2,
        "pred_points": torch.rand(1, count, 2, generator=generator),
        "pred_masks": 4 * torch.randn(1, count, *cells, generator=generator),
        "sem_seg": 4 * torch.randn(1, 1, *cells, generator=generator),
        "no_target_logits": torch.tensor([[float(torch.logit(torch.tensor(present))), 0.0]]),
        "attention_map": torch.rand(1, 4, 4, generator=generator),
    }
    options = PostprocessOptions(**{**OPTIONS, **changes})
    return rank_outputs(outputs, (32, 32), [size], options)[0]


def make(source=None, no_target_threshold=None, **changes):
    image = np.full((*changes.get("size", SIZE), 3), 90, np.uint8) if source is None else source
    return GroundingResult(
        rank(**changes), "the dog", source=image, no_target_threshold=no_target_threshold
    )


def test_attributes_are_those_of_the_models_dict():
    result = make()
    expected = make_answer(rank(), ())
    kept = expected["instances"]
    assert len(result) == 2 and result.orig_shape == SIZE and not result.no_target
    assert np.array_equal(result.boxes, kept.pred_boxes.tensor.numpy())
    assert result.scores.tolist() == kept.scores.tolist() and result.scores[0] > result.scores[1]
    assert np.array_equal(result.points, kept.pred_points.numpy())
    assert result.masks.dtype == bool and np.array_equal(result.masks, kept.pred_masks.numpy())
    assert np.array_equal(result.mask, expected["mask"].numpy())
    assert result.no_target_score == pytest.approx(0.2) and result.attention_map.shape == (4, 4)
    assert repr(result) == (
        "GroundingResult('the dog': 2 found, no-target score 0.20, 40 x 30 pixels)"
    )


def test_it_answers_as_the_models_dict():
    result, expected = make(), make_answer(rank(), ())
    assert sorted(result.keys()) == sorted(expected) and "inputs" not in result
    for key in ("mask", "sem_seg", "attention_map", "no_target_score"):
        assert torch.equal(result[key], expected[key]), key
    assert result["no_target"] is expected["no_target"]
    for key in ("candidates", "instances"):
        assert torch.equal(result[key].pred_masks, expected[key].pred_masks), key
        assert torch.equal(result[key].scores, expected[key].scores), key
    assert result.get("resized_masks", {}) == {}
    with pytest.raises(KeyError, match="'masks'; there are"):
        result["masks"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mask_thresh": 0.2},
        {"mask_thresh": 0.0},
        {"mask_thresh": 1.0},
        {"mask_resize": "binary"},
        {"mask_resize": "binary", "align_corners": True},
        {"output_mask": "global"},
        {"output_mask": "instance"},
    ],
)
@pytest.mark.parametrize("size", [(30, 40), (97, 211), (1, 1), (5, 3), (1400, 900)])
def test_masks_have_the_bits_of_the_dense_ones(size, changes):
    ranked = rank(size=size, **changes)
    result = GroundingResult(ranked, "x")
    expected = make_answer(ranked)
    for rle, mask in zip(result.rles, expected["instances"].pred_masks):
        # Also as text: no empty runs, the first one of background.
        assert rle == mask_to_rle(mask)
    assert np.array_equal(result.mask, expected["mask"].numpy())


def test_a_mask_that_is_not_finite_is_that_of_the_dense_one_too():
    ranked = rank()
    ranked.mask_logits[0, 3, 3] = float("inf")
    rle = encode_mask(ranked, ranked.mask_logits[0], SIZE)
    assert rle == mask_to_rle(ranked.make_masks(ranked.mask_logits[:1], SIZE)[0])


def test_other_thresholds_answer_as_the_model_would():
    result = make()
    every, strict = result.with_thresholds(threshold=0.1), result.with_thresholds(threshold=0.8)
    assert (len(every), len(result), len(strict)) == (3, 2, 1)
    for changed, options in (
        (every, {"score_thresh": 0.1}),
        (result.with_thresholds(mask_threshold=0.9), {"mask_thresh": 0.9}),
        (every.with_thresholds(mask_threshold=0.9), {"score_thresh": 0.1, "mask_thresh": 0.9}),
    ):
        expected = make_answer(rank(**options))
        assert np.array_equal(changed.masks, expected["instances"].pred_masks.numpy())
        assert np.array_equal(changed.mask, expected["mask"].numpy())
    none = result.with_thresholds(threshold=0.95)
    assert none.no_target and len(none) == 0 and not none.mask.any()


def test_the_no_target_threshold_decides_by_the_score_alone():
    result = make(present=0.4)  # no_target_score 0.6
    assert not result.no_target
    rejected = result.with_thresholds(no_target_threshold=0.6 - 1e-6)
    assert rejected.no_target and len(rejected) == 0 and not rejected.mask.any()
    assert rejected.boxes.shape == (0, 4) and rejected.masks.shape == (0, *SIZE)
    # The mask that benchmarks score is not cleared by the flag.
    assert torch.equal(rejected["mask"], result["mask"]) and rejected["mask"].any()
    assert not rejected.with_thresholds(no_target_threshold=0.61).no_target
    # Kept by the next call, as the other two are.
    assert rejected.with_thresholds(threshold=0.1).no_target
    nothing_kept = make(scores=(0.1,), no_target_threshold=0.9)
    assert not nothing_kept.no_target and len(nothing_kept) == 0


@pytest.mark.parametrize(
    "name, value",
    [("threshold", 1.5), ("mask_threshold", -0.1), ("threshold", "0.5"), ("threshold", True)],
)
def test_thresholds_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a number from 0 to 1"):
        make().with_thresholds(**{name: value})
    with pytest.raises(ValueError, match="no_target_threshold: expected a number above 0"):
        make().with_thresholds(no_target_threshold=0.0)


def test_json_has_what_a_prediction_file_wants():
    result = make()
    found = json.loads(result.to_json())
    assert found == result.to_dict()
    assert (found["height"], found["width"], found["expression"]) == (*SIZE, "the dog")
    assert found["path"] is None and found["no_target"] is False
    assert np.array_equal(mask_util.decode(found["mask"]), result.mask)
    assert [mask_util.decode(rle).sum() for rle in found["masks"]] == [
        mask.sum() for mask in result.masks
    ]
    empty = make(scores=(0.1,)).to_dict()
    assert empty["no_target"] and empty["boxes"] == empty["masks"] == []
    assert mask_util.area(empty["mask"]) == 0


def test_coco_loads_the_results():
    result = make()
    coco = COCO()
    image = {"id": 7, "height": SIZE[0], "width": SIZE[1]}
    coco.dataset = {"images": [image], "categories": [{"id": 3}], "annotations": [], "info": {}}
    coco.createIndex()
    entries = result.to_coco(7, category_id=3)
    loaded = coco.loadRes(json.loads(json.dumps(entries)))
    annotations = loaded.loadAnns(loaded.getAnnIds(imgIds=[7]))
    assert [a["score"] for a in annotations] == result.scores.tolist()
    for annotation, entry, mask in zip(annotations, entries, result.masks):
        assert np.array_equal(loaded.annToMask(annotation), mask)
        assert entry["area"] == mask.sum()
    x0, y0, x1, y1 = result.boxes[0].tolist()
    assert entries[0]["bbox"] == [x0, y0, x1 - x0, y1 - y0]
    assert make(scores=(0.1,)).to_coco(7) == []


def read_bits(data):
    """Label Studio's brush RLE, decoded by the description of @thi.ng/rle-pack, bit by bit."""
    bits, at = "".join(f"{byte:08b}" for byte in data), 0

    def take(count):
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values = []
    while len(values) < total:
        is_run, length = take(1), take(sizes[take(2)]) + 1
        values += [take(word)] * length if is_run else [take(word) for _ in range(length)]
    assert len(values) == total and len(bits) - at < 8
    return np.array(values, np.uint8)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (30, 40), (300, 400)])
def test_label_studio_brushes_decode_to_the_mask(shape):
    generator = np.random.default_rng(0)
    for mask in (np.zeros(shape, bool), np.ones(shape, bool), generator.random(shape) < 0.02):
        pixels = read_bits(brush_rle(mask)).reshape(*shape, 4)
        assert np.array_equal(pixels, np.repeat(mask[..., None], 4, axis=2) * np.uint8(255))


def test_label_studio_task():
    result = make()
    task = json.loads(json.dumps(result.to_label_studio("/data/upload/dog.jpg", label="Target")))
    assert task["data"] == {"image": "/data/upload/dog.jpg", "text": "the dog"}
    (prediction,) = task["predictions"]
    assert prediction["score"] == pytest.approx(0.8) and len(prediction["result"]) == 2
    for entry, mask in zip(prediction["result"], result.masks):
        assert (entry["type"], entry["from_name"], entry["to_name"]) == (
            *("brushlabels", "brush", "image"),
        )
        assert (entry["original_height"], entry["original_width"]) == SIZE
        assert entry["value"]["format"] == "rle" and entry["value"]["brushlabels"] == ["Target"]
        decoded = read_bits(entry["value"]["rle"]).reshape(*SIZE, 4)
        assert np.array_equal(decoded[..., 3] > 0, mask)
    assert len({entry["id"] for entry in prediction["result"]}) == 2
    assert make(scores=(0.1,)).to_label_studio("a.jpg")["predictions"][0]["result"] == []


def test_supervision_detections():
    supervision = pytest.importorskip("supervision")
    result = make()
    detections = result.to_supervision()
    assert isinstance(detections, supervision.Detections) and len(detections) == 2
    assert np.array_equal(detections.xyxy, result.boxes)
    assert np.array_equal(detections.mask, result.masks)
    assert detections.confidence.tolist() == result.scores.tolist()
    assert detections.data["class_name"].tolist() == ["the dog"] * 2
    assert len(make(scores=(0.1,)).to_supervision()) == 0
    # Their own reader of Detectron2's outputs takes ours.
    theirs = supervision.Detections.from_detectron2({"instances": result["instances"]})
    assert np.array_equal(theirs.xyxy, result.boxes)


def test_without_supervision_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        make().to_supervision()


def test_plot_has_the_size_of_the_image():
    image = np.full((*SIZE, 3), 90, np.uint8)
    result = make(source=image)
    drawn = result.plot()
    assert drawn.shape == image.shape and drawn.dtype == np.uint8 and (image == 90).all()
    assert (drawn != image).any()
    for layer in ("attention", "masks", "mask", "boxes", "points"):
        assert (result.plot(layers=[layer]) != image).any(), layer
    assert (result.plot(layers=[]) == image).all()
    # Pixels of the best mask have its color, others are left alone.
    only = result.with_thresholds(threshold=0.8).plot(layers=["masks"])
    inside = result.masks[0]
    assert (only[inside] != 90).any(axis=1).all()
    with pytest.raises(ValueError, match="layers must be a list of some of"):
        result.plot(layers=["boxen"])
    with pytest.raises(ValueError, match=r"height, width = \(30, 30\)"):
        result.plot(np.zeros((30, 30, 3), np.uint8))
    assert (make(scores=(0.1,)).plot() != 90).any()  # the band


def test_plot_on_the_image_in_another_size():
    result = make()
    height, width = SIZE
    large = result.resized((3 * height, 3 * width))
    assert np.allclose(large.boxes, 3 * result.boxes)
    assert np.allclose(large.points, 3 * result.points)
    assert (large.masks[:, 1::3, 1::3] == result.masks).mean() > 0.999
    assert large.no_target_score == result.no_target_score
    image = np.full((3 * height, 3 * width, 3), 90, np.uint8)
    assert np.array_equal(result.plot(image), large.plot(image))
    odd = np.full((round(0.7 * height), round(0.7 * width) + 1, 3), 90, np.uint8)
    assert result.plot(odd).shape == odd.shape


def test_save(tmp_path):
    source = tmp_path / "photo.png"
    Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(source)
    result = make(source=str(source))
    assert result.path == str(source)
    assert np.array_equal(Image.open(result.save(tmp_path / "new" / "a.png")), result.plot())
    with pytest.raises(ValueError, match="is the image itself"):
        result.save(source)
    for name in ("answer.txt", "answer.psd"):  # the second is only read by Pillow
        with pytest.raises(ValueError, match="no ending of an image format"):
            result.save(tmp_path / name)


def test_show_opens_a_viewer(monkeypatch):
    shown = []
    monkeypatch.setattr(Image.Image, "show", lambda self, title: shown.append((self.size, title)))
    make().show()
    assert shown == [((40, 30), "the dog")]


def test_a_result_holds_nothing_but_its_own_answer():
    ranked = rank()
    batch = torch.zeros(8, 1, 100, 100)
    copy = dataclasses.replace(ranked, sem_seg=batch[3].bfloat16()).to_host()
    assert copy.sem_seg.dtype == torch.float32
    assert copy.sem_seg.untyped_storage().nbytes() == 4 * 100 * 100
    result = GroundingResult(copy, "x")
    result.with_thresholds(threshold=0.1).to_json()
    gone = weakref.ref(result)
    gc.disable()
    try:
        del result
        assert gone() is None
    finally:
        gc.enable()


def test_memory_follows_the_answer_not_the_pixels():
    ranked = rank(size=(9000, 12000))
    tracemalloc.start()
    result = GroundingResult(ranked, "x")
    rles = [*result.rles, result.union_rle]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # One dense mask has 108 MB.
    assert len(rles) == 3 and peak < 100e6
    assert mask_util.area(rles[-1]) >= max(mask_util.area(rle) for rle in rles[:-1])


def test_lines_grow_with_the_image():
    result = make(size=(3000, 4000)).with_thresholds(threshold=0.8)
    drawn = result.plot(layers=["boxes"])
    x, y = ((result.boxes[0, :2] + result.boxes[0, 2:]) // 2).astype(int)
    # Below the center, the tag being above: 2 pixels for each 1000 of the long side.
    assert 6 <= (drawn[y:, x] == (0xE6, 0x9F, 0)).all(axis=1).sum() <= 10
