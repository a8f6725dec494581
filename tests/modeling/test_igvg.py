"""The whole model: every variant trains, no target is ordinary, padding changes nothing."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

import igvg_d2.modeling  # noqa: F401
from igvg_d2.testing import random_batch, tiny_cfg

RELEASED = [
    "MODEL.QUERY_GENERATOR.TEXT_SCORE", "mean",
    "MODEL.QUERY_GENERATOR.ATTENTION", "decoder_layer",
    "MODEL.QUERY_GENERATOR.POOL", "max",
    "MODEL.QUERY_GENERATOR.DIST_UNIT", "diagonal",
    "MODEL.QUERY_GENERATOR.MINIMAP_TARGET", "nearest",
    "MODEL.GROUNDING_HEAD.REFERENCE", "shifted",
    "MODEL.GROUNDING_HEAD.AUX_WEIGHTS", "ones",
    "MODEL.GROUNDING_HEAD.MATCHER.CLASS_COST", "prob",
    "MODEL.GLOBAL_HEAD.NO_TARGET_CLASS_WEIGHTS", (0.9, 1.1),
    "MODEL.GLOBAL_HEAD.NO_TARGET_TEST", "sigmoid0",
    "MODEL.IGVG.TEST.MASK_RESIZE", "binary",
    "MODEL.IGVG.ALIGN_CORNERS", True,
]  # fmt: skip

VARIANTS = {
    "paper": [],
    "released": RELEASED,
    "learned": ["MODEL.QUERY_GENERATOR.NAME", "LearnedQueryGenerator"],
    "text_guided": ["MODEL.QUERY_GENERATOR.NAME", "TextGuidedQueryGenerator"],
    "no_sts": ["MODEL.QUERY_GENERATOR.TEXT_SELECTION", "off"],
    "channel_sts": ["MODEL.QUERY_GENERATOR.TEXT_SELECTION", "channel"],
    "no_itq": ["MODEL.QUERY_GENERATOR.INJECT_TEXT", False],
    "logits_topk": [
        "MODEL.QUERY_GENERATOR.MAP", "logits", "MODEL.QUERY_GENERATOR.SELECTOR", "topk"
    ],
    "detr": [
        "MODEL.GROUNDING_HEAD.DECODER", "DETRDecoder", "MODEL.GROUNDING_HEAD.IN_FEATURES", ["p4"]
    ],
    "single_scale": ["MODEL.GROUNDING_HEAD.IN_FEATURES", ["p4"]],
    "learned_reference": ["MODEL.GROUNDING_HEAD.REFERENCE", "learned"],
    "no_negatives": ["MODEL.GROUNDING_HEAD.NEGATIVE_WEIGHT", 0.0],
    "no_instance_masks": ["MODEL.GROUNDING_HEAD.MASK_ON", False],
    "no_global_mask": ["MODEL.GLOBAL_HEAD.MASK_ON", False],
    "detection_only": [
        "MODEL.GLOBAL_HEAD.MASK_ON", False, "MODEL.GROUNDING_HEAD.MASK_ON", False
    ],
    "points": ["MODEL.IGVG.MASK_LOSS_RESOLUTION", "points"],
    "points_align_corners": [
        "MODEL.IGVG.MASK_LOSS_RESOLUTION", "points", "MODEL.IGVG.ALIGN_CORNERS", True
    ],
    "no_minimap": ["MODEL.QUERY_GENERATOR.MINIMAP_WEIGHT", 0.0],
    "global_only": ["MODEL.QUERY_GENERATOR.NAME", "", "MODEL.GROUNDING_HEAD.NAME", ""],
    "tiny": [
        "MODEL.BEIT3.PATCH_SIZE", 8,
        "MODEL.GLOBAL_HEAD.NO_TARGET_INPUT", "pixels+pooled",
        "MODEL.IGVG.MASK_LOSS_RESOLUTION", "feature",
    ],
}  # fmt: skip


def make_model(opts=()):
    torch.manual_seed(0)
    return build_model(tiny_cfg(opts))


def losses_of(model, batch):
    with EventStorage():
        return model(batch)


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_trains_without_unused_parameters(name):
    model = make_model(VARIANTS[name])
    losses = losses_of(model, random_batch([2, 0, 1]))
    assert all(key.startswith("loss_") for key in losses)
    assert all(torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()
    unused = [n for n, p in model.named_parameters() if p.grad is None]
    assert unused == []


@pytest.mark.parametrize("name", VARIANTS)
def test_loss_keys_do_not_depend_on_the_targets(name):
    model = make_model(VARIANTS[name])
    mixed = losses_of(model, random_batch([2, 0, 1]))
    empty = losses_of(model, random_batch([0, 0, 0]))
    assert mixed.keys() == empty.keys()
    total = sum(empty.values())
    assert torch.isfinite(total)
    total.backward()
    unused = [n for n, p in model.named_parameters() if p.grad is None]
    assert unused == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", VARIANTS)
def test_outputs_have_the_original_size(name):
    model = make_model(VARIANTS[name]).eval()
    batch = random_batch([1, 0])
    batch[0].update(height=50, width=90)
    with torch.no_grad():
        first, second = model(batch)
    for output, size in ((first, (50, 90)), (second, (64, 64))):
        assert output["mask"].shape == size and output["mask"].dtype == torch.bool
        assert output["instances"].image_size == size
        for field in ("pred_boxes", "scores", "pred_classes", "pred_masks", "pred_points"):
            assert output["instances"].has(field)
        assert output["candidates"].pred_masks.shape[1:] == size
        scores = output["candidates"].scores
        assert torch.equal(scores, scores.sort(descending=True).values)


def test_more_targets_than_queries():
    model = make_model()
    losses = losses_of(model, random_batch([6, 1]))
    assert torch.isfinite(sum(losses.values()))


def test_non_square_and_other_sizes_than_pretraining():
    model = make_model()
    for size in ((48, 96), (96, 32)):
        losses = losses_of(model, random_batch([1, 2], size=size))
        assert torch.isfinite(sum(losses.values()))


def test_mixed_sizes_are_refused():
    model = make_model()
    batch = random_batch([1]) + random_batch([1], size=(48, 96))
    with pytest.raises(ValueError, match="one size"):
        losses_of(model, batch)


def test_indivisible_size_is_refused():
    with pytest.raises(ValueError, match="multiples of 16"):
        losses_of(make_model(), random_batch([1], size=(60, 64)))


def test_activation_checkpointing_gives_the_same_gradients():
    batch = random_batch([1, 0])
    gradients = []
    for enabled in (False, True):
        model = make_model(
            [
                "MODEL.BEIT3.CHECKPOINTING", enabled,
                "MODEL.BEIT3.DROP_PATH", 0.0,
                "MODEL.GROUNDING_HEAD.DROPOUT", 0.0,
                "MODEL.QUERY_GENERATOR.DROPOUT", 0.0,
            ]
        )  # fmt: skip
        sum(losses_of(model, batch).values()).backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b)


def test_bf16_autocast_gives_float32_losses():
    model = make_model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(model, random_batch([1, 0, 2]))
    assert all(v.dtype == torch.float32 and torch.isfinite(v) for v in losses.values())


def test_half_an_instance_branch_is_refused():
    with pytest.raises(ValueError, match="must both be set"):
        make_model(["MODEL.QUERY_GENERATOR.NAME", ""])
