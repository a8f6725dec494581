"""Adam in one pass over the memory: PyTorch's fused kernel."""

import copy

import pytest
import torch
from detectron2.modeling import build_model

import igvg_d2.modeling  # noqa: F401
from igvg_d2.solver import build_optimizer
from igvg_d2.testing import tiny_cfg


def make_optimizer(*opts):
    cfg = tiny_cfg(["SOLVER.AMSGRAD", True, "SOLVER.BASE_LR", 0.01, *opts])
    torch.manual_seed(0)
    model = build_model(cfg)
    return model, build_optimizer(cfg, model)


def step(model, optimizer, seed):
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_the_fused_kernel_gives_the_same_weights(name):
    model, optimizer = make_optimizer("SOLVER.OPTIMIZER", name)
    assert all(group["fused"] for group in optimizer.param_groups)
    other, plain = make_optimizer("SOLVER.OPTIMIZER", name)
    for group in plain.param_groups:
        group["fused"] = False
    for seed in range(3):
        step(model, optimizer, seed)
        step(other, plain, seed)
    for a, b in zip(model.parameters(), other.parameters()):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)


def test_a_checkpoint_keeps_the_kernel_of_its_run():
    model, plain = make_optimizer()
    for group in plain.param_groups:
        group["fused"] = None  # as in checkpoints of earlier versions
    step(model, plain, 0)
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(plain.state_dict())
    step(model, plain, 1)
    resumed, optimizer = make_optimizer()
    resumed.load_state_dict(weights)
    optimizer.load_state_dict(state)
    step(resumed, optimizer, 1)
    assert all(group["fused"] is None for group in optimizer.param_groups)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters()))


def test_a_gradient_scaler_unscales_before_the_hooks():
    model, optimizer = make_optimizer("SOLVER.CLIP_TOTAL_NORM", 1.0)
    scaler, norms, steps = torch.amp.GradScaler("cpu", init_scale=1024.0), [], []
    optimizer.grad_norm = None
    optimizer.register_step_pre_hook(lambda *_: norms.append(float(optimizer.grad_norm)))
    optimizer.register_step_post_hook(lambda *_: steps.append(True))
    for bad in (False, True):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        first = next(model.parameters())
        first.grad.view(-1)[0] = float("inf") if bad else 1024 * 3.0
        scaler.scale(torch.zeros(()))
        scaler.step(optimizer)
        scaler.update()
    assert norms == [3.0] and steps == [True]
    assert optimizer.state_dict()["param_groups"][0]["fused"]
