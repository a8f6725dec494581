"""Query generation in detail: text selection, positions, maps, minimap supervision, points."""

import math

import pytest
import torch

from igvg_d2.modeling import build_query_generator
from igvg_d2.modeling.backbone import VLFeatures
from igvg_d2.modeling.losses import dice_loss, mask_bce_loss
from igvg_d2.modeling.query_generator import select_points
from igvg_d2.modeling.query_generator.point_guided import TextToImageAttention
from igvg_d2.modeling.query_generator.selection import select_channels, select_text
from igvg_d2.modeling.transformer import PositionEmbeddingSine
from igvg_d2.testing import random_targets, random_vl_features, tiny_cfg

QUERY = "MODEL.QUERY_GENERATOR."


def text_of(*norms):
    """One text whose tokens have the given L2 norms, all in the first channel."""
    text = torch.zeros(1, len(norms), 2)
    text[0, :, 0] = torch.tensor(norms)
    return text


def valid_tokens(length, valid):
    """Padding mask of one text."""
    return (torch.arange(length) >= valid)[None]


@pytest.mark.parametrize(
    "valid, expected",
    [
        (4, [9.0, 4.0, 3.0]),  # longer than Q: by descending score
        (3, [4.0, 3.0, 1.0]),  # exactly Q: also by score, the padded 9 never counts
        (2, [1.0, 3.0, 0.0]),  # shorter: reading order, filled up with zeros
        (1, [1.0, 0.0, 0.0]),
    ],
)
def test_text_selection_by_length(valid, expected):
    text = text_of(1.0, 3.0, 4.0, 9.0)
    selected, kept = select_text(text, valid_tokens(4, valid), 3, "l2")
    assert selected[0, :, 0].tolist() == expected
    assert kept[0].tolist() == [True] * min(valid, 3) + [False] * (3 - min(valid, 3))


def test_text_score_is_the_norm_or_the_signed_mean():
    text = text_of(-5.0, 2.0, 1.0)
    assert select_text(text, valid_tokens(3, 3), 2, "l2")[0][0, :, 0].tolist() == [-5.0, 2.0]
    assert select_text(text, valid_tokens(3, 3), 2, "mean")[0][0, :, 0].tolist() == [2.0, 1.0]
    with pytest.raises(ValueError, match="TEXT_SCORE"):
        select_text(text, valid_tokens(3, 3), 2, "x")


def test_selected_tokens_pass_gradients_and_the_rest_does_not():
    text = text_of(1.0, 3.0, 2.0).requires_grad_()
    select_text(text, valid_tokens(3, 3), 2, "l2")[0].sum().backward()
    assert text.grad[0].abs().sum(dim=-1).tolist() == [0.0, 2.0, 2.0]


def test_every_channel_selects_for_itself_in_the_released_variant():
    text = torch.tensor([[[1.0, 6.0], [3.0, 2.0]]])
    assert select_channels(text, 1).tolist() == [[[3.0, 6.0]]]
    assert select_channels(text, 3).tolist() == [[[3.0, 6.0], [1.0, 2.0], [0.0, 0.0]]]
    # Zeros fill up to Q places, never more: a text that is long enough keeps its own tokens.
    assert select_channels(-text, 2).tolist() == [[[-1.0, -2.0], [-3.0, -6.0]]]


def test_position_embedding_of_one_row_and_two_columns():
    embedding = PositionEmbeddingSine(8)(1, 2)
    # Four channels per axis, wavelengths 1 and 100; the row is 1 of 1, the columns 1 and 2 of 2.
    expected = [
        [math.sin(y), math.cos(y), math.sin(y / 100), math.cos(y / 100)]
        + [math.sin(x), math.cos(x), math.sin(x / 100), math.cos(x / 100)]
        for y, x in ((2 * math.pi, math.pi), (2 * math.pi, 2 * math.pi))
    ]
    torch.testing.assert_close(embedding, torch.tensor(expected), atol=1e-5, rtol=0)
    grid = PositionEmbeddingSine(8)(2, 3)
    assert tuple(grid.shape) == (6, 8)
    torch.testing.assert_close(grid[0, :4], grid[2, :4])
    torch.testing.assert_close(grid[0, 4:], grid[3, 4:])
    with pytest.raises(ValueError, match="got 6"):
        PositionEmbeddingSine(6)


def test_ties_go_to_the_first_cell_and_distances_to_the_farthest():
    # Equal scores everywhere: first cell, opposite corner, then twice a distance of sqrt 5, where
    # the earlier of two equally good cells wins: 3 before 11.
    flat = torch.zeros(1, 3, 5)
    assert select_points(flat, 4, 0.1).tolist() == [[0, 14, 3, 11]]
    assert select_points(flat, 3, 0.0).tolist() == [[0, 1, 2]]
    with pytest.raises(ValueError, match="dist_unit"):
        select_points(flat, 2, 0.1, "miles")


def test_points_trade_score_against_distance_in_cells_or_diagonals():
    scores = torch.tensor([[0.9, 0.8, 0.5, 0.7]])
    heatmap = torch.logit(scores)[None]
    # Cells: 0.8 + w, 0.5 + 2w, 0.7 + 3w. w = 0.06 prefers the last; in diagonals (sqrt 17) not.
    assert select_points(heatmap, 2, 0.06, "cells").tolist() == [[0, 3]]
    assert select_points(heatmap, 2, 0.06, "diagonal").tolist() == [[0, 1]]
    assert select_points(heatmap, 4, 0.0).tolist() == [[0, 1, 3, 2]]


