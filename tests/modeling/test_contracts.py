"""Every registered component keeps its contract; the checks themselves catch broken components."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import nn

from igvg_d2.modeling import (
    GROUNDING_HEAD_REGISTRY,
    NECK_REGISTRY,
    PIXEL_DECODER_REGISTRY,
    QUERY_GENERATOR_REGISTRY,
    TRANSFORMER_DECODER_REGISTRY,
    GroundingQueries,
    build_grounding_head,
    build_neck,
    build_pixel_decoder,
    build_query_generator,
    build_transformer_decoder,
    build_vl_backbone,
)
from igvg_d2.testing import (
    assert_backbone_contract,
    assert_grounding_head_contract,
    assert_losses_contract,
    assert_neck_contract,
    assert_pixel_decoder_contract,
    assert_query_generator_contract,
    tiny_cfg,
)

QUERY, HEAD = "MODEL.QUERY_GENERATOR.", "MODEL.GROUNDING_HEAD."
PYRAMID = {f"p{i}": ShapeSpec(channels=32, stride=2**i) for i in (2, 3, 4, 5)}


@pytest.fixture(autouse=True)
def same_random_numbers():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    "opts", [[], ["MODEL.BEIT3.PATCH_SIZE", 8], ["MODEL.BEIT3.CHECKPOINTING", True]]
)
def test_backbone(opts):
    assert_backbone_contract(build_vl_backbone(tiny_cfg(opts)))


def test_a_parameter_that_serves_pooled_alone_is_found():
    backbone = build_vl_backbone(tiny_cfg())
    assert backbone.convert_weights({"another": torch.zeros(1)}) is None
    backbone.pooler = nn.Linear(32, 32)
    plain = backbone.forward

    def pooled(*args):
        features = plain(*args)
        features.pooled = backbone.pooler(features.pooled)
        return features

    backbone.forward = pooled
    with pytest.raises(AssertionError, match="without a gradient: .'pooler.weight'"):
        assert_backbone_contract(backbone)


def test_another_kind_of_backbone_is_refused():
    cfg = tiny_cfg(["MODEL.BACKBONE.NAME", "build_resnet_backbone"])
    with pytest.raises(TypeError, match="builds a ResNet.*VisionLanguageBackbone"):
        build_vl_backbone(cfg)


def token_shapes(patch_size=16):
    return {"last_feat": ShapeSpec(channels=32, stride=patch_size)}


@pytest.mark.parametrize("patch_size", [16, 8])
@pytest.mark.parametrize("name", [name for name, _ in NECK_REGISTRY])
def test_neck(name, patch_size):
    shapes = token_shapes(patch_size)
    assert_neck_contract(build_neck(tiny_cfg(["MODEL.NECK.NAME", name]), shapes), shapes)


@pytest.mark.parametrize("name", [name for name, _ in PIXEL_DECODER_REGISTRY])
@pytest.mark.parametrize("norm", ["BN", ""])
def test_pixel_decoder(name, norm):
    cfg = tiny_cfg(["MODEL.PIXEL_DECODER.NAME", name, "MODEL.PIXEL_DECODER.NORM", norm])
    assert_pixel_decoder_contract(build_pixel_decoder(cfg, PYRAMID), PYRAMID)


@pytest.mark.parametrize("grid", [(3, 5), (1, 2), (7, 4)])
@pytest.mark.parametrize("align_corners", [False, True])
def test_odd_grids_pass_through_neck_and_pixel_decoder(grid, align_corners):
    cfg = tiny_cfg(["MODEL.IGVG.ALIGN_CORNERS", align_corners])
    neck = build_neck(cfg, token_shapes())
    if min(grid) < 2:  # p5 would be empty
        grid = (2, 3)
    features = neck({"last_feat": torch.randn(2, 32, *grid)})
    height, width = grid
    assert [tuple(x.shape[2:]) for x in features.values()] == [
        (4 * height, 4 * width), (2 * height, 2 * width), grid, (height // 2, width // 2),
    ]  # fmt: skip
    masks = build_pixel_decoder(cfg, neck.output_shape())(features)
    assert tuple(masks.shape) == (2, 16, 4 * height, 4 * width)
    assert (masks >= 0).all()


GENERATORS = {name: [QUERY + "NAME", name] for name, _ in QUERY_GENERATOR_REGISTRY}
GENERATORS.update(
    {
        "sts_off": [QUERY + "TEXT_SELECTION", "off"],
        "sts_mean": [QUERY + "TEXT_SCORE", "mean"],
        "decoder_layer": [QUERY + "ATTENTION", "decoder_layer"],
        "max_logits": [QUERY + "POOL", "max", QUERY + "MAP", "logits"],
        "topk": [QUERY + "SELECTOR", "topk"],
        "no_itq": [QUERY + "INJECT_TEXT", False],
        "no_itq_decoder_layer": [
            QUERY + "INJECT_TEXT",
            False,
            QUERY + "ATTENTION",
            "decoder_layer",
        ],
        "no_minimap": [QUERY + "MINIMAP_WEIGHT", 0.0],
        "nearest": [QUERY + "MINIMAP_TARGET", "nearest", QUERY + "DIST_UNIT", "diagonal"],
        "one_query": [QUERY + "NUM_OBJECT_QUERIES", 1],
        "more_queries_than_words": [QUERY + "NUM_OBJECT_QUERIES", 12],
    }
)


@pytest.mark.parametrize("name", GENERATORS)
def test_query_generator(name):
    # Dropout would make the maps of a training pass exceed 1.
    cfg = tiny_cfg([*GENERATORS[name], QUERY + "DROPOUT", 0.0])
    generator = build_query_generator(cfg)
    num_queries = cfg.MODEL.QUERY_GENERATOR.NUM_OBJECT_QUERIES
    assert_query_generator_contract(generator, dim=32, num_queries=num_queries)


@pytest.mark.parametrize("key", ["TEXT_SELECTION", "TEXT_SCORE", "ATTENTION", "MAP", "POOL",
                                 "SELECTOR", "DIST_UNIT", "MINIMAP_TARGET"])  # fmt: skip
def test_unknown_options_of_the_query_generator_are_refused(key):
    with pytest.raises(ValueError, match="must be.*'nonsense'"):
        generator = build_query_generator(tiny_cfg([QUERY + key, "nonsense"]))
        assert_query_generator_contract(generator, dim=32, num_queries=4)


def test_query_generator_that_nothing_trains_is_refused():
    with pytest.raises(ValueError, match="INJECT_TEXT to True or MINIMAP_WEIGHT"):
        build_query_generator(
            tiny_cfg([QUERY + "INJECT_TEXT", False, QUERY + "MINIMAP_WEIGHT", 0.0])
        )
    with pytest.raises(ValueError, match="not divisible"):
        build_query_generator(tiny_cfg([QUERY + "NHEADS", 5]))


HEADS = {name: [HEAD + "NAME", name] for name, _ in GROUNDING_HEAD_REGISTRY}
HEADS.update(
    {
        "detr": [HEAD + "DECODER", "DETRDecoder", HEAD + "IN_FEATURES", ["p4"]],
        "single_scale": [HEAD + "IN_FEATURES", ["p4"]],
        "shifted": [HEAD + "REFERENCE", "shifted"],
        "learned": [HEAD + "REFERENCE", "learned"],
        "no_masks": [HEAD + "MASK_ON", False],
        "no_negatives": [HEAD + "NEGATIVE_WEIGHT", 0.0],
        "aux_ones": [HEAD + "AUX_WEIGHTS", "ones"],
        "one_layer": [HEAD + "DEC_LAYERS", 1],
        "prob": [HEAD + "MATCHER.CLASS_COST", "prob"],
    }
)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("mask_dim", [32, 16])
def test_grounding_head(name, mask_dim):
    head = build_grounding_head(tiny_cfg(HEADS[name]), PYRAMID, mask_dim)
    assert_grounding_head_contract(head, PYRAMID, dim=32, mask_dim=mask_dim)


@pytest.mark.parametrize(
    "opts, message",
    [
        ([HEAD + "REFERENCE", "x"], "REFERENCE"),
        ([HEAD + "AUX_WEIGHTS", "x"], "AUX_WEIGHTS"),
        ([HEAD + "MATCHER.CLASS_COST", "x"], "CLASS_COST"),
        ([HEAD + "DECODER", "DETRDecoder"], "one level"),
        ([HEAD + "IN_FEATURES", ["p7"]], "'p7' has None channels"),
        (["MODEL.IGVG.HIDDEN_DIM", 48], "'p2' has 32 channels.*48"),
        ([HEAD + "NHEADS", 5], "not divisible"),
    ],
)
def test_wrong_options_of_the_head_are_refused(opts, message):
    with pytest.raises(ValueError, match=message):
        build_grounding_head(tiny_cfg(opts), PYRAMID, 16)


@pytest.mark.parametrize("name", [name for name, _ in TRANSFORMER_DECODER_REGISTRY])
def test_decoder_returns_the_states_of_every_layer(name):
    cfg = tiny_cfg([HEAD + "DECODER", name, HEAD + "IN_FEATURES", ["p4"], HEAD + "DEC_LAYERS", 3])
    decoder = build_transformer_decoder(cfg, PYRAMID)
    states = decoder(
        torch.randn(2, 5, 32),
        torch.randn(2, 5, 32),
        torch.rand(2, 5, 2),
        [torch.randn(2, 32, 3, 4)],
    )
    assert tuple(states.shape) == (3, 2, 5, 32)


class BrokenGenerator(nn.Module):
    """Does one thing wrong."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault
        self.features = nn.Parameter(torch.randn(4, 32))
        if fault == "gradient":
            self.idle = nn.Linear(2, 2)

    def forward(self, vl_features, targets=None):
        text = vl_features.text if self.fault == "depend" else vl_features.text * 0
        text = text.detach() if self.fault == "text has no gradient" else text
        features = self.features + text.mean(dim=1, keepdim=True)
        points = torch.full((len(text), 4, 2), 1.5 if self.fault == "reference_points" else 0.5)
        losses = {}
        if targets is not None or self.fault == "without targets":
            losses["loss_a"] = features.sum()
            if self.fault == "must not depend" and sum(targets.num_targets):
                losses["loss_b"] = features.sum()
            if self.fault == "must start":
                losses = {"a": features.sum()}
            if self.fault == "scalar":
                losses["loss_a"] = features
        return GroundingQueries(features, points), losses


@pytest.mark.parametrize(
    "fault",
    [
        *("gradient", "text has no gradient", "depend", "reference_points"),
        *("without targets", "must not depend", "must start"),
    ],
)
def test_contract_check_finds_the_fault(fault):
    with pytest.raises(AssertionError, match=fault):
        assert_query_generator_contract(BrokenGenerator(fault), dim=32, num_queries=4)
    assert_query_generator_contract(BrokenGenerator(None), dim=32, num_queries=4)


def test_losses_check_finds_infinite_and_shaped_losses():
    fine = {"loss_a": torch.tensor(1.0)}
    assert_losses_contract(fine, fine, {})
    for value in (torch.tensor(float("nan")), torch.ones(2), torch.ones((), dtype=torch.bfloat16)):
        with pytest.raises(AssertionError, match="loss_a"):
            assert_losses_contract({"loss_a": value}, fine, {})
