"""The predictor, prediction files and the evaluation give the same numbers, digit by digit."""

import concurrent.futures
import logging

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

from igvg_d2.engine import GroundingTrainer
from igvg_d2.evaluation.predictions import output_to_prediction, read_predictions
from igvg_d2.inference import GroundingPredictor
from igvg_d2.io.json_stream import to_json_text
from tests.scripts import load_script

NAME = "test_one_path_val"
BATCH = 16


@pytest.fixture(scope="module")
def samples(register_shapes):
    """A small validation set that no training has seen."""
    return DatasetCatalog.get(*register_shapes("test_one_path", seed=78, scale=0.02))


@pytest.fixture(scope="module")
def predictor():
    opts = ["DATASETS.TEST", (NAME,), "DATALOADER.NUM_WORKERS", 0, "TEST.BATCH_SIZE", BATCH]
    opts += ["TEST.PROTOCOLS", ("native", "official"), "TEST.SAVE_PREDICTIONS", True]
    return GroundingPredictor.from_pretrained("shapes-tiny", device="cpu", opts=opts)


def pairs(samples):
    return [(sample["file_name"], sample["expression"]) for sample in samples]


def test_scored_predictions_equal_the_evaluation(predictor, samples, tmp_path):
    cfg = predictor.cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(tmp_path)
    evaluated = GroundingTrainer.test(cfg, predictor.model)
    path = tmp_path / "mine.jsonl"
    with open(path, "w") as file:
        for sample, result in zip(samples, predictor.stream(pairs(samples), batch_size=BATCH)):
            file.write(to_json_text(output_to_prediction(result, sample)) + "\n")
    score = load_script("tools/score_predictions.py").score
    report = score(NAME, str(path), protocols="native,official")
    assert report["num_samples"] == len(samples) > 20
    # NaN is equal to itself here.
    assert to_json_text(report["results"]) == to_json_text(evaluated)
    assert 0 < report["results"]["gres"]["gIoU"] < 100
    (theirs,) = (tmp_path / "inference").rglob("*_predictions.jsonl")
    by_id = [{p["sample_id"]: p for p in read_predictions(str(f))} for f in (path, theirs)]
    assert by_id[0] == by_id[1]


def test_a_batch_answers_as_its_questions_alone(predictor, samples):
    chosen = pairs(samples)[:6]
    for result, pair in zip(predictor.stream(chosen, batch_size=4), chosen):
        alone = predictor(*pair)
        assert (result.expression, result.path) == (pair[1], pair[0])
        assert np.allclose(result.scores, alone.scores, atol=1e-4)
        assert np.mean(result.mask != alone.mask) < 1e-3


def test_forms_of_a_call(predictor, samples):
    (first, text), (second, other) = pairs(samples)[0], pairs(samples)[-1]
    texts = [text, other, text]
    assert [r.expression for r in predictor(first, texts)] == texts
    assert [r.path for r in predictor([first, second], text)] == [first, second]
    both = predictor([first, second], [text, other])
    assert [(r.path, r.expression) for r in both] == [(first, text), (second, other)]
    assert predictor([], []) == [] and predictor(first, []) == []
    with pytest.raises(ValueError, match="2 images and 1 expressions: lists must be of the same"):
        predictor([first, second], [text])
    with pytest.raises(ValueError, match="batch_size must be a whole number of 1 or more, got 0"):
        predictor(first, text, batch_size=0)
    assert len(predictor([first, second], text, batch_size=np.int64(1))) == 2


def test_forms_of_an_image(predictor, samples, tmp_path):
    path, text = pairs(samples)[0]
    expected = predictor(path, text)
    rgb = np.asarray(Image.open(path).convert("RGB"))
    for image, more in (
        (Image.open(path), {}),
        (f"file://{path}", {}),
        (rgb, {"channel_order": "RGB"}),
        (rgb[..., ::-1], {"channel_order": "BGR"}),
        (torch.from_numpy(rgb.copy()).permute(2, 0, 1), {"channel_order": "RGB"}),
    ):
        result = predictor(image, text, **more)
        assert result.scores.tolist() == expected.scores.tolist()
        assert np.array_equal(result.mask, expected.mask)
        assert np.array_equal(result.plot(), expected.plot())
    gray = np.asarray(Image.open(path).convert("L"))
    assert predictor(gray, text).orig_shape == gray.shape
    turned = Image.open(path)
    turned.getexif()[0x0112] = 6
    assert predictor(turned, text).orig_shape == rgb.shape[1::-1]
    with pytest.raises(ValueError, match="channel_order must be 'RGB' or 'BGR', got 'GBR'"):
        predictor(rgb, text, channel_order="GBR")
    with pytest.raises(ValueError, match="channel_order must be 'RGB' or 'BGR', got 'bgr'"):
        predictor(path, text, channel_order="bgr")
    with pytest.raises(ValueError, match="image must be a path, a PIL.Image.*got int"):
        predictor(3, text)


def test_a_list_is_read_batch_by_batch(predictor, samples, monkeypatch):
    read, asked = [], []
    read_image = predictor._mapper.read_image
    monkeypatch.setattr(
        predictor._mapper, "read_image", lambda path: read.append(path) or read_image(path)
    )
    path, text = pairs(samples)[0]

    def endless():
        while True:
            asked.append(path)
            yield path, text

    results = predictor.stream(endless(), batch_size=3)
    assert [next(results).expression for _ in range(4)] == [text] * 4
    # Two batches, of which each reads the image once.
    assert len(asked) == 6 and read == [path] * 2


def test_threads_share_a_predictor(predictor, samples):
    chosen = pairs(samples)[:12]
    alone = [predictor(*pair) for pair in chosen]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda pair: predictor(*pair), chosen))
    for one, other in zip(alone, together):
        assert one.to_dict() == other.to_dict()


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_half_precision_finds_the_same(predictor, samples, dtype):
    half = GroundingPredictor(predictor.cfg, dtype=dtype)
    seen = []
    half.model.pixel_decoder.register_forward_hook(lambda m, i, output: seen.append(output.dtype))
    chosen = pairs(samples)[:16]
    agree = []
    for result, pair in zip(half.stream(chosen), chosen):
        expected = predictor(*pair)
        assert result.scores.dtype == result.boxes.dtype == np.float32
        union = (result.mask | expected.mask).sum()
        agree.append(union == 0 or (result.mask & expected.mask).sum() / union > 0.8)
    assert seen[0] in (torch.bfloat16, torch.float16) and np.mean(agree) > 0.8
    with pytest.raises(ValueError, match="dtype must be one of .*, got 'int8'"):
        GroundingPredictor(predictor.cfg, dtype="int8")


def test_a_warning_tells_opencv_users_about_the_order(predictor, samples, caplog, monkeypatch):
    from detectron2.utils import logger as detectron2_logger

    monkeypatch.setattr(detectron2_logger, "_LOG_COUNTER", type(detectron2_logger._LOG_COUNTER)())
    monkeypatch.setattr(logging.getLogger("igvg_d2"), "propagate", True)
    path, text = pairs(samples)[0]
    rgb = np.asarray(Image.open(path).convert("RGB"))
    predictor(rgb, text, channel_order="RGB")
    assert "OpenCV" not in caplog.text
    predictor(rgb, text)
    assert "arrays are taken as RGB; OpenCV reads BGR" in caplog.text
