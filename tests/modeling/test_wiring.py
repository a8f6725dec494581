"""What the parts compute, against their formulas written out: decoder, predictors, dense branch."""

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from igvg_d2.modeling import build_neck, build_pixel_decoder, build_transformer_decoder
from igvg_d2.modeling.grounding_head import (
    ClassBoxPredictor,
    MaskPredictor,
    ReferencePredictor,
)
from igvg_d2.modeling.layer_norm import LayerNorm2d
from igvg_d2.modeling.losses import NUM_POINTS
from igvg_d2.modeling.transformer import MLP, MSDeformAttn, ms_deform_attn_core
from igvg_d2.modeling.transformer.deformable_decoder import DeformableDecoderLayer
from igvg_d2.modeling.transformer.detr_decoder import DETRDecoderLayer
from igvg_d2.testing import random_batch, tiny_cfg

SHAPES = [(3, 6), (2, 4)]


@pytest.fixture(autouse=True)
def same_random_numbers():
    torch.manual_seed(0)


def randomise(module):
    """Random parameters: zeros and ones of the initialisation hide mistakes."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.double().eval()


def randn(*size):
    return torch.randn(size, dtype=torch.float64)


def test_offsets_are_in_cells_of_their_level():
    layer = randomise(MSDeformAttn(8, 2, 2, 3))
    query, points, memory = randn(1, 2, 8), torch.rand(1, 2, 2).double(), randn(1, 26, 8)
    offsets = layer.sampling_offsets(query).view(1, 2, 2, 2, 3, 2)
    weights = layer.attention_weights(query).view(1, 2, 2, 6).softmax(-1).view(1, 2, 2, 2, 3)
    locations = torch.empty_like(offsets)
    for level, (height, width) in enumerate(SHAPES):
        for axis, cells in enumerate((width, height)):
            start = points[:, :, None, None, axis]
            locations[:, :, :, level, :, axis] = start + offsets[:, :, :, level, :, axis] / cells
    value = layer.value_proj(memory).view(1, 26, 2, 4)
    expected = layer.output_proj(ms_deform_attn_core(value, SHAPES, locations, weights))
    torch.testing.assert_close(layer(query, points, memory, SHAPES), expected)


def test_heads_start_in_different_directions_at_growing_distances():
    layer = MSDeformAttn(8, 1, 4, 2)
    offsets = layer.sampling_offsets(torch.zeros(1, 8)).view(4, 2, 2)
    expected = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    torch.testing.assert_close(offsets[:, 0], expected)
    torch.testing.assert_close(offsets[:, 1], 2 * expected)


def test_deformable_layer_is_post_norm_with_positions_in_queries_and_keys():
    layer = randomise(DeformableDecoderLayer(8, 2, 12, 0.1, 2, 3))
    x, pos, memory = randn(2, 3, 8), randn(2, 3, 8), randn(2, 26, 8)
    points = torch.rand(2, 3, 2).double()
    attn = layer.self_attn
    y = attn.norm(x + attn.attn(x + pos, x + pos, x)[0])
    y = layer.norm(y + layer.cross_attn(y + pos, points, memory, SHAPES))
    y = layer.ffn.norm(y + layer.ffn.linear2(F.relu(layer.ffn.linear1(y))))
    torch.testing.assert_close(layer(x, pos, points, memory, SHAPES), y)


def test_detr_layer_attends_to_the_whole_memory():
    layer = randomise(DETRDecoderLayer(8, 2, 12, 0.1))
    x, pos, key, value = randn(2, 3, 8), randn(2, 3, 8), randn(2, 5, 8), randn(2, 5, 8)
    y = layer.self_attn(x, pos)
    y = layer.norm(y + layer.cross_attn(y + pos, key, value)[0])
    torch.testing.assert_close(layer(x, pos, key, value), layer.ffn(y))


def test_detr_decoder_knows_where_a_cell_is():
    opts = [
        "MODEL.GROUNDING_HEAD.DECODER",
        "DETRDecoder",
        "MODEL.GROUNDING_HEAD.IN_FEATURES",
        ["p4"],
    ]
    decoder = build_transformer_decoder(tiny_cfg(opts), {"p4": ShapeSpec(32, stride=16)}).eval()
    query, pos, level = torch.randn(1, 4, 32), torch.randn(1, 4, 32), torch.randn(1, 32, 2, 3)
    states = decoder(query, pos, torch.rand(1, 4, 2), [level])
    mirrored = decoder(query, pos, torch.rand(1, 4, 2), [level.flip(3)])
    assert not torch.allclose(states, mirrored, atol=1e-4)


def test_boxes_are_relative_to_the_reference_point():
    predictor = ClassBoxPredictor(8)
    points = torch.tensor([[[0.25, 0.75], [0.0, 1.2]]])
    logits, boxes = predictor(torch.randn(3, 1, 2, 8), points)
    assert tuple(logits.shape) == (3, 1, 2, 2) and tuple(boxes.shape) == (3, 1, 2, 4)
    small = 1 / (1 + math.exp(2))
    # Untrained: centered at the point, which stays 0.001 inside the image.
    expected = torch.tensor([[0.25, 0.75, small, small], [0.001, 0.999, small, small]])
    torch.testing.assert_close(boxes[0, 0], expected, atol=1e-5, rtol=0)
    with torch.no_grad():
        predictor.box_embed.layers[-1].bias.copy_(torch.tensor([math.log(3), 0.0, 0.0, 1.0]))
    moved = predictor(torch.randn(1, 2, 8), points)[1][0, 0]
    # Odds of the x center tripled: 1/3 * 3 = 1.
    expected = torch.tensor([0.5, 0.75, 0.5, 1 / (1 + math.exp(-1))])
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=0)
    # At and beyond the border each side of the odds is clamped: 1 / 0.001 and 0.001 / 1.
    with torch.no_grad():
        predictor.box_embed.layers[-1].bias.copy_(torch.tensor([-5.0, 5.0, 0.0, 0.0]))
    border = predictor(torch.zeros(1, 1, 8), torch.tensor([[[1.3, 0.0]]]))[1][0, 0, :2]
    odds = torch.tensor([1000 * math.exp(-5), 0.001 * math.exp(5)])
    torch.testing.assert_close(border, odds / (1 + odds), atol=1e-6, rtol=0)


def test_reference_points_of_the_three_modes():
    points, query_pos = torch.tensor([[[0.9, 0.2]]]), torch.zeros(1, 1, 8)
    assert ReferencePredictor(8, "point")(points, query_pos) is points
    shift = 1 / (1 + math.exp(4))
    shifted = ReferencePredictor(8, "shifted")(points, query_pos)
    torch.testing.assert_close(shifted, points + shift)
    assert ReferencePredictor(8, "learned")(points, query_pos).tolist() == [[[0.5, 0.5]]]


def test_masks_are_dot_products_of_queries_and_pixels():
    states, pixels = torch.randn(2, 3, 4), torch.randn(2, 4, 2, 5)
    masks = MaskPredictor(4, 4)(states, pixels)
    assert masks[1, 2, 0, 3].item() == pytest.approx(float(states[1, 2] @ pixels[1, :, 0, 3]))
    assert list(MaskPredictor(4, 4).parameters()) == []
    bridged = MaskPredictor(6, 4)
    states = torch.randn(2, 3, 6)
    expected = bridged.mask_embed(states)[0, 1] @ pixels[0, :, 1, 4]
    assert bridged(states, pixels)[0, 1, 1, 4].item() == pytest.approx(expected.item(), abs=1e-6)


def test_mlp_has_no_activation_at_its_end():
    mlp = MLP(2, 3, 1, 2)
    x = torch.randn(5, 2)
    first, last = mlp.layers
    torch.testing.assert_close(mlp(x), last(F.relu(first(x))))
    assert len(MLP(2, 3, 1, 1).layers) == 1


def test_layer_norm_of_maps_is_over_channels():
    norm = LayerNorm2d(4)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 4, 3, 5)
    centered = x - x.mean(dim=1, keepdim=True)
    expected = centered / (x.var(dim=1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    expected = expected * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), expected)


def pyramid(height=2, width=3, batch=2):
    return {
        f"p{i}": torch.randn(batch, 32, height * 2 ** (5 - i), width * 2 ** (5 - i))
        for i in (2, 3, 4, 5)
    }


@pytest.mark.parametrize("align_corners", [False, True])
def test_unet_concatenates_the_running_map_before_the_skip(align_corners):
    shapes = {f"p{i}": ShapeSpec(channels=32, stride=2**i) for i in (2, 3, 4, 5)}
    cfg = tiny_cfg(["MODEL.IGVG.ALIGN_CORNERS", align_corners])
    decoder = build_pixel_decoder(cfg, shapes).eval()
    features = pyramid()
    x = features["p5"]
    for stage, name in zip(decoder.stages, ("p4", "p3", "p2")):
        size = features[name].shape[-2:]
        x = F.interpolate(x, size, mode="bilinear", align_corners=align_corners)
        x = torch.cat([x, features[name]], dim=1)
        for conv in stage:
            x = F.relu(conv.norm(F.conv2d(x, conv.weight, conv.bias, padding=1)))
    torch.testing.assert_close(decoder(features), x)


def test_simfpn_levels_come_from_the_token_grid_alone():
    shapes = {"last_feat": ShapeSpec(channels=32, stride=16)}
    neck = build_neck(tiny_cfg(), shapes)
    assert {name: shape.stride for name, shape in neck.output_shape().items()} == {
        "p2": 4, "p3": 8, "p4": 16, "p5": 32,
    }  # fmt: skip
    x = torch.randn(2, 32, 4, 6)
    levels = neck({"last_feat": x})
    torch.testing.assert_close(levels["p4"], neck.output[2](neck.lateral[2](x)))
    pooled = F.max_pool2d(x, 2)
    torch.testing.assert_close(levels["p5"], neck.output[3](neck.lateral[3](pooled)))
    p3 = neck.lateral[1](neck.scale_p3(x))
    torch.testing.assert_close(levels["p3"], neck.output[1](p3))


def test_images_are_normalised_and_texts_padded_to_the_longest():
    model = build_model(tiny_cfg())
    batch = random_batch([0, 0], size=(16, 32), lengths=(3, 5))
    images = model.preprocess_image(batch)
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    expected = (batch[1]["image"].float() - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(images[1], expected)
    ids, padding, has_padding = model.preprocess_text(batch)
    assert ids[0].tolist() == [*batch[0]["text_ids"].tolist(), 1, 1] and has_padding
    assert padding.tolist() == [[False] * 3 + [True] * 2, [False] * 5]
    assert model.preprocess_text(batch[1:])[2] is False


class Spy(torch.nn.Module):
    """Keeps the arguments of a module's calls."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args):
        self.args = args
        return self.module(*args)


