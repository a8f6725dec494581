"""Losses and gradients of the released preset, against a plain re-derivation in float64."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

import igvg_d2.modeling  # noqa: F401
from igvg_d2.engine import setup_config
from igvg_d2.testing import random_batch
from tests.modeling.plain_igvg import PlainIGVG

CONFIG = Path(__file__).resolve().parents[2] / "configs/gRefCOCO"
# Texts longer and shorter than the number of queries; several targets, one and none.
TARGETS, LENGTHS, QUERIES, DEPTH, HEADS = (2, 0, 1), (7, 3, 5), 4, 2, 2
TINY = [
    *("MODEL.DEVICE", "cpu"),
    *("MODEL.BEIT3.EMBED_DIM", 32, "MODEL.BEIT3.DEPTH", DEPTH, "MODEL.BEIT3.NUM_HEADS", HEADS),
    *("MODEL.BEIT3.FFN_DIM", 48, "MODEL.BEIT3.VOCAB_SIZE", 64, "MODEL.BEIT3.DROP_PATH", 0.0),
    *("MODEL.BEIT3.MAX_TEXT_POSITIONS", 24, "MODEL.BEIT3.PRETRAIN_IMAGE_SIZE", (64, 64)),
    *("MODEL.IGVG.HIDDEN_DIM", 32, "MODEL.NECK.OUT_CHANNELS", [32] * 4),
    *("MODEL.PIXEL_DECODER.CONV_DIMS", [32] * 3),
    *("MODEL.QUERY_GENERATOR.NUM_OBJECT_QUERIES", QUERIES, "MODEL.QUERY_GENERATOR.NHEADS", HEADS),
    *("MODEL.QUERY_GENERATOR.DROPOUT", 0.0),
    *("MODEL.GROUNDING_HEAD.NHEADS", HEADS, "MODEL.GROUNDING_HEAD.DIM_FEEDFORWARD", 40),
    *("MODEL.GROUNDING_HEAD.DROPOUT", 0.0, "INPUT.IMAGE_SIZE", (64, 64)),
]


@pytest.fixture(scope="module")
def model():
    """A tiny model of the released preset, training mode, random in every parameter."""
    config = CONFIG / "instancevg_beit3_base_320_released.yaml"
    model = build_model(setup_config(str(config), TINY))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise / (parameter.numel() / len(parameter)) ** 0.5)
            else:
                is_norm_weight = name.endswith(".weight")
                parameter.copy_(0.1 * noise + float(is_norm_weight))
        # A shift of about a quarter: some reference points leave the image.
        model.grounding_head.reference.shift.bias.fill_(-1.0)
    return model.train()


@pytest.fixture(scope="module")
def both(model):
    """Total loss, gradients by name, and the plain model: ours, then the re-derivation."""
    batch = random_batch(TARGETS, lengths=LENGTHS, seed=5)
    total = sum(model(batch).values())
    total.backward()
    ours = {name: p.grad.double() for name, p in model.named_parameters()}
    weights = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
    plain = PlainIGVG(weights, DEPTH, HEADS, HEADS, 3, QUERIES)
    images = torch.stack([x["image"].double() for x in batch])
    images = (images - model.pixel_mean.double()) / model.pixel_std.double()
    # Padded to more tokens than the longest text, as the release pads to 50.
    text_ids = torch.ones(len(batch), max(LENGTHS) + 4, dtype=torch.int64)
    for row, sample in zip(text_ids, batch):
        row[: len(sample["text_ids"])] = sample["text_ids"]
    padding = torch.arange(text_ids.shape[1])[None] >= torch.tensor(LENGTHS)[:, None]
    instances = [sample["instances"] for sample in batch]
    expected = plain.losses(
        images,
        text_ids,
        padding,
        [x.gt_boxes.tensor.double() for x in instances],
        [x.gt_masks.tensor.double() for x in instances],
    )
    expected.backward()
    return total.item(), ours, expected.item(), {k: w.grad for k, w in weights.items()}, plain


def test_total_loss(both, assert_within):
    total, _, expected, _, plain = both
    assert_within("total loss, relative, float64", abs(total / expected - 1), 1e-5)
    # The case is not a trivial one: three layers match all three targets.
    assert [sum(map(len, layer)) for layer in plain.matches] == [3, 3, 3]
    assert all(len(set(cells)) == QUERIES for cells in plain.points)


def test_every_parameter_has_the_gradient_of_the_re_derivation(both, assert_within):
    """Norms within 1e-4 relative, and directions too; the largest norm bounds rounding."""
    _, ours, _, expected, _ = both
    assert ours.keys() == expected.keys()
    largest = max(gradient.norm().item() for gradient in expected.values())
    worst = 0.0
    for name, gradient in expected.items():
        norm, error = gradient.norm().item(), (ours[name] - gradient).norm().item()
        noise = 1e-7 * largest
        difference = abs(ours[name].norm().item() - norm)
        assert difference <= 1e-4 * norm + noise, name
        assert error <= 1e-3 * norm + noise, name
        if norm > 10 * noise:
            worst = max(worst, difference / norm)
    assert_within("norms of gradients per parameter, relative, float64", worst, 1e-4)
    assert sum(gradient.abs().sum() > 0 for gradient in expected.values()) > 0.9 * len(expected)