def test_all_cells_can_be_selected_and_no_gradient_flows():
    heatmap = torch.randn(2, 2, 3, requires_grad=True)
    indices = select_points(heatmap, 6, 0.1)
    assert [sorted(row) for row in indices.tolist()] == [[0, 1, 2, 3, 4, 5]] * 2
    assert not indices.requires_grad


@pytest.mark.parametrize("decoder_layer", [False, True])
def test_attention_by_a_plain_loop_over_heads(decoder_layer):
    torch.manual_seed(0)
    layer = TextToImageAttention(8, 2, 0.0, decoder_layer, ffn_dim=16).double()
    text, image, pos = (
        torch.randn(shape, dtype=torch.float64) for shape in ((1, 3, 8), (1, 6, 8), (6, 8))
    )
    content = torch.zeros(8, dtype=torch.float64)
    if decoder_layer:
        content = layer.self_norm(layer.self_out_proj(layer.self_value_bias))
    q = layer.query_proj(text[0] + content)
    k, v = layer.key_proj(image[0] + pos), layer.value_proj(image[0])
    maps, heads, logits = [], [], []
    for head in (slice(0, 4), slice(4, 8)):
        logits.append(q[:, head] @ k[:, head].T / 2)
        maps.append(logits[-1].softmax(-1))
        heads.append(maps[-1] @ v[:, head])
    base = content if decoder_layer else text[0]
    expected = layer.norm(base + layer.out_proj(torch.cat(heads, dim=-1)))
    if decoder_layer:
        expected = layer.final_norm(layer.ffn(expected))
    found, weights, dots = layer(text, image, pos)
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(weights[0], (maps[0] + maps[1]) / 2)
    torch.testing.assert_close(dots[0], (logits[0] + logits[1]) / 2)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 3, dtype=torch.float64))


@pytest.mark.parametrize("pool", ["mean", "max"])
@pytest.mark.parametrize("score_map", ["weights", "logits"])
def test_maps_are_pooled_over_valid_tokens_only(pool, score_map):
    torch.manual_seed(0)
    generator = build_query_generator(tiny_cfg([QUERY + "POOL", pool, QUERY + "MAP", score_map]))
    maps = torch.tensor([[[1.0, 4.0], [3.0, 0.0], [9.0, 9.0], [9.0, 9.0]]])
    valid = torch.tensor([[True, True, False, False]])
    expected = [[2.0, 2.0]] if pool == "mean" else [[3.0, 4.0]]
    assert generator._pool(maps, valid).tolist() == expected
    queries = generator.eval()(random_vl_features(32, lengths=(2, 3)))[0]
    sums = queries.attention_map.sum(dim=(1, 2))
    if (pool, score_map) == ("mean", "weights"):  # then the map is a distribution
        torch.testing.assert_close(sums, torch.ones(2))


@pytest.mark.parametrize("mode", ["area", "nearest"])
def test_minimap_is_supervised_by_the_union_on_the_grid(mode):
    cfg = tiny_cfg([QUERY + "MINIMAP_TARGET", mode, QUERY + "MINIMAP_WEIGHT", 0.5])
    generator = build_query_generator(cfg)
    targets = random_targets([1], (4, 4))
    targets.masks = torch.zeros(1, 1, 4, 4)
    targets.masks[0, 0, 0, 1:] = 1.0  # of a 2 x 2 grid: half of a cell, and none or half of it
    grid = {"area": [[0.25, 0.5], [0.0, 0.0]], "nearest": [[0.0, 1.0], [0.0, 0.0]]}[mode]
    heatmap = torch.tensor([[[0.3, -0.2], [0.1, 0.4]]])
    expected = torch.tensor([grid])
    loss = generator._minimap_loss(heatmap, targets)
    torch.testing.assert_close(
        loss, (dice_loss(heatmap, expected) + mask_bce_loss(heatmap, expected))[0]
    )
    features = random_vl_features(32, grid=(2, 2), lengths=(3,))
    losses = generator(features, targets)[1]
    assert set(losses) == {"loss_point_heatmap"}


def test_queries_are_made_of_the_selected_cells_and_words():
    torch.manual_seed(0)
    cfg = tiny_cfg([QUERY + "SELECTOR", "topk", QUERY + "DROPOUT", 0.0])
    generator = build_query_generator(cfg).eval()
    features = random_vl_features(32, grid=(3, 4), lengths=(6, 2))
    queries = generator(features)[0]
    tokens = features.image["last_feat"].flatten(2).transpose(1, 2)
    text, _ = select_text(features.text, features.text_padding_mask, 4, "l2")
    words = generator.attention(text, tokens, generator.position(3, 4))[0]
    for n in range(2):
        indices = queries.attention_map[n].flatten().topk(4).indices
        expected = generator.mlp(torch.cat([words[n], tokens[n, indices]], dim=-1))
        torch.testing.assert_close(queries.features[n], expected)
        x = (indices % 4 + 0.5) / 4
        y = (indices.div(4, rounding_mode="floor") + 0.5) / 3
        torch.testing.assert_close(queries.reference_points[n], torch.stack([x, y], dim=-1))


def test_one_query_reads_the_single_best_word():
    generator = build_query_generator(tiny_cfg([QUERY + "NUM_OBJECT_QUERIES", 1])).eval()
    features = random_vl_features(32, lengths=(5,))
    best = int(features.text[0].norm(dim=-1).argmax())
    alone = VLFeatures(
        features.image, features.text[:, best : best + 1], torch.zeros(1, 1) > 0, features.pooled
    )
    torch.testing.assert_close(generator(features)[0].features, generator(alone)[0].features)
