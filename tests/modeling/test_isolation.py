"""Samples of a batch do not influence one another, whatever their texts' lengths and targets."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

import igvg_d2.modeling  # noqa: F401
from igvg_d2.modeling import GroundingTargets
from igvg_d2.testing import random_batch, tiny_cfg

TINY = [
    "MODEL.GLOBAL_HEAD.NO_TARGET_INPUT", "pixels+pooled",
    "MODEL.QUERY_GENERATOR.MAP", "logits",
]  # fmt: skip
VARIANTS = {
    "paper": [],
    "tiny": TINY,
    "text_guided": ["MODEL.QUERY_GENERATOR.NAME", "TextGuidedQueryGenerator"],
    "no_sts": ["MODEL.QUERY_GENERATOR.TEXT_SELECTION", "off"],
    "decoder_layer_max": [
        "MODEL.QUERY_GENERATOR.ATTENTION", "decoder_layer", "MODEL.QUERY_GENERATOR.POOL", "max"
    ],
}  # fmt: skip
# Losses that are plain means over the samples, and those that are sums over targets / their number.
PER_SAMPLE = ("loss_sem_seg", "loss_sem_seg_dice", "loss_no_target", "loss_point_heatmap")
PER_TARGET = ("loss_bbox", "loss_giou", "loss_bbox_0", "loss_giou_0", "loss_mask", "loss_dice")


def make_model(opts=(), eval_mode=True):
    torch.manual_seed(0)
    model = build_model(tiny_cfg(opts))
    # Zeros at the start would hide a leak through the boxes.
    torch.nn.init.normal_(model.backbone.text_embed.positions, std=0.5)
    if model.grounding_head is not None:
        torch.nn.init.normal_(model.grounding_head.predictor.box_embed.layers[-1].weight)
    return model.eval() if eval_mode else model


def features_and_targets(model, batch):
    """What IGVG.forward hands to IGVG.predict, in evaluation mode but with targets."""
    images = model.preprocess_image(batch)
    features = model.backbone(images, *model.preprocess_text(batch))
    return features, GroundingTargets.from_instances([x["instances"] for x in batch], model.device)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_outputs_of_a_sample_do_not_depend_on_its_batch(name, size):
    model = make_model(VARIANTS[name])
    batch = random_batch([1, 2, 0], size, lengths=(3, 14, 6))
    with torch.no_grad():
        together = model(batch)
        alone = [model([sample])[0] for sample in batch]
    for a, b in zip(together, alone):
        for key in ("sem_seg", "no_target_score", "attention_map"):
            if key in a:
                torch.testing.assert_close(a[key], b[key], atol=1e-5, rtol=1e-4)
        one, other = a["candidates"], b["candidates"]
        torch.testing.assert_close(one.scores, other.scores, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one.pred_points, other.pred_points, atol=1e-4, rtol=0)
        torch.testing.assert_close(
            one.pred_boxes.tensor, other.pred_boxes.tensor, atol=1e-3, rtol=1e-4
        )
        differing = (one.pred_masks != other.pred_masks).float().mean()
        assert float(differing) < 1e-3  # a logit of zero may round either way


@pytest.mark.parametrize("name", VARIANTS)
def test_losses_of_a_batch_are_those_of_its_samples(name):
    model = make_model(VARIANTS[name])
    counts = [2, 0, 1]
    batch = random_batch(counts, lengths=(4, 12, 7))
    with torch.no_grad():
        together = model.predict(*features_and_targets(model, batch))[1]
        alone = [model.predict(*features_and_targets(model, [x]))[1] for x in batch]
    for key in PER_SAMPLE:
        if key in together:
            mean = sum(losses[key] for losses in alone) / len(alone)
            torch.testing.assert_close(together[key], mean, atol=1e-5, rtol=1e-4)
    for key in PER_TARGET:
        total = sum(count * losses[key] for count, losses in zip(counts, alone)) / sum(counts)
        torch.testing.assert_close(together[key], total, atol=1e-5, rtol=1e-4)


def test_no_gradient_flows_from_one_sample_to_another():
    model = make_model(TINY)
    batch = random_batch([1, 1], lengths=(4, 9))
    for sample in batch:
        sample["image"] = sample["image"].float().requires_grad_()
    features, _ = features_and_targets(model, batch)
    outputs, _ = model.predict(features)
    sum(outputs[k][0].sum() for k in ("sem_seg", "pred_logits", "pred_boxes")).backward()
    assert batch[0]["image"].grad.abs().sum() > 0
    assert not batch[1]["image"].grad.any()


def test_padding_added_by_the_caller_is_cut():
    model = make_model()
    (sample,) = random_batch([1], lengths=(5,))
    padded = dict(sample)
    padded["text_ids"] = torch.cat([sample["text_ids"], torch.ones(4, dtype=torch.int64)])
    padded["text_padding_mask"] = torch.arange(9) >= 5
    with torch.no_grad():
        expected, found = model([sample])[0], model([padded])[0]
    torch.testing.assert_close(found["sem_seg"], expected["sem_seg"])


@pytest.mark.parametrize("key", ["DROP_PATH", "DROPOUT"])
def test_randomness_acts_in_training_only(key):
    opts = {
        "DROP_PATH": ["MODEL.BEIT3.DROP_PATH", 0.5, "MODEL.GROUNDING_HEAD.DROPOUT", 0.0,
                      "MODEL.QUERY_GENERATOR.DROPOUT", 0.0],
        "DROPOUT": ["MODEL.BEIT3.DROP_PATH", 0.0, "MODEL.GROUNDING_HEAD.DROPOUT", 0.5],
    }[key]  # fmt: skip
    model = make_model(opts)
    batch = random_batch([1, 0, 2, 1])
    with torch.no_grad():
        first, again = model(batch), model(batch)
        assert torch.equal(first[0]["candidates"].scores, again[0]["candidates"].scores)
        model.train()
        with EventStorage():
            # Two passes alone may drop the same few branches.
            losses = [float(model(batch)["loss_ce"].detach()) for _ in range(8)]
    assert len(set(losses)) > 1


def test_training_images_are_drawn_at_their_period():
    model = make_model(["VIS_PERIOD", 2], eval_mode=False)
    drawn = []
    with EventStorage() as storage:
        for _ in range(3):
            model(random_batch([1, 0]))
            drawn.append(len(storage._vis_data))
            storage.step()
    assert drawn == [1, 1, 2]
