"""Epochs become iterations of the batch and data at hand."""

import logging

import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog

from igvg_d2.data import build_grounding_train_loader
from igvg_d2.engine import resolve_epochs
from igvg_d2.engine.setup import resolve_schedule, save_config
from igvg_d2.solver import build_lr_scheduler
from igvg_d2.testing import tiny_cfg

# Training expressions of gRefCOCO's public file.
GREFCOCO = 209344


def make_cfg(*opts):
    """The recipe of gRefCOCO: 10 epochs, warm-up 1, decay after 6."""
    recipe = ["SOLVER.EPOCHS", 10, "SOLVER.WARMUP_EPOCHS", 1, "SOLVER.STEP_EPOCHS", (6,)]
    staircase = ["SOLVER.WARMUP_METHOD", "staircase", "SOLVER.IMS_PER_BATCH", 128]
    return tiny_cfg([*recipe, *staircase, *opts])


def learning_rates(cfg, iterations):
    """Factors on the base learning rate at these iterations, stepping through the schedule."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build_lr_scheduler(cfg, optimizer)
    factors = []
    for iteration in range(max(iterations) + 1):
        if iteration in iterations:
            factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


def test_the_recipe_of_grefcoco_by_hand(caplog):
    cfg = make_cfg("SOLVER.CHECKPOINT_EPOCHS", 1, "TEST.EVAL_EPOCHS", 2)
    with caplog.at_level(logging.INFO, "igvg_d2"):
        resolved = resolve_epochs(cfg, GREFCOCO)
    # 209,344 / 128 = 1635.5
    solver = resolved.SOLVER
    assert (solver.MAX_ITER, solver.WARMUP_ITERS, solver.STEPS) == (16360, 1636, (9816,))
    assert (solver.CHECKPOINT_PERIOD, resolved.TEST.EVAL_PERIOD) == (1636, 3272)
    assert cfg.SOLVER.MAX_ITER == 40000 and not cfg.is_frozen() and resolved.is_frozen()
    text = caplog.messages[-1]
    assert (
        "209344 expressions / batch 128 = 1636 iterations per epoch; 16360 iterations (10 ep"
        in text
    )
    assert "warm-up 1636 iterations (1 epochs)" in text and "9816 iterations (6 epochs)" in text
    # Epoch 1 at half the rate, epochs 2 to 6 at the full one, 7 to 10 at a tenth.
    at = [0, 1635, 1636, 9815, 9816, 16359]
    assert learning_rates(resolved, at) == pytest.approx([0.5, 0.5, 1, 1, 0.1, 0.1])
    again = resolve_epochs(resolved, GREFCOCO)
    assert again == resolved


def test_the_recipe_of_refcoco_by_hand():
    opts = ["SOLVER.EPOCHS", 20, "SOLVER.WARMUP_EPOCHS", 3, "SOLVER.STEP_EPOCHS", (14,)]
    cfg = resolve_epochs(make_cfg(*opts, "SOLVER.IMS_PER_BATCH", 16), 160)
    middles = [10 * epoch + 5 for epoch in range(20)]
    expected = [0.25, 0.5, 0.75] + [1.0] * 11 + [0.1] * 6
    assert learning_rates(cfg, middles) == pytest.approx(expected)
    firsts = [10 * epoch for epoch in range(20)]
    assert learning_rates(cfg, firsts) == pytest.approx(expected)


def test_iterations_follow_batch_and_data():
    found = [
        resolve_epochs(make_cfg("SOLVER.IMS_PER_BATCH", batch), items).SOLVER.MAX_ITER
        for batch, items in ((128, 1280), (128, 1281), (64, 1280), (128, 5), (1, 7))
    ]
    assert found == [100, 110, 200, 10, 70]


def test_configs_in_iterations_stay_as_they_are(caplog):
    cfg = tiny_cfg(["SOLVER.MAX_ITER", 30, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.STEPS", (20,)])
    with caplog.at_level(logging.INFO, "igvg_d2"):
        assert resolve_epochs(cfg, 40) == cfg
    assert "30 iterations (3 epochs) in all" in caplog.messages[-1]
    cfg.TEST.EVAL_EPOCHS = 1
    assert resolve_epochs(cfg, 40).TEST.EVAL_PERIOD == 10


def test_no_warm_up_and_no_steps():
    opts = ["SOLVER.WARMUP_EPOCHS", 0, "SOLVER.STEP_EPOCHS", (), "SOLVER.WARMUP_METHOD", "linear"]
    cfg = resolve_epochs(make_cfg(*opts), 640)
    assert (cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.STEPS) == (0, ())
    assert learning_rates(cfg, [0, 49]) == pytest.approx([1.0, 1.0])
    constant = make_cfg("SOLVER.WARMUP_METHOD", "constant", "SOLVER.WARMUP_FACTOR", 0.25)
    assert learning_rates(resolve_epochs(constant, 640), [0, 4, 5]) == pytest.approx(
        [0.25, 0.25, 1]
    )


def test_a_trial_is_the_beginning_of_the_schedule():
    # 5 iterations per epoch: warm-up to 5, decay after 30.
    for length, steps in ((32, (30,)), (30, ()), (8, ()), (3, ())):
        cfg = resolve_epochs(make_cfg("SOLVER.EPOCHS", 0, "SOLVER.MAX_ITER", length), 640)
        assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS) == (length, 5)
        assert cfg.SOLVER.STEPS == steps
        whole = [0.5] * 5 + [1.0] * 25 + [0.1] * 20
        assert learning_rates(cfg, list(range(length))) == pytest.approx(whole[:length])


@pytest.mark.parametrize(
    "opts, message",
    [
        (["SOLVER.MAX_ITER", 7], "MAX_ITER = 7 contradicts SOLVER.EPOCHS = 10, .* 50 for"),
        (["SOLVER.STEPS", (9,)], "SOLVER.STEPS = .* contradicts"),
        (
            ["TEST.EVAL_PERIOD", 3, "TEST.EVAL_EPOCHS", 1],
            "TEST.EVAL_PERIOD = 3 contra.*EVAL_EPOCHS",
        ),
        (["SOLVER.WARMUP_ITERS", 9], "SOLVER.WARMUP_ITERS = 9 contradicts"),
        (["SOLVER.EPOCHS", -1], "SOLVER.EPOCHS: expected 0 or more"),
        (["SOLVER.EPOCHS", 6], "WARMUP_EPOCHS < .* found 1, .6,., 6"),
        (["SOLVER.STEP_EPOCHS", (8, 6)], "found 1, .8, 6., 10"),
        (["SOLVER.STEP_EPOCHS", (1,)], "found 1, .1,., 10"),
    ],
)
def test_contradictions_are_named(opts, message):
    with pytest.raises(ValueError, match=message):
        resolve_epochs(make_cfg(*opts), 640)


def test_staircase_needs_epochs_and_steps():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    for opts in (["SOLVER.WARMUP_EPOCHS", 0], ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"]):
        with pytest.raises(ValueError, match="'staircase' goes with"):
            build_lr_scheduler(resolve_epochs(make_cfg(*opts), 640), optimizer)


def test_loaders_of_other_trainers():
    cfg = tiny_cfg()
    assert resolve_schedule(cfg, []) is cfg
    with pytest.raises(ValueError, match="to return a GroundingTrainLoader, found list"):
        resolve_schedule(make_cfg(), [])


def test_config_file_states_the_iterations(tmp_path):
    cfg = make_cfg("OUTPUT_DIR", str(tmp_path / "run"))
    save_config(resolve_epochs(cfg, GREFCOCO))
    written = yaml.unsafe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["SOLVER"]["MAX_ITER"] == 16360 and written["SOLVER"]["EPOCHS"] == 10
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]
    # The file can be used again, also with what it has computed in it.
    cfg.merge_from_file(str(tmp_path / "run" / "config.yaml"))
    assert resolve_epochs(cfg, GREFCOCO).SOLVER.MAX_ITER == 16360


def test_objects_count_where_objects_are_visited():
    samples = [{"sample_id": f"{i}", "ref_id": i // 3, "annotations": []} for i in range(30)]
    DatasetCatalog.register("schedule_test_data", lambda: samples)
    MetadataCatalog.get("schedule_test_data").set(evaluator_type="refcoco")
    try:
        for unit, iterations in (("expression", 80), ("object", 30)):
            cfg = make_cfg("SOLVER.IMS_PER_BATCH", 4, "DATALOADER.SAMPLE_UNIT", unit)
            cfg.DATALOADER.NUM_WORKERS = 0
            cfg.DATASETS.TRAIN = ("schedule_test_data",)
            loader = build_grounding_train_loader(cfg, mapper=lambda sample: sample)
            assert resolve_epochs(cfg, loader.num_items).SOLVER.MAX_ITER == iterations
    finally:
        DatasetCatalog.remove("schedule_test_data")
        MetadataCatalog.remove("schedule_test_data")
