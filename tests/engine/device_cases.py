"""On an accelerator: nothing is left on the CPU, and the host waits only where it must.

Run by test_device.py in a process of its own: PyTorch forgets no device that it was told of, and a
process with one cannot be forked after a backward pass.
"""

from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from torch import nn

from igvg_d2.config import add_igvg_config
from igvg_d2.engine.guards import BadSampleLog, LossGuard
from igvg_d2.engine.train_step import WeightAverage, build_step_trainer
from igvg_d2.evaluation import GRefCOCOEvaluator
from igvg_d2.evaluation.predictions import output_to_host
from igvg_d2.solver import build_optimizer
from igvg_d2.testing import random_batch, tiny_cfg

ROOT = Path(__file__).resolve().parents[2]
registration = pytest.importorskip("torch.utils.backend_registration")
if not hasattr(registration, "_setup_privateuseone_for_python_backend"):
    pytest.skip("this PyTorch knows no device in Python", allow_module_level=True)

from tests.engine.pretended_device import (  # noqa: E402
    Pretend,
    Pretended,
    move,
    register_device,
    waits,
)

MATCHER, STEP = "modeling/grounding_head/matcher.py", "engine/train_step.py"
CONFIGS = {
    "paper": None,
    "released": "gRefCOCO/instancevg_beit3_base_320_released.yaml",
    "shapes": "Shapes/igvg_tiny.yaml",
    "24gb": "gRefCOCO/igvg_beit3_base_320_24gb.yaml",
}
# The sizes of tiny_cfg, which a config file would set.
SIZES = """
    MODEL.BEIT3.EMBED_DIM MODEL.BEIT3.DEPTH MODEL.BEIT3.NUM_HEADS MODEL.BEIT3.FFN_DIM
    MODEL.BEIT3.PRETRAIN_IMAGE_SIZE MODEL.BEIT3.MAX_TEXT_POSITIONS MODEL.IGVG.HIDDEN_DIM
    MODEL.NECK.OUT_CHANNELS MODEL.PIXEL_DECODER.CONV_DIMS MODEL.QUERY_GENERATOR.NHEADS
    MODEL.GROUNDING_HEAD.NHEADS MODEL.GROUNDING_HEAD.DIM_FEEDFORWARD MODEL.BEIT3.VOCAB_SIZE
    MODEL.DEVICE INPUT.IMAGE_SIZE
""".split()


@pytest.fixture(scope="session", autouse=True)
def forked_processes_can_train():
    """Of all tests but these."""


@pytest.fixture(scope="module", autouse=True)
def device():
    register_device()


def value_of(cfg, key):
    for name in key.split("."):
        cfg = getattr(cfg, name)
    return cfg


def small_cfg(name, opts=()):
    """A shipped config, with its options and tiny sizes."""
    tiny = tiny_cfg()
    if CONFIGS[name] is None:
        cfg = tiny
    else:
        cfg = get_cfg()
        add_igvg_config(cfg)
        cfg.merge_from_file(str(ROOT / "configs" / CONFIGS[name]))
        cfg.merge_from_list([x for key in SIZES for x in (key, value_of(tiny, key))])
    cfg.merge_from_list(["MODEL.WEIGHTS", "", "SOLVER.IMS_PER_BATCH", 4, *opts])
    return cfg


