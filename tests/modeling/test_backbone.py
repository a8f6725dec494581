"""BEiT-3 in detail: positions, stochastic depth, padding, limits."""

import pytest
import torch
import torch.nn.functional as F

from igvg_d2.modeling import build_vl_backbone
from igvg_d2.modeling.backbone.beit3 import TextEmbedding, interpolate_positions
from igvg_d2.modeling.backbone.multiway import MultiwayBlock, MultiwayEncoder
from igvg_d2.testing import tiny_cfg

BEIT3 = "MODEL.BEIT3."


@pytest.fixture(autouse=True)
def same_random_numbers():
    torch.manual_seed(0)


def make_encoder(drop_path=0.0, checkpointing=False):
    return MultiwayEncoder(8, 3, 2, 12, drop_path, checkpointing)


def reference_block(block, image, text, visible):
    """One layer of BEiT-3 as the paper writes it, one head and one token at a time."""
    experts = [block.vision] * len(image) + [block.text] * len(text)
    x = torch.cat([image, text])
    normed = [expert.attn_norm(token) for expert, token in zip(experts, x)]
    qkv = torch.stack([expert.qkv(token) for expert, token in zip(experts, normed)])
    width = x.shape[1] // block.num_heads
    heads = torch.zeros_like(x)
    for head in range(block.num_heads):
        columns = slice(head * width, (head + 1) * width)
        q, k, v = (part[:, columns] for part in qkv.split(x.shape[1], dim=1))
        for token in range(len(x)):
            scores = (k[visible] @ q[token]) / width**0.5
            heads[token, columns] = scores.softmax(0) @ v[visible]
    out = []
    for expert, token, head in zip(experts, x, heads):
        token = token + expert.out_proj(expert.inner_norm(head))
        hidden = expert.ffn_inner_norm(F.gelu(expert.fc1(expert.ffn_norm(token))))
        out.append(token + expert.fc2(hidden))
    return torch.stack(out).split([len(image), len(text)])


def test_multiway_layer_by_a_plain_loop():
    block = MultiwayBlock(8, 2, 12, 0.0).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    image, text = torch.randn(2, 5, 8).double(), torch.randn(2, 4, 8).double()
    visible = torch.ones(2, 9, dtype=torch.bool)
    visible[1, 7:] = False
    found = block(image, text, visible[:, None, None])
    for n in range(2):
        expected = reference_block(block, image[n], text[n], visible[n])
        torch.testing.assert_close(found[0][n], expected[0])
        torch.testing.assert_close(found[1][n], expected[1])


def test_position_table_is_resized_as_an_image():
    table = torch.arange(12.0).reshape(1, 6, 2)
    resized = interpolate_positions(table, (2, 3), (4, 6)).reshape(4, 6, 2)
    image = F.interpolate(
        table.reshape(2, 3, 2).permute(2, 0, 1)[None], (4, 6), mode="bicubic", align_corners=False
    )
    torch.testing.assert_close(resized, image[0].permute(1, 2, 0))
    half = interpolate_positions(table.to(torch.bfloat16), (2, 3), (3, 2))
    assert half.dtype == torch.bfloat16 and tuple(half.shape) == (1, 6, 2)


def test_images_larger_than_in_pretraining_use_the_resized_table():
    backbone = build_vl_backbone(tiny_cfg([BEIT3 + "PRETRAIN_IMAGE_SIZE", (32, 48)])).eval()
    embed = backbone.vision_embed
    assert tuple(embed.positions.shape) == (1, 6, 32)
    images = torch.zeros(1, 3, 64, 48)
    tokens, grid, *_ = embed(images)
    assert grid == (4, 3) and tuple(tokens.shape) == (1, 13, 32)
    expected = embed.proj.bias + interpolate_positions(embed.positions, (2, 3), (4, 3))
    torch.testing.assert_close(tokens[:, 1:], expected)


