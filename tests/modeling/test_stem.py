"""The word stem and the scene head that teaches it."""

import math

import pytest
import torch
import torch.nn.functional as F

from igvg_d2.modeling import build_vl_backbone
from igvg_d2.modeling.backbone.stem import WordStem
from igvg_d2.modeling.scene_head import SceneHead, build_scene_head
from igvg_d2.modeling.targets import SceneTargets
from igvg_d2.testing import random_targets, tiny_cfg

STEM = [
    "MODEL.BEIT3.STEM_CHANNELS", [8, 8, 16, 16],
    "MODEL.BEIT3.STEM_BLOCKS", [0, 1, 2, 1],
    "MODEL.BEIT3.STEM_TEXT_STAGE", 2,
]  # fmt: skip
PADDING = torch.tensor([[False, False, False], [False, True, True]])


def make_stem():
    torch.manual_seed(0)
    return WordStem([8, 8, 16, 16], [0, 1, 2, 1], text_stage=2, embed_dim=32).eval()


def test_features_have_the_shapes_they_announce():
    stem, text = make_stem(), torch.randn(2, 3, 32)
    tokens, features, *_ = stem(torch.randn(2, 3, 64, 96), text, text, PADDING)
    assert tokens.shape == (2, 32, 4, 6)
    shapes = stem.output_shape()
    assert features.keys() == shapes.keys()
    for name, shape in shapes.items():
        size = (64 // shape.stride, 96 // shape.stride)
        assert features[name].shape == (2, shape.channels, *size), name


def test_words_change_what_comes_after_their_stage_only():
    stem, images = make_stem(), torch.randn(2, 3, 64, 64)
    one, other = (torch.randn(2, 3, 32) for _ in range(2))
    with torch.no_grad():
        first_tokens, first, *_ = stem(images, one, one, PADDING)
        second_tokens, second, *_ = stem(images, other, other, PADDING)
    for name in ("stem_2", "stem_4", "stem_words"):
        assert torch.equal(first[name], second[name]), name
    for a, b in ((first["stem_8"], second["stem_8"]), (first_tokens, second_tokens)):
        assert (a - b).abs().max() > 0.01


def test_padding_is_not_read():
    stem, images = make_stem(), torch.randn(2, 3, 64, 64)
    text = torch.randn(2, 3, 32)
    noisy = text + 100 * PADDING[..., None]
    with torch.no_grad():
        expected, *_ = stem(images, text, text, PADDING)
        found, *_ = stem(images, noisy, noisy, PADDING)
    torch.testing.assert_close(found, expected)


def test_wrong_stems_are_refused():
    with pytest.raises(ValueError, match="STEM_BLOCKS has 2"):
        WordStem([8, 8, 8], [1, 1], 1, 32)
    with pytest.raises(ValueError, match="STEM_TEXT_STAGE = 0"):
        WordStem([8, 8], [0, 1], 0, 32)


def scene_head(opts):
    cfg = tiny_cfg([*STEM, *opts])
    backbone = build_vl_backbone(cfg)
    return build_scene_head(cfg, backbone), backbone


CATEGORIES = [
    "MODEL.SCENE_HEAD.CATEGORY_WEIGHT", 1.0,
    "MODEL.SCENE_HEAD.NUM_CATEGORIES", 2,
    "INPUT.SCENE_CATEGORIES", True,
]  # fmt: skip


def test_category_loss_by_hand():
    head, _ = scene_head(CATEGORIES)
    torch.nn.init.zeros_(head.category.weight)
    with torch.no_grad():
        head.category.bias.copy_(torch.tensor([0.6, 0.3, 0.1]).log())
    targets = random_targets([1], size=(8, 8))
    scene = torch.zeros(1, 8, 8, dtype=torch.uint8)
    scene[0, :4, :4] = 2  # one of four cells is of category 1
    scene[0, 4:, :2] = 1  # half of another is of category 0
    targets.scene = SceneTargets(scene, scene, num_objects=2)
    loss = head.category_loss(torch.zeros(1, 32, 2, 2), targets)
    background = -math.log(0.6)
    # The half-covered cell counts half as object, with its whole cross-entropy.
    half = -0.5 * math.log(0.3) - 0.5 * math.log(0.6)
    expected = (2 * background + 0.5 * half) / 2.5 + (-math.log(0.1) + 0.5 * half) / 1.5
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_word_loss_by_hand():
    head, backbone = scene_head(["MODEL.SCENE_HEAD.WORD_WEIGHT", 1.0])
    targets = random_targets([1, 0, 1], size=(8, 8))
    targets.masks = torch.zeros(3, 1, 8, 8)
    targets.masks[0, 0, :4, :4] = 1
    targets.masks[2, 0, :, :4] = 1
    features = torch.randn(3, 32, 2, 2)
    ids = torch.tensor([[5, 7, 7], [9, 0, 0], [6, 0, 0]])
    padding = torch.tensor([[False] * 3, [False, True, True], [False, True, True]])
    loss = head.word_loss(backbone, features, ids, padding, targets)
    expected = []
    regions = {0: features[0, :, 0, 0], 2: features[2, :, :, 0].mean(-1)}
    for sample, words in ((0, [5, 7]), (2, [6])):
        logits = backbone.word_logits(regions[sample][None])[0] - 4.0
        truth = torch.zeros(64)
        truth[words] = 1
        expected.append(F.binary_cross_entropy_with_logits(logits, truth, reduction="sum"))
    torch.testing.assert_close(loss, sum(expected) / 2)


def test_no_target_at_all_gives_finite_losses():
    head, backbone = scene_head([*CATEGORIES, "MODEL.SCENE_HEAD.WORD_WEIGHT", 1.0])
    targets = random_targets([0, 0])
    nothing = torch.zeros(2, 64, 64, dtype=torch.uint8)
    targets.scene = SceneTargets(nothing, nothing, num_objects=1)
    ids = torch.ones(2, 4, dtype=torch.int64)
    features = backbone(torch.randn(2, 3, 64, 64), ids, torch.zeros(2, 4, dtype=torch.bool))
    losses = head(backbone, features, ids, targets)
    assert losses.keys() == {"loss_category", "loss_words"}
    assert all(torch.isfinite(value) for value in losses.values())
    assert float(losses["loss_words"]) == 0.0


def test_settings_that_cannot_work_are_refused():
    assert build_scene_head(tiny_cfg(), build_vl_backbone(tiny_cfg())) is None
    with pytest.raises(ValueError, match="NUM_CATEGORIES"):
        SceneHead(8, 1.0, 0, 0.0, 10)
    with pytest.raises(ValueError, match="INPUT.SCENE_CATEGORIES"):
        scene_head(CATEGORIES[:4])
    cfg = tiny_cfg(["MODEL.SCENE_HEAD.WORD_WEIGHT", 1.0])
    with pytest.raises(ValueError, match="stem_words"):
        build_scene_head(cfg, build_vl_backbone(cfg))


def test_more_categories_than_configured_are_refused():
    head, _ = scene_head(CATEGORIES)
    scene = torch.tensor([[0, 1], [2, 2]], dtype=torch.uint8)
    cpu = torch.device("cpu")
    seen = head.read_scene([{"scene_categories": scene, "scene_instances": scene}], cpu)
    assert seen.num_objects == 2 and torch.equal(seen.categories[0], scene)
    with pytest.raises(ValueError, match="NUM_CATEGORIES is 2, but .* category 2"):
        head.read_scene([{"scene_categories": scene + 1, "scene_instances": scene}], cpu)
