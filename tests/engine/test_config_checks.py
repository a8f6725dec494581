"""What silently hurts is refused."""

import logging
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

import igvg_d2.modeling  # noqa: F401
from igvg_d2.engine import check_config, setup_config
from igvg_d2.engine.config_checks import check_vocabulary
from igvg_d2.engine.trainer import verify_results

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs" / "Shapes" / "igvg_tiny.yaml")


@pytest.mark.parametrize(
    "key, value",
    [
        ("DATALOADER.FILTER_EMPTY_ANNOTATIONS", True),
        ("INPUT.RANDOM_FLIP", "horizontal"),
        ("INPUT.CROP.ENABLED", True),
        ("MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675]),
        ("MODEL.PIXEL_STD", [1.0, 1.0, 1.0]),
        ("SOLVER.CLIP_GRADIENTS.ENABLED", True),
        ("DATASETS.TRAIN", ()),
        ("TEST.CALIBRATION", "C.json"),
        ("TEST.EXPECTED_RESULTS", [["gres", "gIoU", 60.0, 1.0]]),
    ],
)
def test_configs_that_silently_hurt_are_refused(key, value):
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        check_config(setup_config(CONFIG, [key, value]))


def test_a_tokenizer_larger_than_the_vocabulary_is_refused():
    cfg = setup_config(CONFIG, ["MODEL.BEIT3.VOCAB_SIZE", 10, "MODEL.BEIT3.DEPTH", 1])
    with pytest.raises(ValueError, match="ShapesTokenizer .* BEiT3 knows 10; .*VOCAB_SIZE"):
        check_vocabulary(cfg, build_model(cfg))
    check_vocabulary(setup_config(CONFIG), torch.nn.Linear(1, 1))


def test_all_problems_are_reported_at_once():
    opts = ["INPUT.RANDOM_FLIP", "horizontal", "INPUT.CROP.ENABLED", True]
    with pytest.raises(ValueError, match="RANDOM_FLIP(.|\n)*CROP"):
        check_config(setup_config(CONFIG, opts))


@pytest.mark.parametrize("batch, is_fine", [(8, True), (6, False), (2, False), (4, True)])
def test_a_batch_must_be_shared_out_equally(monkeypatch, batch, is_fine):
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 4)
    cfg = setup_config(CONFIG, ["SOLVER.IMS_PER_BATCH", batch])
    if is_fine:
        return check_config(cfg)
    with pytest.raises(ValueError, match=f"IMS_PER_BATCH={batch}.* set it to 4 or "):
        check_config(cfg)


@pytest.mark.parametrize(
    "opts, message",
    [
        (["ACCUMULATION_STEPS", 0], "ACCUMULATION_STEPS=0 must be at least 1"),
        (["ACCUMULATION_STEPS", 3, "SOLVER.IMS_PER_BATCH", 8], "SOLVER.IMS_PER_BATCH=8.* 6 or 9"),
        (["ACCUMULATION_STEPS", 4, "SOLVER.IMS_PER_BATCH", 2], "SOLVER.IMS_PER_BATCH=2.* 4 or 8"),
        (["AMP.ENABLED", True, "SOLVER.AMP.PRECISION", "fp8"], r"'fp8' must be .*\['bf16', 'fp16'"),
        (["EMA.ENABLED", True, "SOLVER.EMA.DECAY", 1.0], "SOLVER.EMA.DECAY=1.0"),
        (["EMA.ENABLED", True, "SOLVER.EMA.DECAY", 0.0], "SOLVER.EMA.DECAY=0.0"),
    ],
)
def test_contradictions_of_the_step_are_refused(opts, message):
    with pytest.raises(ValueError, match=message):
        check_config(setup_config(CONFIG, ["SOLVER." + opts[0], *opts[1:]]))


EXPECTED = [["gres", "gIoU", 80.0, 20.0], ["grec", "F1score", 50.0, 1.0]]


@pytest.mark.parametrize(
    "g_iou, f1_score, is_reached",
    [(60.0, 51.0, True), (59.9, 51.0, False), (80.0, float("nan"), False), (80.0, None, False)],
)
@pytest.mark.parametrize("dataset", ["", "shapes_val/"])
def test_expected_results_end_the_process(dataset, g_iou, f1_score, is_reached, caplog):
    """A floor F is (100 + F) / 2 +- (100 - F) / 2."""
    caplog.set_level(logging.INFO)
    cfg = setup_config(CONFIG)
    cfg.TEST.EXPECTED_RESULTS = [[dataset + task, *rest] for task, *rest in EXPECTED]
    results = {"gres": {"gIoU": g_iou}, "grec": {"F1score": f1_score}}
    if f1_score is None:
        del results["grec"]
    if dataset:
        results = {"shapes_val": results, "shapes_testA": {"gres": {"gIoU": 1.0}}}
    if is_reached:
        return verify_results(cfg, results)
    with pytest.raises(SystemExit) as ended:
        verify_results(cfg, results)
    assert ended.value.code == 1
    assert f"{dataset}gres/gIoU: expected 80 +- 20, found {g_iou:.4g}" in caplog.text
    assert f"measured were: {dataset}gres/gIoU" in caplog.text
