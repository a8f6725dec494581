"""What silently hurts is refused, and what has no effect is reported."""

import logging
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from igvg_d2.engine import GroundingTrainer, check_config, setup_config
from igvg_d2.engine.ineffective_keys import _DETECTRON2, _matches, find_ineffective_keys

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
        ("MODEL.BEIT3.VOCAB_SIZE", 10),
        ("DATASETS.TRAIN", ()),
        ("TEST.EXPECTED_RESULTS", [["gres", "gIoU", 60.0, 1.0]]),
    ],
)
def test_configs_that_silently_hurt_are_refused(key, value):
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        check_config(setup_config(CONFIG, [key, value]))


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


def test_fp16_on_the_cpu_needs_a_scaler_for_it(monkeypatch):
    opts = ["SOLVER.AMP.ENABLED", True, "MODEL.DEVICE", "cpu"]
    check_config(setup_config(CONFIG, opts))
    monkeypatch.delattr("torch.amp.GradScaler")
    with pytest.raises(ValueError, match="PRECISION='fp16' on the CPU needs .*set it to 'bf16'"):
        check_config(setup_config(CONFIG, opts))
    check_config(setup_config(CONFIG, [*opts, "SOLVER.AMP.PRECISION", "bf16"]))


@pytest.mark.parametrize(
    "opts, keys",
    [
        (["SOLVER.STEPS", (100,)], ["SOLVER.STEPS"]),
        (["SOLVER.MOMENTUM", 0.5], ["SOLVER.MOMENTUM"]),
        (["SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.5], ["SOLVER.CLIP_GRADIENTS.CLIP_VALUE"]),
        (["MODEL.RPN.NMS_THRESH", 0.5], ["MODEL.RPN.NMS_THRESH"]),
        (["MODEL.QUERY_GENERATOR.SELECTOR", "topk"], ["QUERY_GENERATOR.DIST_WEIGHT"]),
        (["INPUT.TOKENIZER.FILE", "x.spm"], ["INPUT.TOKENIZER.FILE"]),
        (["DATALOADER.MAX_BAD_RATIO", 0.1], ["DATALOADER.MAX_BAD_RATIO"]),
        (["TEST.AUG.ENABLED", True], ["TEST.AUG.ENABLED"]),
        (["SOLVER.AMP.PRECISION", "bf16"], ["SOLVER.AMP.PRECISION"]),
        (["SOLVER.EMA.DECAY", 0.9], ["SOLVER.EMA.DECAY"]),
        (
            ["SOLVER.EMA.ENABLED", True, "TEST.PRECISE_BN.ENABLED", True],
            ["TEST.PRECISE_BN.ENABLED"],
        ),
    ],
)
def test_options_without_effect_are_found(opts, keys):
    found = find_ineffective_keys(setup_config(CONFIG, opts))
    assert len(found) == len(keys) and all(item.why for item in found)
    for key in keys:
        assert any(item.key.endswith(key) for item in found), key


def test_a_model_without_queries_reports_what_belongs_to_them():
    off = ["MODEL.QUERY_GENERATOR.NAME", "", "MODEL.GROUNDING_HEAD.NAME", ""]
    keys = {item.key for item in find_ineffective_keys(setup_config(CONFIG, off))}
    assert {"MODEL.QUERY_GENERATOR.MAP", "MODEL.GROUNDING_HEAD.DEC_LAYERS"} <= keys
    assert "MODEL.QUERY_GENERATOR.NAME" not in keys and "MODEL.IGVG.TEST.NMS_THRESH" in keys


def test_the_report_names_key_value_and_reason(caplog):
    with caplog.at_level(logging.WARNING):
        check_config(setup_config(CONFIG, ["SOLVER.MUON_LR", 0.03]))
    assert "SOLVER.MUON_LR" in caplog.text and "0.03" in caplog.text
    assert "only SOLVER.OPTIMIZER Muon uses it" in caplog.text


# A model with a part switched off inherits the options of this part from the full one.
CONFIGS = [p for p in sorted((ROOT / "configs").rglob("*.yaml")) if "global" not in p.name]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_our_configs_set_nothing_without_effect(path):
    assert find_ineffective_keys(setup_config(str(path))) == []


class TracingNode(CfgNode):
    """A config that notes which options are read."""

    def trace(self, prefix, read):
        object.__setattr__(self, "_prefix", prefix)
        object.__setattr__(self, "_read", read)
        for key, value in self.items():
            if isinstance(value, CfgNode):
                child = TracingNode(value)
                dict.__setitem__(self, key, child)
                child.trace(f"{prefix}{key}.", read)
        return self

    def __getattr__(self, name):
        if name in self:
            value = self[name]
            if not isinstance(value, CfgNode):
                self._read.add(self._prefix + name)
            return value
        raise AttributeError(name)


def test_options_of_detectron2_declared_without_effect_are_never_read():
    read = set()
    cfg = setup_config(CONFIG, ["MODEL.DEVICE", "cpu"])
    traced = TracingNode(cfg).trace("", read)
    model = build_model(traced)
    GroundingTrainer.build_optimizer(traced, model)
    assert "MODEL.BEIT3.DEPTH" in read
    patterns = [rule.keys for rule in _DETECTRON2]
    # The one option that the optimizer's own check looks at.
    read.discard("SOLVER.CLIP_GRADIENTS.ENABLED")
    wrong = {key for key in read for keys in patterns if _matches(key, keys)}
    assert not wrong
