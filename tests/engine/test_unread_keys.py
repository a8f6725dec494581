"""Options that nothing reads are found by recording what a run reads."""

import copy
import logging
import pickle
from pathlib import Path

import pytest
from detectron2.config import CfgNode

from igvg_d2.engine import GroundingTrainer, setup_config
from igvg_d2.engine.config_checks import find_unread_keys, record_reads

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs" / "Shapes" / "igvg_tiny.yaml")


def reads(cfg):
    return cfg.__dict__["reads"]


def test_reads_are_those_of_single_options():
    cfg = setup_config()
    cfg.freeze()
    recorded = record_reads(cfg)
    assert recorded == cfg and recorded.dump() == cfg.dump() and recorded.is_frozen()
    list(recorded.items()), str(recorded), recorded.SOLVER, recorded.MODEL.BEIT3
    assert not reads(recorded)
    clone = copy.deepcopy(recorded.clone())
    clone.defrost()
    clone.SOLVER.MAX_ITER = 3
    assert clone.SOLVER.MAX_ITER == 3 and clone["MODEL"]["BEIT3"]["DEPTH"] == 12
    assert isinstance(clone.MODEL, CfgNode) and not hasattr(clone, "NO_SUCH_KEY")
    assert reads(recorded) == {"SOLVER.MAX_ITER", "MODEL.BEIT3.DEPTH"}
    assert pickle.loads(pickle.dumps(recorded)).SOLVER.MAX_ITER == 40000


@pytest.fixture(scope="module")
def shapes(register_shapes):
    """Name of a small registered data set."""
    return register_shapes("unread_keys", seed=1, scale=0.003)[0]


def test_what_a_trainer_does_not_read_is_reported(shapes, tmp_path, caplog):
    options = ["OUTPUT_DIR", str(tmp_path), "DATALOADER.NUM_WORKERS", 0, "MODEL.BEIT3.DEPTH", 1]
    options += ["MODEL.WEIGHTS", "", "SOLVER.MAX_ITER", 1, "SOLVER.WARMUP_ITERS", 0]
    options += ["SOLVER.IMS_PER_BATCH", 2]
    options += ["DATASETS.TRAIN", (shapes,), "DATASETS.TEST", (shapes,)]
    without_effect = {
        "SOLVER.MOMENTUM": 0.5,
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.5,
        "MODEL.RPN.NMS_THRESH": 0.5,
        "INPUT.TOKENIZER.FILE": "x.spm",
        "SOLVER.AMP.PRECISION": "bf16",
        "SOLVER.EMA.DECAY": 0.9,
    }
    cfg = setup_config(CONFIG, options)
    for key, value in {**without_effect, "TEST.AUG.ENABLED": True}.items():
        cfg.merge_from_list([key, value])
    cfg.freeze()
    trainer = GroundingTrainer(cfg)
    trainer.resume_or_load(False)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert set(find_unread_keys(trainer.cfg)) == {*without_effect, "TEST.AUG.ENABLED"}
    first, second = (r.getMessage() for r in caplog.records if "have no effect" in r.getMessage())
    assert all(key in first for key in without_effect) and "0.9" in first
    assert "TEST.AUG.ENABLED" in second and "TEST" not in first
