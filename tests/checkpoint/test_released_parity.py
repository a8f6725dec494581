"""The converted released model computes what the released classes computed (CPU, float32).

Weights, inputs and expected outputs follow ``../shared/reference/model.md``, section 11. Every
difference is recorded, and ``python dev/parity_table.py`` prints them.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks, Boxes, Instances

from igvg_d2.modeling import GroundingTargets, VLFeatures
from igvg_d2.modeling.backbone.beit3 import interpolate_positions
from igvg_d2.modeling.postprocessing import grounding_postprocess

SIZE = (320, 320)
LENGTHS = (5, 12, 50)
TOLERANCE = 1e-4
LOGIT_TOLERANCE = 5e-4
BOXES = (
    [[20, 30, 120, 200], [150, 40, 300, 180]],
    [],
    [[10, 10, 60, 60], [100, 100, 260, 300], [200, 20, 310, 90]],
)


def padding_mask(lengths, total):
    return torch.arange(total)[None] >= torch.tensor(lengths)[:, None]


def full_size(logits):
    return F.interpolate(logits, size=SIZE, mode="bilinear", align_corners=True)


@pytest.fixture
def assert_close(assert_within):
    """Callable (quantity, actual, expected[, bound]) on tensors of one shape."""

    def check(quantity, actual, expected, bound=TOLERANCE):
        expected = torch.from_numpy(np.asarray(expected))
        assert actual.shape == expected.shape
        assert_within(quantity, (actual - expected).abs().max().item(), bound)

    return check


class Recorder:
    """Outputs of named sub-modules during one forward pass."""

    def __init__(self, model, names):
        self.outputs = {}
        modules = dict(model.named_modules())
        self.handles = [modules[name].register_forward_hook(self._hook(name)) for name in names]

    def _hook(self, name):
        def record(module, inputs, output):
            self.outputs[name] = (inputs, output)

        return record

    def __enter__(self):
        return self.outputs

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()


@pytest.fixture(scope="module")
def targets():
    instances = []
    for boxes in BOXES:
        x = Instances(SIZE)
        x.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes):
            mask[y1:y2, x1:x2] = True
        x.gt_masks = BitMasks(masks)
        instances.append(x)
    return GroundingTargets.from_instances(instances, torch.device("cpu"))


@pytest.fixture(scope="module")
def head(released_model, fixtures_dir, rule_input, targets):
    """(expected, outputs, losses, recorded) of the head on random features."""
    features = VLFeatures(
        image={"last_feat": rule_input(101, (3, 768, 20, 20))},
        text=rule_input(102, (3, 50, 768)),
        text_padding_mask=padding_mask(LENGTHS, 50),
        pooled=rule_input(103, (3, 768)),
    )
    names = (
        "neck", "pixel_decoder", "query_generator", "query_generator.attention",
        "grounding_head.reference", "grounding_head.decoder", "grounding_head.criterion.matcher",
    )  # fmt: skip
    with torch.no_grad(), Recorder(released_model, names) as recorded:
        outputs, losses = released_model.predict(features, targets)
    with np.load(fixtures_dir / "head_fixture.npz") as expected:
        return dict(expected), outputs, losses, recorded


@pytest.fixture(scope="module")
def end_to_end(released_model, fixtures_dir, rule_input):
    """(expected, outputs, features) of the whole network."""
    with np.load(fixtures_dir / "e2e_fixture.npz") as file:
        expected = dict(file)
    ids, padding = torch.from_numpy(expected["ids"]), torch.from_numpy(expected["pad"]).bool()
    with torch.no_grad():
        features = released_model.backbone(rule_input(201, (2, 3, *SIZE)), ids, padding)
        outputs, _ = released_model.predict(features)
    return expected, outputs, features


def test_text_selection_keeps_the_released_order(head, assert_close):
    expected, _, _, recorded = head
    (text, _, _), _ = recorded["query_generator.attention"]
    valid = torch.from_numpy(expected["sts_mask"])
    assert torch.equal((text != 0).any(-1), valid.bool())
    assert_close("text tokens in the order of STS", text * valid[..., None], expected["sts_feat"])


def test_text_to_image_attention(head, assert_close):
    expected, _, _, recorded = head
    _, (text_queries, weights, _) = recorded["query_generator.attention"]
    assert_close("attention map per query", weights.unflatten(-1, (20, 20)), expected["attn_q"])
    assert_close("text queries", text_queries, expected["t2i_out"])


def test_points_are_identical_and_queries_close(head, assert_within, assert_close):
    expected, _, _, recorded = head
    _, (queries, _) = recorded["query_generator"]
    assert_close("pooled attention map", queries.attention_map, expected["attn_max"])
    cells = (queries.reference_points * 20 - 0.5).round()
    released = torch.from_numpy(expected["points_xy"] * 20 - 0.5).round()
    assert_within("points, cells that differ of 60", (cells != released).sum().item(), 0)
    assert_close("initial queries", queries.features, expected["aqg_query"])


@pytest.mark.parametrize("level", range(4))
def test_neck(head, assert_close, level):
    expected, _, _, recorded = head
    x = recorded["neck"][1][f"p{level + 2}"]
    step = max(1, x.shape[-1] // 10)
    assert_close(f"SimFPN c{level + 1}", x[:, ::32, ::step, ::step], expected[f"neck{level}_c8"])


def test_pixel_decoder(head, assert_close):
    expected, _, _, recorded = head
    features = recorded["pixel_decoder"][1][:, ::16, ::8, ::8]
    assert_close("UNet", features, expected["unet_c16_s8"])


def test_decoder_states_and_references(head, assert_close):
    expected, _, _, recorded = head
    references = recorded["grounding_head.reference"][1]
    assert_close("reference points", references, expected["init_reference"])
    states = recorded["grounding_head.decoder"][1]
    assert_close("decoder states, 3 layers", states, expected["dec_states"])


@pytest.mark.parametrize("name", ["head", "end_to_end"])
def test_predictions(request, assert_close, name):
    expected, outputs, *_ = request.getfixturevalue(name)
    part = name.replace("_", " ")
    assert_close(f"class logits, {part}", outputs["pred_logits"], expected["pred_class"])
    assert_close(f"boxes, normalised, {part}", outputs["pred_boxes"], expected["pred_bbox"])
    assert_close(f"no-target logits, {part}", outputs["no_target_logits"], expected["nt_label"])
    for what, key, fixture, step in (
        ("instance", "pred_masks", "pred_mask_s8", 8),
        ("global", "sem_seg", "pred_global_mask_s4", 4),
    ):
        masks = full_size(outputs[key])[..., ::step, ::step]
        assert_close(f"{what} mask logits, {part}", masks, expected[fixture], LOGIT_TOLERANCE)


def test_matches_are_identical(head, fixtures_dir, assert_within):
    _, _, _, recorded = head
    _, assigned = recorded["grounding_head.criterion.matcher"]
    indices = json.loads((fixtures_dir / "loss_fixture.json").read_text())["indices"]
    expected = torch.full_like(assigned, -1)
    for layer, samples in enumerate(indices):
        for sample, (queries, boxes) in enumerate(samples):
            expected[layer, sample, queries] = torch.tensor(boxes, dtype=torch.int64)
    assert (expected >= 0).sum() == 15
    assert_within("matches, queries that differ of 90", (assigned != expected).sum().item(), 0)


@pytest.fixture(scope="module")
def loss_fixture(fixtures_dir):
    return json.loads((fixtures_dir / "loss_fixture.json").read_text())


def test_losses(head, loss_fixture, assert_within):
    _, _, losses, _ = head
    got = {key: value.item() for key, value in losses.items()}
    names = {"ce": "class", "bbox": "bbox", "giou": "giou"}
    wanted = {
        f"loss_{ours}{suffix}": 0.1 * loss_fixture["det"][f"loss_{theirs}{suffix}"]
        for ours, theirs in names.items()
        for suffix in ("", "_0", "_1")
    }
    pieces = loss_fixture["pieces"]
    wanted["loss_mask"], wanted["loss_dice"] = pieces["part_pos_bce"], pieces["part_pos_dice"]
    wanted["loss_sem_seg"] = pieces["global_bce"]
    wanted["loss_sem_seg_dice"] = pieces["global_dice"]
    wanted["loss_point_heatmap"] = 0.1 * (pieces["minimap_dice"] + pieces["minimap_bce"])
    wanted["loss_no_target"] = 0.2 * loss_fixture["nt_raw"]
    for key, value in wanted.items():
        assert_within(key, abs(got[key] - value), TOLERANCE)
    negative = got["loss_mask_neg"] + got["loss_dice_neg"]
    difference = abs(negative - 0.2 * pieces["part_neg_unweighted"])
    assert_within("loss_mask_neg + loss_dice_neg", difference, TOLERANCE)
    assert set(got) == {*wanted, "loss_mask_neg", "loss_dice_neg"}


def test_totals(head, loss_fixture, assert_within):
    """As the release adds them up: detection, all masks, existence."""
    got = {key: value.item() for key, value in head[2].items()}
    parts = {
        "loss_det": [key for key in got if key.split("_")[1] in ("ce", "bbox", "giou")],
        "loss_label_nt": ["loss_no_target"],
    }
    parts["loss_mask"] = sorted(set(got) - {key for part in parts.values() for key in part})
    assert set(parts) == set(loss_fixture["total"])
    for name, keys in parts.items():
        total = sum(got[key] for key in keys)
        difference = abs(total - loss_fixture["total"][name])
        assert_within(f"total {name} of the release", difference, TOLERANCE)


def test_encoder(end_to_end, assert_close):
    expected, _, features = end_to_end
    image = features.image["last_feat"].flatten(2).transpose(1, 2)
    assert_close("encoder, image tokens", image[:, ::20, ::16], expected["img_feat_s"])
    assert_close("encoder, CLS", features.pooled, expected["cls_feat"])
    real = ~features.text_padding_mask
    text = torch.from_numpy(expected["text_feat_s"])
    assert_close("encoder, real text tokens", features.text[..., ::16][real], text[real])


def test_points_end_to_end(end_to_end, assert_within, assert_close):
    expected, outputs, _ = end_to_end
    cells = (outputs["pred_points"] * 20 - 0.5).round()
    released = torch.from_numpy(expected["points_xy"] * 20 - 0.5).round()
    different = (cells != released).sum().item()
    assert_within("points, cells that differ of 40, end to end", different, 0)
    attention = outputs["attention_map"]
    assert_close("pooled attention map, end to end", attention, expected["attn_max"])


def test_one_short_text_without_padding_is_the_same(
    released_model, end_to_end, rule_input, assert_close
):
    """The release pads texts to 50 tokens; ours runs on the 7 there are, fewer than queries."""
    expected, _, features = end_to_end
    length = int((~features.text_padding_mask[0]).sum())
    assert length < expected["points_xy"].shape[1]
    ids = torch.from_numpy(expected["ids"])[:1, :length]
    image = rule_input(201, (2, 3, *SIZE))[:1]
    with torch.no_grad():
        alone = released_model.backbone(image, ids, torch.zeros(1, length, dtype=torch.bool), False)
        # Batch statistics play no part in evaluation, so the first sample stands for itself.
        outputs, _ = released_model.predict(alone)
    assert_close("unpadded: encoder, CLS", alone.pooled, expected["cls_feat"][:1])
    assert_close("unpadded: text", alone.text[..., ::16], expected["text_feat_s"][:1, :length])
    assert_close("unpadded: points", outputs["pred_points"], expected["points_xy"][:1], 1e-6)
    assert_close("unpadded: class logits", outputs["pred_logits"], expected["pred_class"][:1])
    assert_close("unpadded: boxes", outputs["pred_boxes"], expected["pred_bbox"][:1])
    masks = full_size(outputs["pred_masks"])[..., ::8, ::8]
    assert_close(
        "unpadded: instance mask logits", masks, expected["pred_mask_s8"][:1], LOGIT_TOLERANCE
    )


@pytest.fixture(scope="module")
def results(released_model, end_to_end):
    """Released post-processing in the network frame, as its benchmarks run, at score 0.39."""
    _, outputs, _ = end_to_end
    options = replace(released_model.postprocess, score_thresh=0.39)
    return {
        mode: grounding_postprocess(outputs, SIZE, [SIZE] * 2, replace(options, output_mask=mode))
        for mode in ("merge", "instance", "global")
    }


@pytest.mark.parametrize("sample", [0, 1])
def test_scores_and_boxes_after_post_processing(end_to_end, results, assert_close, sample):
    expected = end_to_end[0]
    candidates = results["merge"][sample]["candidates"]
    # Ours come by descending score, the release's in the order of the queries.
    order = np.argsort(-expected[f"post_scores_{sample}"], kind="stable")
    scores = expected[f"post_scores_{sample}"][order]
    assert_close(f"scores, sample {sample}", candidates.scores, scores)
    # The tolerance of a normalised coordinate.
    boxes = torch.from_numpy(expected[f"post_boxes_{sample}"][order]) / SIZE[0]
    ours = candidates.pred_boxes.tensor / SIZE[0]
    assert_close(f"boxes after post-processing, sample {sample}", ours, boxes)
    kept = int((expected[f"post_scores_{sample}"] >= 0.39).sum())
    assert len(results["merge"][sample]["instances"]) == kept > 0


def test_scores_after_suppression(released_model, end_to_end, assert_close):
    """The release's option NMS at 0.7: survivors by descending score, suppressed ones absent."""
    expected, outputs, _ = end_to_end
    options = replace(released_model.postprocess, nms_thresh=0.7)
    suppressed = grounding_postprocess(outputs, SIZE, [SIZE] * 2, options)
    for sample, result in enumerate(suppressed):
        scores = result["candidates"].scores
        survivors = scores[scores > 0]
        assert_close(
            f"scores after NMS, sample {sample}", survivors, expected[f"nms_scores_{sample}"]
        )