def test_drop_path_acts_in_training_only_and_skips_whole_samples():
    encoder = make_encoder(drop_path=0.9)
    image, text = torch.randn(64, 3, 8), torch.randn(64, 2, 8)
    rates = [layer.drop_path for layer in encoder.layers]
    assert rates == pytest.approx([0.0, 0.45, 0.9])
    last = encoder.layers[-1]
    new_image, new_text = last(image, text, None)
    skipped = (new_image == image).flatten(1).all(dim=1)
    # Both branches are skipped with probability 0.81; image and text of a sample together.
    assert 30 <= int(skipped.sum()) < 64
    assert torch.equal(skipped, (new_text == text).flatten(1).all(dim=1))
    encoder.eval()
    first, again = encoder(image, text, None), encoder(image, text, None)
    unchanged = (last(image, text, None)[0] == image).flatten(1).all(dim=1)
    assert torch.equal(first[0], again[0]) and not unchanged.any()


def test_expectation_of_a_dropped_branch_is_the_branch():
    block = MultiwayBlock(8, 2, 12, 0.25)
    keep = block._keep_factor(torch.zeros(4000, 3, 8))
    assert keep.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert float(keep.mean()) == pytest.approx(1.0, abs=0.05)


def test_checkpointing_repeats_the_same_stochastic_depth():
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        encoder = make_encoder(0.5, checkpointing)
        image = torch.ones(6, 3, 8, requires_grad=True)
        out = encoder(image + torch.randn(6, 3, 8), torch.randn(6, 2, 8), None)
        # Not plain sums: of a LayerNorm's output they are constant, their gradient is rounding.
        sum((x * torch.linspace(1, 2, x.numel()).view_as(x)).sum() for x in out).backward()
        gradients.append([image.grad, *(p.grad for p in encoder.parameters())])
    for plain, recomputed in zip(*gradients):
        torch.testing.assert_close(plain, recomputed)


def test_padded_words_are_zero_and_long_texts_are_refused():
    embedding = TextEmbedding(10, 4, 3)
    ids, padding = torch.tensor([[0, 5, 1]]), torch.tensor([[False, False, True]])
    words = embedding(ids, padding)
    torch.testing.assert_close(words[0, 1], embedding.tokens.weight[5] + embedding.positions[0, 1])
    assert not words[0, 2].any()
    with pytest.raises(ValueError, match="4 tokens exceeds.*= 3.*MAX_TOKENS"):
        embedding(torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.bool))


def test_promise_of_no_padding_changes_nothing():
    backbone = build_vl_backbone(tiny_cfg()).eval()
    images, ids = torch.randn(2, 3, 32, 48), torch.randint(4, 60, (2, 5))
    padding = torch.zeros(2, 5, dtype=torch.bool)
    masked, unmasked = (backbone(images, ids, padding, flag) for flag in (True, False))
    torch.testing.assert_close(masked.text, unmasked.text)
    torch.testing.assert_close(masked.image["last_feat"], unmasked.image["last_feat"])


def test_every_word_reaches_the_image_and_every_pixel_the_words():
    """In float64 and relative to the largest: an influence is far above rounding, or it is 0."""
    backbone = build_vl_backbone(tiny_cfg()).eval().double()
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    padding = torch.zeros(1, 3, dtype=torch.bool)

    def features(images, word):
        return backbone(images, torch.tensor([[0, word, 2]]), padding, False)

    jacobian = torch.autograd.functional.jacobian(lambda x: features(x, 7).text, images)
    influence = jacobian.flatten(0, 2).norm(dim=0)
    assert (influence > 1e-3 * influence.max()).all()
    seen, other = (features(images, word).image["last_feat"] for word in (7, 8))
    change = (seen - other).norm(dim=1)
    assert (change > 1e-3 * change.max()).all()


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="not divisible by NUM_HEADS = 3"):
        build_vl_backbone(tiny_cfg([BEIT3 + "NUM_HEADS", 3]))
