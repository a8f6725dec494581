"""Options of the recipe: layer-wise decay, frozen and sparse word tables."""

import copy

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

import igvg_d2.modeling  # noqa: F401
from igvg_d2.solver import build_optimizer
from igvg_d2.solver.layer_decay import layer_decay_factors
from igvg_d2.testing import tiny_cfg

TOKENS = "backbone.text_embed.tokens.weight"


def learning_rates(*opts):
    """Parameter name -> learning rate, each exactly once."""
    cfg = tiny_cfg(["SOLVER.BASE_LR", 1.0, *opts])
    model = build_model(cfg)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {}
    for group in build_optimizer(cfg, model).param_groups:
        for p in group["params"]:
            assert names[id(p)] not in found
            found[names[id(p)]] = group["lr"]
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert found.keys() == trainable
    return found


def test_layer_decay_by_hand():
    rates = learning_rates("SOLVER.LAYER_DECAY", 0.5, "SOLVER.BACKBONE_MULTIPLIER", 0.1)
    expected = {
        "backbone.vision_embed.proj.weight": 0.0125,
        "backbone.vision_embed.cls_token": 0.0125,
        TOKENS: 0.0125,
        "backbone.encoder.layers.0.vision.fc1.weight": 0.025,
        "backbone.encoder.layers.1.text.qkv.bias": 0.05,
        "backbone.encoder.vision_norm.weight": 0.1,
        "neck.lateral.0.norm.weight": 1.0,
        "text_projection.weight": 1.0,
    }
    for name, rate in expected.items():
        assert rates[name] == pytest.approx(rate), name
    plain = learning_rates("SOLVER.BACKBONE_MULTIPLIER", 0.1)
    assert set(plain.values()) == {0.1, 1.0}


def test_muon_knows_the_decay():
    rates = learning_rates(
        *("SOLVER.OPTIMIZER", "Muon", "SOLVER.MUON_LR", 2.0, "SOLVER.LAYER_DECAY", 0.5)
    )
    assert rates["backbone.encoder.layers.0.vision.fc1.weight"] == pytest.approx(0.5)
    assert rates["backbone.encoder.layers.0.vision.fc1.bias"] == pytest.approx(0.25)


def test_wrong_decays_are_named():
    for decay in (0.0, 1.5):
        with pytest.raises(ValueError, match="SOLVER.LAYER_DECAY: expected"):
            layer_decay_factors([], decay)
    with pytest.raises(ValueError, match="backbone.encoder.layers"):
        layer_decay_factors(["backbone.other.weight"], 0.9)
    assert layer_decay_factors(["other"], 1.0)("other") == 1.0


@pytest.mark.parametrize("name, amsgrad", [("Adam", True), ("AdamW", True), ("AdamW", False)])
def test_sparse_steps_equal_dense_ones_where_every_row_is_touched(name, amsgrad):
    """Averages of a row that no batch leaves out are those of the dense optimizer."""
    opts = ["SOLVER.OPTIMIZER", name, "SOLVER.AMSGRAD", amsgrad, "SOLVER.CLIP_TOTAL_NORM", 0.3]
    cfg = tiny_cfg(["SOLVER.BASE_LR", 0.1, "SOLVER.WEIGHT_DECAY", 0.0, *opts])
    tables = []
    for sparse in (False, True):
        torch.manual_seed(0)
        model = nn.ModuleDict({"table": nn.Embedding(6, 3, sparse=sparse), "out": nn.Linear(3, 1)})
        optimizer = build_optimizer(cfg, model)
        for words in ([0, 1, 2, 3, 4, 5, 5, 5], [5, 4, 3, 2, 1, 0, 0, 1]) * 3:
            optimizer.zero_grad()
            model["out"](model["table"](torch.tensor(words))).square().sum().backward()
            assert model["table"].weight.grad.is_sparse is sparse
            optimizer.step()
        tables.append((model["table"].weight.detach(), model["out"].weight.detach()))
    for dense, sparse in zip(*tables):
        torch.testing.assert_close(sparse, dense)


def test_untouched_rows_rest_and_state_is_saved():
    cfg = tiny_cfg(["SOLVER.BASE_LR", 0.1, "SOLVER.WEIGHT_DECAY", 0.5])
    table = nn.Embedding(6, 3, sparse=True)
    before = table.weight.detach().clone()
    optimizer = build_optimizer(cfg, table)
    for _ in range(3):
        optimizer.zero_grad()
        table(torch.tensor([1, 4])).sum().backward()
        optimizer.step()
    moved = (table.weight != before).any(dim=1)
    assert moved.tolist() == [False, True, False, False, True, False]
    other = nn.Embedding(6, 3, sparse=True)
    other.load_state_dict(table.state_dict())
    continued = build_optimizer(cfg, other)
    continued.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for layer, solver in ((table, optimizer), (other, continued)):
        solver.zero_grad()
        layer(torch.tensor([1, 2])).sum().backward()
        solver.step()
    assert torch.equal(table.weight, other.weight)
    assert float(continued.state[other.weight]["step"]) == 4
