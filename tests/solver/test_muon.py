"""Muon: which rule a parameter gets, and what each rule does."""

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

import igvg_d2.modeling  # noqa: F401
from igvg_d2.solver import build_optimizer
from igvg_d2.solver.muon import Muon, orthogonalise, orthogonalise_all, share_out
from igvg_d2.testing import tiny_cfg


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (12, 12)])
def test_singular_values_come_near_one_and_directions_stay(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape) * torch.logspace(-1, 1, shape[1])
    result = orthogonalise(matrix, steps=5)
    values = torch.linalg.svdvals(result)
    assert result.shape == shape and values.min() > 0.3 and values.max() < 1.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    # In the bases of the input the result is diagonal.
    inner = u.T @ result @ v.T
    assert (inner - inner.diag().diag()).abs().max() < 1e-3


def test_matrices_are_orthogonal_groups_and_tables_are_not():
    cfg = tiny_cfg(
        ["SOLVER.OPTIMIZER", "Muon", "SOLVER.MUON_LR", 0.2, "SOLVER.BASE_LR", 0.01]
        + ["SOLVER.BACKBONE_MULTIPLIER", 0.5]
    )
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    names = {id(p): name for name, p in model.named_parameters()}
    rule = {names[id(p)]: g for g in optimizer.param_groups for p in g["params"]}
    assert rule.keys() == set(names.values())
    assert rule["backbone.encoder.layers.0.text.fc1.weight"]["lr"] == pytest.approx(0.1)
    assert rule["pixel_decoder.stages.0.0.weight"]["lr"] == pytest.approx(0.2)
    assert rule["backbone.text_embed.tokens.weight"]["lr"] == pytest.approx(0.005)
    for name, group in rule.items():
        adam = (
            name.endswith((".bias", "norm.weight", "positions", "tokens.weight", "cls_token"))
            or "class_embed" in name
            or "vision_embed.proj" in name  # three input channels
        )
        if adam:
            assert not group["orthogonal"], name
    assert sum(group["orthogonal"] for group in rule.values()) > 20


def test_the_other_rule_is_adamw():
    torch.manual_seed(0)
    start, gradients = torch.randn(5), torch.randn(6, 5)
    results = []
    for kind in (Muon, torch.optim.AdamW):
        p = nn.Parameter(start.clone())
        optimizer = kind([p], lr=0.1, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.05)
        for gradient in gradients:
            p.grad = gradient.clone()
            optimizer.step()
        results.append(p.detach())
    torch.testing.assert_close(*results, atol=1e-6, rtol=1e-5)


def test_one_orthogonal_step_by_hand():
    p = nn.Parameter(torch.ones(2, 2, 1, 1))
    optimizer = Muon([{"params": [p], "orthogonal": True}], lr=0.1, weight_decay=0.5)
    p.grad = torch.tensor([[3.0, 0.0], [0.0, -1.0]]).reshape(2, 2, 1, 1)
    optimizer.step()
    step = (0.95 * torch.ones(2, 2) - p.detach()[..., 0, 0]) / 0.1
    # Both directions get nearly the same size, whatever their gradients' sizes.
    assert step[0, 1] == pytest.approx(0.0, abs=1e-5)
    assert 0.6 < step[0, 0] < 1.25 and -1.25 < step[1, 1] < -0.6


def test_parameters_without_gradient_stay_and_state_survives_saving():
    model = nn.Linear(16, 16)
    still = nn.Parameter(torch.ones(3))
    groups = [
        {"params": [model.weight], "orthogonal": True},
        {"params": [model.bias, still]},
    ]
    optimizer = Muon(groups, lr=0.1)
    model(torch.randn(4, 16)).square().sum().backward()
    optimizer.step()
    assert torch.equal(still, torch.ones(3)) and still not in optimizer.state
    copy = Muon(groups, lr=0.3)
    copy.load_state_dict(optimizer.state_dict())
    before = model.weight.detach().clone()
    copy.step()
    changed = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.copy_(before)
    optimizer.state[model.weight]["momentum_buffer"].copy_(
        torch.lerp(torch.zeros(16, 16), model.weight.grad, 0.05)
    )
    optimizer.step()
    torch.testing.assert_close(model.weight, changed)


def test_work_is_shared_out_evenly():
    assert share_out([5, 1, 4, 1, 1], 2) == [0, 1, 1, 0, 1]
    assert share_out([3, 2], 3) == [0, 1]
    assert share_out([], 2) == []


def some_matrices():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in ((5, 9), (12, 4), (3, 3))]


def test_processes_that_share_the_work_get_what_one_gets(in_two_processes):
    results = in_two_processes(
        lambda rank: [m.numpy() for m in orthogonalise_all(some_matrices(), 4)]
    )
    for result in results:
        for found, matrix in zip(result, some_matrices()):
            assert torch.equal(torch.from_numpy(found), orthogonalise(matrix, 4))
