"""GroundingPredictor with a fake model: inputs, frames and errors."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from igvg_d2.data import GroundingDatasetMapper
from igvg_d2.engine import setup_config
from igvg_d2.evaluation import Calibration
from igvg_d2.inference import GroundingPredictor
from igvg_d2.inference import predictor as predictor_module

ROOT = Path(__file__).resolve().parents[2]


class _FakeModel(torch.nn.Module):
    """Returns its inputs and the state it was called in."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, inputs):
        grad = torch.is_grad_enabled()
        return [{"inputs": x, "training": self.training, "grad": grad} for x in inputs]


@pytest.fixture
def cfg():
    cfg = setup_config()
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.IMAGE_SIZE = (32, 48)
    cfg.INPUT.TOKENIZER.NAME = "ShapesTokenizer"
    return cfg


@pytest.fixture
def predictor(cfg, monkeypatch):
    monkeypatch.setattr(predictor_module, "build_model", lambda cfg: _FakeModel())
    return GroundingPredictor(cfg)


@pytest.fixture
def image():
    array = np.zeros((60, 30, 3), dtype=np.uint8)
    array[..., 0] = 200
    return array


def test_array_and_path_give_the_same_input(predictor, image, tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    from_array = predictor(image, "the red circle")
    for source in (str(path), path):
        from_path = predictor(source, "the red circle")
        assert torch.equal(from_path["inputs"]["image"], from_array["inputs"]["image"])
    sample = {"file_name": str(path), "expression": "the red circle"}
    mapped = GroundingDatasetMapper(predictor.cfg, is_train=False)({**sample, "sample_id": ""})
    for key in ("image", "text_ids", "text_padding_mask"):
        assert torch.equal(from_array["inputs"][key], mapped[key])
    for key in ("height", "width", "content_size", "expression", "frame_sizes"):
        assert from_array["inputs"][key] == mapped[key]


def test_model_input(predictor, image):
    output = predictor(image, "the red circle")
    inputs = output["inputs"]
    assert not output["training"] and not output["grad"]
    assert (inputs["height"], inputs["width"]) == (60, 30)
    assert inputs["image"].shape == (3, 32, 48) and inputs["image"].dtype == torch.uint8
    assert inputs["image"][:, 0, 0].tolist() == [200, 0, 0]
    assert inputs["text_ids"].dtype == torch.int64 and inputs["text_ids"][0] == 0
    assert inputs["text_ids"][-1] == 2 and not inputs["text_padding_mask"].any()


def test_gray_files_become_rgb(predictor, tmp_path):
    path = tmp_path / "gray.png"
    Image.fromarray(np.full((20, 20), 90, np.uint8)).save(path)
    assert predictor(str(path), "the circle")["inputs"]["image"].shape == (3, 32, 48)


@pytest.mark.parametrize("expression", ["", "   ", None, 3])
def test_empty_expression(predictor, image, expression):
    with pytest.raises(ValueError, match="expression must be a text with at least one word"):
        predictor(image, expression)


@pytest.mark.parametrize("text, reason", [("?!", "no token"), ("a \ud800", "half a character")])
def test_what_no_tokenizer_takes_is_refused(predictor, image, text, reason):
    with pytest.raises(ValueError, match=reason):
        predictor(image, text)


def test_unknown_words_are_reported(predictor, image, caplog):
    logger = logging.getLogger("igvg_d2")
    logger.propagate = True
    with caplog.at_level(logging.WARNING):
        predictor(image, "the zxqwv circle")
    assert "'zxqwv' in 'the zxqwv circle': unknown to the tokenizer" in caplog.text


def test_missing_file(predictor, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.png' does not exist"):
        predictor(str(tmp_path / "absent.png"), "the circle")


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n broken"])
def test_corrupt_file(predictor, tmp_path, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot decode the image '.*broken.png'"):
        predictor(str(path), "the circle")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        torch.zeros(3, 4, 4, dtype=torch.bfloat16),
    ],
)
def test_wrong_array(predictor, array):
    with pytest.raises(ValueError, match="image must be uint8 of shape"):
        predictor(array, "the circle")


def test_an_image_in_memory_that_cannot_be_used(predictor, tmp_path):
    for image, reason in (
        (Image.new("RGB", (0, 5)), "it has no pixels"),
        (Image.new("F", (4, 4)), "floating point numbers"),
    ):
        with pytest.raises(ValueError, match=f"the image cannot be used: .*{reason}"):
            predictor(image, "the circle")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(
        tmp_path / "whole.jpg"
    )
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-900])
    with pytest.raises(ValueError, match="the image cannot be used: .*truncated"):
        predictor(Image.open(tmp_path / "cut.jpg"), "the circle")


def test_weights_are_loaded(cfg, monkeypatch, tmp_path):
    trained = _FakeModel()
    torch.save({"model": trained.state_dict()}, tmp_path / "model.pth")
    monkeypatch.setattr(predictor_module, "build_model", lambda cfg: _FakeModel())
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    model = GroundingPredictor(cfg).model
    assert torch.equal(model.layer.weight, trained.layer.weight) and not model.training
    cfg.MODEL.WEIGHTS = str(tmp_path / "absent.pth")
    with pytest.raises(FileNotFoundError, match="absent.pth"):
        GroundingPredictor(cfg)


def test_an_encoder_alone_is_refused(cfg, monkeypatch, tmp_path):
    """Its heads would answer at random."""
    monkeypatch.setattr(predictor_module, "build_model", lambda cfg: _FakeModel())
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    torch.save({"model": _FakeModel().state_dict(), "__author__": "BEiT-3"}, cfg.MODEL.WEIGHTS)
    with pytest.raises(ValueError, match="model.pth' is an encoder to train from: it has no heads"):
        GroundingPredictor(cfg)


def test_a_calibration_decides_unless_a_call_does(tmp_path, caplog):
    path, made = tmp_path / "c.json", Calibration(
        1e-9, "false-answers", 0.1, 0.9, {"a": "b"}, {}, {}
    )
    path.write_text(json.dumps(made.to_dict()))
    with caplog.at_level(logging.INFO):
        predictor = GroundingPredictor.from_pretrained("shapes-tiny", calibration=str(path))
    assert predictor.calibration == made and f"{made.guarantee}; {made.assumption}" in caplog.text
    # The config in the header of the weights is older than this version, and nobody need know.
    assert "Deprecated" not in caplog.text
    photo = str(ROOT / "demo/images/scene.jpg")
    assert predictor(photo, "all triangles").no_target
    assert not predictor(photo, "all triangles", no_target_threshold=0.5).no_target
    path.write_text("{}")
    with pytest.raises(ValueError, match="calibration file .*c.json: no JSON object with 'format'"):
        GroundingPredictor.from_pretrained("shapes-tiny", calibration=str(path))


def test_config_is_not_changed(cfg, monkeypatch):
    def build_model(config):
        config.OUTPUT_DIR = "elsewhere"
        return _FakeModel()

    monkeypatch.setattr(predictor_module, "build_model", build_model)
    before = cfg.OUTPUT_DIR
    GroundingPredictor(cfg)
    assert cfg.OUTPUT_DIR == before
