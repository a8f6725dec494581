"""Options of the recipe: layer-wise decay and a frozen word table."""

import pytest
from detectron2.modeling import build_model

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


def test_wrong_decays_are_named():
    for decay in (0.0, 1.5):
        with pytest.raises(ValueError, match="SOLVER.LAYER_DECAY: expected"):
            layer_decay_factors([], decay)
    two = ["backbone.image.blocks.0.weight", "backbone.text.layers.0.weight"]
    for names, found in (
        (["backbone.other.weight"], r"found \[\]"),
        (two, "image.blocks.*text.layers"),
    ):
        with pytest.raises(ValueError, match=found):
            layer_decay_factors(names, 0.9)
    assert layer_decay_factors(["other"], 1.0)("other") == 1.0


def test_layers_of_other_encoders_are_found():
    """By the order of the parameters, whatever stands around the list is called."""
    names = [
        *("backbone.vit2.embeddings.cls_token", "backbone.vit2.encoder.layer.0.mlp.layers.7.bias"),
        *("backbone.vit2.encoder.layer.1.attention.weight", "backbone.vit2.layernorm.weight"),
        "neck.layers.0.weight",
    ]
    assert list(map(layer_decay_factors(names, 0.5), names)) == [0.125, 0.25, 0.5, 1.0, 1.0]


def test_frozen_word_table():
    rates = learning_rates("MODEL.FREEZE", ["backbone.text_embed.tokens."])
    assert TOKENS not in rates and "backbone.text_embed.positions" in rates