@pytest.mark.parametrize(
    "resolution, expected", [("image", (64, 64)), ("feature", (16, 16)), ("points", (64, 64))]
)
def test_masks_are_supervised_at_the_configured_resolution(resolution, expected):
    model = build_model(tiny_cfg(["MODEL.IGVG.MASK_LOSS_RESOLUTION", resolution]))
    model.grounding_head, model.global_head = Spy(model.grounding_head), Spy(model.global_head)
    model.query_generator = Spy(model.query_generator)
    with EventStorage():
        model(random_batch([1, 2]))
    for head in (model.grounding_head, model.global_head):
        assert tuple(head.args[-1].masks.shape[-2:]) == expected
    points = NUM_POINTS if resolution == "points" else 0
    assert model.global_head.module.num_points == points
    assert model.grounding_head.module.criterion.num_points == points
    # The minimap is averaged from the image itself.
    assert tuple(model.query_generator.args[-1].masks.shape[-2:]) == (64, 64)
    with pytest.raises(
        ValueError, match="MASK_LOSS_RESOLUTION must be 'image', .*'points', got 'half'"
    ):
        build_model(tiny_cfg(["MODEL.IGVG.MASK_LOSS_RESOLUTION", "half"]))


def test_matcher_sees_the_selected_points_not_the_shifted_ones():
    model = build_model(tiny_cfg(["MODEL.GROUNDING_HEAD.REFERENCE", "shifted"]))
    criterion = model.grounding_head.criterion = Spy(model.grounding_head.criterion)
    model.grounding_head.decoder = decoder = Spy(model.grounding_head.decoder)
    with EventStorage():
        model(random_batch([1, 2]))
    points, reference_points = criterion.args[2], decoder.args[2]
    # Centers of the 4 x 4 cells; the references are shifted to the right and down.
    assert torch.equal(points * 4 - 0.5, (points * 4 - 0.5).round())
    assert (reference_points > points).all()