@pytest.mark.parametrize("sample", [0, 1])
@pytest.mark.parametrize("mode", ["merge", "instance", "global"])
def test_masks_after_post_processing(end_to_end, results, assert_within, mode, sample):
    bits = np.unpackbits(end_to_end[0][f"post_{mode}_{sample}"]).reshape(SIZE).astype(bool)
    different = int((results[mode][sample]["mask"].numpy() != bits).sum())
    assert 0 < bits.sum() < bits.size
    assert_within(f"mask '{mode}', sample {sample}, pixels of 102,400 that differ", different, 5)


def test_position_table_is_resized_to_the_bit(fixtures_dir, rule_input, assert_within):
    """14 x 14 to 20 x 20, as the release does when it starts from BEiT-3's 224 pixel weights.

    PyTorch's kernels for AVX2 and AVX-512 give the release's bits; the one for CPUs without them
    rounds the sampling positions differently. The release's bits are 3.4e-6 from the exact table.
    """
    table = rule_input(301, (199, 768))
    image = table[3:].T.reshape(1, 768, 14, 14)
    expected = F.interpolate(image, (20, 20), mode="bicubic", align_corners=False)
    resized = interpolate_positions(table[None, 3:], (14, 14), (20, 20))[0]
    assert torch.equal(resized, expected.flatten(2)[0].T)
    with np.load(fixtures_dir / "posembed_fixture.npz") as file:
        released = torch.from_numpy(file["pos_c16"])
    assert torch.equal(table[:3, ::16], released[:3])
    difference = (resized[:, ::16] - released[3:]).abs().max().item()
    same_kernel = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    assert_within("position table, 14 x 14 to 20 x 20", difference, 0 if same_kernel else 1e-5)