def make_trainer(cfg, counts, pretend=True, log=None):
    """A step trainer of a guarded model with its average, on the device or on the CPU."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    if pretend:
        move(model)
    optimizer = build_optimizer(cfg, model)
    guard = LossGuard(model, log)
    trainer = build_step_trainer(cfg, model, [random_batch(counts)] * 3, optimizer)
    if log is None:
        trainer.defer(guard)
    trainer.average = WeightAverage(model, optimizer, 0.9)
    return trainer


def run(trainer, steps=2):
    """Waits of the last of some steps, and the last scalars."""
    with EventStorage() as storage:
        for trainer.iter in range(steps):
            torch.manual_seed(trainer.iter)
            waits.clear()
            trainer.run_step()
    return dict(waits), {key: value for key, (value, _) in storage.latest().items()}


STEPS = [
    ("paper", (1, 0, 2, 1), []),
    ("paper", (0, 0, 0, 0), []),
    ("paper", (7, 1, 1, 0), ["SOLVER.ACCUMULATION_STEPS", 2, "MODEL.BEIT3.CHECKPOINTING", True]),
    ("released", (1, 0, 12, 1), []),
    ("released", (0, 0, 0, 0), ["SOLVER.ACCUMULATION_STEPS", 2]),
    ("shapes", (1, 0, 2, 7), ["SOLVER.OPTIMIZER", "AdamW"]),
    # No device without kernels of its own has autocast.
    ("24gb", (1, 0, 2, 1), ["SOLVER.ACCUMULATION_STEPS", 4, "SOLVER.AMP.ENABLED", False]),
]


@pytest.mark.parametrize("name, counts, opts", STEPS)
def test_a_step_waits_for_matches_and_for_one_copy_of_all_numbers(name, counts, opts):
    cfg = small_cfg(name, opts)
    with Pretend():
        trainer = make_trainer(cfg, counts)
        found, scalars = run(trainer)
    assert found == {MATCHER: cfg.SOLVER.ACCUMULATION_STEPS, STEP: 1}
    parameters = list(trainer.model.parameters())
    assert all(isinstance(p.grad, Pretended) for p in parameters if p.requires_grad)
    assert all(isinstance(p, Pretended) for p in trainer.average.model.parameters())
    assert scalars["total_loss"] > 0 and scalars["grad_norm"] > 0


def test_what_is_computed_is_what_the_cpu_computes():
    opts = ["MODEL.BEIT3.DROP_PATH", 0.0, "SOLVER.ACCUMULATION_STEPS", 2]
    cfg = small_cfg("released", opts)
    with Pretend():
        _, scalars = run(make_trainer(cfg, (1, 0, 2, 1)))
    _, expected = run(make_trainer(cfg, (1, 0, 2, 1), pretend=False))
    for key in expected.keys() - {"data_time", "rank_data_time"}:
        assert scalars[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-6), key


def test_every_optimizer_stays_on_the_device(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "projects" / "Shapes"))
    from shapes_pretraining import add_pretraining_config

    from igvg_d2.solver import OPTIMIZER_REGISTRY

    names = [name for name, _ in OPTIMIZER_REGISTRY]
    assert {"Adam", "AdamW", "Muon"} <= set(names)
    for name in names:
        cfg = tiny_cfg()
        add_pretraining_config(cfg)
        cfg.merge_from_list(["SOLVER.OPTIMIZER", name, "SOLVER.AMSGRAD", True])
        torch.manual_seed(0)
        model = move(nn.Sequential(nn.Conv2d(3, 16, 2), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 1)))
        optimizer = build_optimizer(cfg, model)
        with Pretend():
            before = [p.data_on_cpu.clone() for p in model.parameters()]
            for _ in range(2):
                optimizer.zero_grad()
                model(Pretended(torch.randn(2, 3, 4, 4))).square().mean().backward()
                waits.clear()
                optimizer.step()
        assert not waits, (name, waits)
        changed = [not torch.equal(p.data_on_cpu, b) for p, b in zip(model.parameters(), before)]
        assert sum(changed) >= 4, name


def test_skipping_bad_samples_costs_a_wait_per_micro_batch():
    cfg = small_cfg("paper", ["SOLVER.ACCUMULATION_STEPS", 2])
    log = BadSampleLog(nn.Identity(), "")
    with Pretend():
        found, _ = run(make_trainer(cfg, (1, 0, 2, 1), log=log))
    assert found == {MATCHER: 2, STEP: 1, "engine/guards.py": 2}


INFERENCES = [
    ("paper", [], {}),
    ("released", ["MODEL.IGVG.TEST.SCORE_THRESH_TEST", 0.0], {"frame_sizes": (48, 20)}),
    ("shapes", ["MODEL.IGVG.TEST.SCORE_THRESH_TEST", 0.0], {"content_size": (32, 64)}),
    ("paper", ["MODEL.QUERY_GENERATOR.NAME", "", "MODEL.GROUNDING_HEAD.NAME", ""], {}),
]


@pytest.mark.parametrize("name, opts, extra", INFERENCES)
def test_inference_waits_once_per_batch_and_evaluation_once_per_sample(name, opts, extra):
    torch.manual_seed(0)
    model = build_model(small_cfg(name, opts)).eval()
    batch = random_batch((1, 1, 0))
    batch[0].update(extra, height=20, width=30)
    with torch.no_grad():
        expected = model(batch)
    move(model)
    samples = {x["sample_id"]: ground_truth(x) for x in batch}
    evaluators = []
    for _ in range(2):
        evaluators.append(GRefCOCOEvaluator(dataset_name="none", protocols=("native",)))
        evaluators[-1]._samples = samples
    with Pretend(), torch.no_grad():
        waits.clear()
        outputs = model(batch)
        assert dict(waits) == {"modeling/postprocessing.py": 1}
        assert isinstance(outputs[0]["mask"], Pretended)
        waits.clear()
        evaluators[0].process(batch, outputs)
        assert dict(waits) == {"evaluation/predictions.py": len(batch)}
        candidates = output_to_host(outputs[0])["candidates"]
    for key, value in outputs[0]["candidates"].get_fields().items():
        value, copy = (getattr(x, "tensor", x) for x in (value, candidates.get(key)))
        assert torch.equal(copy, value.data_on_cpu) and copy.dtype == value.dtype, key
    evaluators[1].process(batch, expected)
    for found, same in zip(*(evaluator.records for evaluator in evaluators)):
        assert found["pixels"] == same["pixels"] and found["num_covered"] == same["num_covered"]
        assert found["no_target_score"] == pytest.approx(same["no_target_score"], rel=1e-4)
        assert found["scores"] == pytest.approx(same["scores"], rel=1e-4)


def ground_truth(sample):
    """Dataset dict of a sample, with a target in one corner unless there is none."""
    size = (sample["height"], sample["width"])
    mask = np.zeros(size, np.uint8, order="F")
    mask[:10, :10] = 1
    annotation = {
        "bbox": [0, 0, 10, 10],
        "bbox_mode": BoxMode.XYWH_ABS,
        "segmentation": mask_util.encode(mask),
    }
    annotations = [annotation] if len(sample["instances"]) else []
    ids = {"sample_id": sample["sample_id"], "image_id": 0, "ref_id": 0}
    return {**ids, "height": size[0], "width": size[1], "annotations": annotations}
