"""Optimizers: parameter groups, options, clipping under mixed precision."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

import igvg_d2.modeling  # noqa: F401
from igvg_d2.solver import OPTIMIZER_REGISTRY, build_optimizer
from igvg_d2.testing import tiny_cfg


def groups_by_name(model, optimizer):
    """Parameter name -> its group of the optimizer."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}


def test_every_parameter_has_its_learning_rate_and_decay():
    cfg = tiny_cfg(
        [
            "SOLVER.BASE_LR", 0.01,
            "SOLVER.BACKBONE_MULTIPLIER", 0.1,
            "SOLVER.WEIGHT_DECAY", 0.05,
            "SOLVER.WEIGHT_DECAY_NORM", 0.0,
            "SOLVER.WEIGHT_DECAY_BIAS", 0.02,
        ]
    )  # fmt: skip
    model = build_model(cfg)
    groups = groups_by_name(model, build_optimizer(cfg, model))
    assert groups.keys() == dict(model.named_parameters()).keys()
    for name, group in groups.items():
        assert group["lr"] == pytest.approx(0.001 if name.startswith("backbone.") else 0.01), name
    expected = {
        "backbone.encoder.layers.0.vision.fc1.weight": 0.05,
        "backbone.encoder.layers.0.vision.ffn_norm.weight": 0.0,
        "backbone.encoder.layers.0.vision.fc1.bias": 0.02,
        "grounding_head.predictor.class_embed.weight": 0.05,
        "neck.lateral.0.norm.weight": 0.0,
        "pixel_decoder.stages.0.0.norm.weight": 0.0,
    }
    for name, decay in expected.items():
        assert groups[name]["weight_decay"] == decay, name


@pytest.mark.parametrize("name", ["AdamW", "Adam"])
def test_options_reach_the_optimizer(name):
    cfg = tiny_cfg(
        [
            "SOLVER.OPTIMIZER", name,
            "SOLVER.BETAS", (0.8, 0.95),
            "SOLVER.EPS", 1e-6,
            "SOLVER.AMSGRAD", True,
        ]
    )  # fmt: skip
    optimizer = build_optimizer(cfg, torch.nn.Linear(2, 2))
    assert type(optimizer).__name__ == name
    for key, value in (("betas", (0.8, 0.95)), ("eps", 1e-6), ("amsgrad", True)):
        assert optimizer.defaults[key] == value


def test_another_optimizer_from_outside():
    """It gets the model and the groups; clipping and its log are added to any optimizer."""
    seen = []

    def Outside(cfg, model, params):  # noqa: N802
        seen.append((model, params))
        return torch.optim.SGD(params, lr=cfg.SOLVER.BASE_LR)

    OPTIMIZER_REGISTRY.register(Outside)
    try:
        cfg = tiny_cfg(["SOLVER.OPTIMIZER", "Outside", "SOLVER.CLIP_TOTAL_NORM", 0.5])
        model = torch.nn.Linear(2, 1, bias=False)
        optimizer = build_optimizer(cfg, model)
        model.weight.grad = torch.tensor([[3.0, 4.0]])
        optimizer.step()
    finally:
        del OPTIMIZER_REGISTRY._obj_map["Outside"]
    assert seen[0][0] is model and seen[0][1][0]["params"] == [model.weight]
    assert model.weight.grad[0].tolist() == pytest.approx([0.3, 0.4], abs=1e-4)


def test_frozen_parameters_are_left_out():
    model = torch.nn.Linear(2, 2)
    model.bias.requires_grad = False
    optimizer = build_optimizer(tiny_cfg(), model)
    assert [p for group in optimizer.param_groups for p in group["params"]] == [model.weight]


def make_step(max_norm, gradient):
    model = torch.nn.Linear(2, 1, bias=False)
    optimizer = build_optimizer(tiny_cfg(["SOLVER.CLIP_TOTAL_NORM", max_norm]), model)
    model.weight.grad = torch.tensor([gradient])
    optimizer.step()
    return model.weight.grad[0].tolist()


@pytest.mark.parametrize(
    "max_norm, expected",
    [(0.5, [0.3, 0.4]), (10.0, [3.0, 4.0]), (0.0, [3.0, 4.0])],
)
def test_clipping_by_the_total_norm(max_norm, expected):
    assert make_step(max_norm, [3.0, 4.0]) == pytest.approx(expected, abs=1e-4)


def test_norm_before_clipping_is_logged():
    with EventStorage() as storage:
        make_step(0.5, [3.0, 4.0])
        assert storage.latest()["grad_norm"][0] == pytest.approx(5.0)


def test_clipping_by_detectron2_and_unknown_optimizers_are_refused():
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="CLIP_TOTAL_NORM"):
        build_optimizer(tiny_cfg(["SOLVER.CLIP_GRADIENTS.ENABLED", True]), model)
    with pytest.raises(ValueError, match="SOLVER.OPTIMIZER"):
        build_optimizer(tiny_cfg(["SOLVER.OPTIMIZER", "LBFGS"]), model)
