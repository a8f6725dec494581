"""What a fine-tuning chooses, from facts alone."""

import importlib.util
from pathlib import Path

import pytest

from igvg_d2.engine import setup_config
from tools.finetuning.choices import Facts, choose_options, estimate_memory

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "configs/gRefCOCO/instancevg_beit3_base_320_released.yaml"
ENCODER = ROOT / "configs/Photos/igvg_beit3_base_320_custom.yaml"
GPU = {"device": "cuda", "bf16": True, "memory": 24.0}


@pytest.fixture(scope="module")
def released():
    return setup_config(str(BASE))


def choose(recipe, samples, asked=(), **facts):
    """{last part of the key: value}."""
    chosen = choose_options(Facts(samples, **facts), recipe, dict(asked))
    assert all(reason and "\n" not in reason for _, reason in chosen.values())
    names = {key.replace("TEST.EVAL", "EVAL").rpartition(".")[2]: key for key in chosen}
    return {name: chosen[key][0] for name, key in names.items()}


@pytest.mark.parametrize(
    "samples, batch, epochs, frozen, jitter, often",
    [
        (3, 2, 60, ["backbone."], 0.2, 6),
        (24, 4, 60, ["backbone."], 0.2, 6),
        (64, 16, 60, ["backbone."], 0.2, 6),
        (999, 16, 30, ["backbone."], 0.2, 3),
        (1_000, 16, 30, [], 0.1, 3),
        (5_000, 16, 15, [], 0.1, 1),
        (30_000, 16, 10, [], 0.0, 1),
        (209_344, 16, 10, [], 0.0, 1),
    ],
)
def test_by_size_of_the_data(released, samples, batch, epochs, frozen, jitter, often):
    found = choose(released, samples, validation=5, **GPU)
    assert (found["IMS_PER_BATCH"], found["EPOCHS"]) == (batch, epochs)
    assert (found["FREEZE"], found["COLOR_JITTER"]) == (frozen, jitter)
    assert found.get("DROP_PATH") == (0.0 if frozen else None)
    assert found["EVAL_EPOCHS"] == found["CHECKPOINT_EPOCHS"] == often
    assert found["WARMUP_EPOCHS"] < epochs and found["HORIZONTAL_PROB"] == 0.0
    assert found["BEST_METRIC"] == "gres/gIoU" and found["PROTOCOLS"] == ["native"]
    assert "EVAL_EPOCHS" not in choose(released, samples, **GPU)
    boxes = choose(released, samples, validation=5, has_masks=False, **GPU)
    assert boxes["BEST_METRIC"] == "grec/F1score"


@pytest.mark.parametrize(
    "config, start, samples, rate, frozen",
    [
        # 0.0005 at batch 16, a fifth of it; at batch 4 by the root of 1/4.
        (BASE, "model", 64, 1e-4, ["backbone."]),
        (BASE, "model", 16, 5e-5, ["backbone."]),
        # 0.0002 at batch 16 from the encoder alone.
        (ENCODER, "encoder", 64, 2e-4, []),
        (ENCODER, "nothing", 16, 1e-4, []),
    ],
)
def test_by_start(config, start, samples, rate, frozen):
    found = choose(setup_config(str(config)), samples, start=start, **GPU)
    assert found["BASE_LR"] == pytest.approx(rate) and found["FREEZE"] == frozen
    # Both configs have 0.1; without effect, it would be a warning.
    assert found.get("BACKBONE_MULTIPLIER") == (1.0 if frozen else None)


def test_a_new_vocabulary_is_not_frozen(released):
    assert choose(released, 24, encoder_is_new=True, **GPU)["FREEZE"] == []


@pytest.mark.parametrize(
    "facts, amp, precision, steps, recompute",
    [
        ({"device": "cuda", "bf16": True, "memory": 24.0}, True, "bf16", 1, False),
        ({"device": "cuda", "bf16": False, "memory": 12.0}, True, "fp16", 2, False),
        ({"device": "cuda", "bf16": True, "memory": 9.0}, True, "bf16", 4, False),
        ({"device": "cuda", "bf16": True, "memory": 8.0}, True, "bf16", 8, False),
        ({"device": "cuda", "bf16": True, "memory": 7.0}, True, "bf16", 8, True),
        ({"device": "cpu", "memory": 32.0}, False, None, 1, False),
        ({"device": "cpu", "memory": 16.0}, False, None, 2, False),
        ({"device": "mps", "memory": 16.0}, False, None, 2, False),
        ({"device": "cuda", "bf16": True, "memory": 9.0, "processes": 8}, True, "bf16", 1, False),
    ],
)
def test_by_memory(released, facts, amp, precision, steps, recompute):
    found = choose(released, 5_000, **facts)
    assert (found["ENABLED"], found.get("PRECISION")) == (amp, precision)
    assert (found["ACCUMULATION_STEPS"], found["CHECKPOINTING"]) == (steps, recompute)


def test_too_little_memory_is_refused_with_what_helps(released):
    with pytest.raises(ValueError, match=r"needs some 4\.9 GiB.*3.0 of 4.0 GiB.*MODEL.FREEZE"):
        choose(released, 5_000, device="cuda", bf16=True, memory=4.0)
    assert choose(released, 500, device="cuda", bf16=True, memory=4.0)["ACCUMULATION_STEPS"] == 2


def test_what_is_asked_for_stays_and_counts(released):
    asked = {"SOLVER.IMS_PER_BATCH": 64, "SOLVER.MAX_ITER": 10, "MODEL.FREEZE": []}
    asked["INPUT.IMAGE_SIZE"] = (640, 640)
    found = choose(released, 24, asked, **GPU)
    assert (found["IMS_PER_BATCH"], found["EPOCHS"], found["WARMUP_EPOCHS"]) == (64, 0, 0)
    assert found["FREEZE"] == [] and found["BASE_LR"] == pytest.approx(2e-4)
    assert found["ACCUMULATION_STEPS"] == 8  # of 8 images with 640 pixels
    assert choose_options(Facts(24), released, asked)["MODEL.FREEZE"] == ([], "as you asked")


@pytest.mark.parametrize("processes, batch", [(1, 4), (3, 6), (8, 8)])
def test_every_process_has_a_share(released, processes, batch):
    assert choose(released, 24, processes=processes, cores=8, **GPU)["IMS_PER_BATCH"] == batch


@pytest.mark.parametrize("freeze, half", [([], False), (["backbone."], True)])
def test_memory_is_what_the_developers_script_counts(released, freeze, half):
    spec = importlib.util.spec_from_file_location("estimate", ROOT / "dev/estimate_memory.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    opts = ["SOLVER.IMS_PER_BATCH", 4, "MODEL.FREEZE", freeze, "MODEL.DEVICE", "cpu"]
    opts += ["SOLVER.AMP.ENABLED", half, "SOLVER.AMP.PRECISION", "bf16"]
    counted = script.estimate(setup_config(str(BASE), opts))["total"]
    chosen = {"MODEL.FREEZE": (freeze, ""), "SOLVER.AMP.ENABLED": (half, "")}
    assert estimate_memory(Facts(5), released, chosen, 4, False) == pytest.approx(counted, rel=0.15)


@pytest.mark.parametrize("key", ["SOLVER.IMS_PER_BATCH", "SOLVER.ACCUMULATION_STEPS"])
def test_a_batch_of_none_is_refused(released, key):
    with pytest.raises(ValueError, match=f"{key}: expected 1 or more, found 0"):
        choose(released, 64, {key: 0})
