"""The converted released model computes what the released classes computed (CPU, float32).

Weights, inputs and expected outputs follow ``../shared/reference/model.md``, section 11.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks, Boxes, Instances

from igvg_d2.modeling import GroundingTargets, VLFeatures
from igvg_d2.modeling.backbone.embedding import interpolate_positions
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


def assert_close(actual, expected, tolerance=TOLERANCE):
    expected = torch.from_numpy(np.asarray(expected))
    assert actual.shape == expected.shape
    difference = (actual - expected).abs().max().item()
    assert difference <= tolerance, f"largest difference {difference:.1e} > {tolerance:.0e}"


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


def test_text_selection_keeps_the_released_order(head):
    expected, _, _, recorded = head
    (text, _, _), _ = recorded["query_generator.attention"]
    assert_close(text * torch.from_numpy(expected["sts_mask"])[..., None], expected["sts_feat"])


def test_text_to_image_attention(head):
    expected, _, _, recorded = head
    _, (text_queries, weights, _) = recorded["query_generator.attention"]
    assert_close(weights.unflatten(-1, (20, 20)), expected["attn_q"])
    assert_close(text_queries, expected["t2i_out"])


def test_points_are_identical_and_queries_close(head):
    expected, _, _, recorded = head
    _, (queries, _) = recorded["query_generator"]
    assert_close(queries.attention_map, expected["attn_max"])
    cells = queries.reference_points * 20 - 0.5
    assert torch.equal(cells.round(), torch.from_numpy(expected["points_xy"] * 20 - 0.5).round())
    assert_close(queries.features, expected["aqg_query"])


@pytest.mark.parametrize("level", range(4))
def test_neck(head, level):
    expected, _, _, recorded = head
    x = recorded["neck"][1][f"p{level + 2}"]
    step = max(1, x.shape[-1] // 10)
    assert_close(x[:, ::32, ::step, ::step], expected[f"neck{level}_c8"])


def test_pixel_decoder(head):
    expected, _, _, recorded = head
    assert_close(recorded["pixel_decoder"][1][:, ::16, ::8, ::8], expected["unet_c16_s8"])


def test_decoder_states_and_references(head):
    expected, _, _, recorded = head
    assert_close(recorded["grounding_head.reference"][1], expected["init_reference"])
    assert_close(recorded["grounding_head.decoder"][1], expected["dec_states"])


@pytest.mark.parametrize("name", ["head", "end_to_end"])
def test_predictions(request, name):
    expected, outputs, *_ = request.getfixturevalue(name)
    assert_close(outputs["pred_logits"], expected["pred_class"])
    assert_close(outputs["pred_boxes"], expected["pred_bbox"])
    assert_close(outputs["no_target_logits"], expected["nt_label"])
    masks = full_size(outputs["pred_masks"])[..., ::8, ::8]
    assert_close(masks, expected["pred_mask_s8"], LOGIT_TOLERANCE)
    union = full_size(outputs["sem_seg"])[..., ::4, ::4]
    assert_close(union, expected["pred_global_mask_s4"], LOGIT_TOLERANCE)


def test_matches_are_identical(head, fixtures_dir):
    _, _, _, recorded = head
    _, assigned = recorded["grounding_head.criterion.matcher"]
    indices = json.loads((fixtures_dir / "loss_fixture.json").read_text())["indices"]
    expected = torch.full_like(assigned, -1)
    for layer, samples in enumerate(indices):
        for sample, (queries, boxes) in enumerate(samples):
            expected[layer, sample, queries] = torch.tensor(boxes, dtype=torch.int64)
    assert torch.equal(assigned, expected)


def test_losses(head, fixtures_dir):
    _, _, losses, _ = head
    expected = json.loads((fixtures_dir / "loss_fixture.json").read_text())
    got = {key: value.item() for key, value in losses.items()}
    names = {"ce": "class", "bbox": "bbox", "giou": "giou"}
    wanted = {
        f"loss_{ours}{suffix}": 0.1 * expected["det"][f"loss_{theirs}{suffix}"]
        for ours, theirs in names.items()
        for suffix in ("", "_0", "_1")
    }
    pieces = expected["pieces"]
    wanted["loss_mask"], wanted["loss_dice"] = pieces["part_pos_bce"], pieces["part_pos_dice"]
    wanted["loss_sem_seg"] = pieces["global_bce"]
    wanted["loss_sem_seg_dice"] = pieces["global_dice"]
    wanted["loss_point_heatmap"] = 0.1 * (pieces["minimap_dice"] + pieces["minimap_bce"])
    wanted["loss_no_target"] = 0.2 * expected["nt_raw"]
    for key, value in wanted.items():
        assert got[key] == pytest.approx(value, abs=TOLERANCE), key
    negative = got["loss_mask_neg"] + got["loss_dice_neg"]
    assert negative == pytest.approx(0.2 * pieces["part_neg_unweighted"], abs=TOLERANCE)
    assert set(got) == {*wanted, "loss_mask_neg", "loss_dice_neg"}
    total = expected["total"]
    assert sum(got.values()) == pytest.approx(sum(total.values()), abs=3 * TOLERANCE)


def test_encoder(end_to_end):
    expected, _, features = end_to_end
    image = features.image["last_feat"].flatten(2).transpose(1, 2)
    assert_close(image[:, ::20, ::16], expected["img_feat_s"])
    assert_close(features.pooled, expected["cls_feat"])
    real = ~features.text_padding_mask
    text = torch.from_numpy(expected["text_feat_s"])
    assert_close(features.text[..., ::16][real], text[real])


def test_points_end_to_end(end_to_end):
    expected, outputs, _ = end_to_end
    assert_close(outputs["pred_points"], expected["points_xy"], 1e-6)
    assert_close(outputs["attention_map"], expected["attn_max"])


def test_encoder_without_padding_is_the_same(released_model, end_to_end, rule_input):
    """The release pads every text to 50 tokens; ours runs on the tokens there are."""
    expected, _, features = end_to_end
    length = int((~features.text_padding_mask[0]).sum())
    ids = torch.from_numpy(expected["ids"])[:1, :length]
    image = rule_input(201, (2, 3, *SIZE))[:1]
    with torch.no_grad():
        alone = released_model.backbone(image, ids, torch.zeros(1, length, dtype=torch.bool), False)
    assert_close(alone.pooled, expected["cls_feat"][:1])
    assert_close(alone.text[..., ::16], expected["text_feat_s"][:1, :length])


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
def test_scores_and_boxes_after_post_processing(end_to_end, results, sample):
    expected = end_to_end[0]
    candidates = results["merge"][sample]["candidates"]
    # Ours come by descending score, the release's in the order of the queries.
    order = np.argsort(-expected[f"post_scores_{sample}"], kind="stable")
    assert_close(candidates.scores, expected[f"post_scores_{sample}"][order])
    # Pixels of 320: the tolerance of a normalised coordinate times the side.
    boxes = expected[f"post_boxes_{sample}"][order]
    assert_close(candidates.pred_boxes.tensor, boxes, 320 * TOLERANCE)
    kept = int((expected[f"post_scores_{sample}"] >= 0.39).sum())
    assert len(results["merge"][sample]["instances"]) == kept > 0


@pytest.mark.parametrize("sample", [0, 1])
@pytest.mark.parametrize("mode", ["merge", "instance", "global"])
def test_masks_after_post_processing(end_to_end, results, mode, sample):
    bits = np.unpackbits(end_to_end[0][f"post_{mode}_{sample}"]).reshape(SIZE).astype(bool)
    different = int((results[mode][sample]["mask"].numpy() != bits).sum())
    assert 0 < bits.sum() < bits.size
    assert different <= 5, f"{different} of {bits.size} pixels differ"


def test_position_table_is_resized_to_the_bit(fixtures_dir, rule_input):
    """14 x 14 to 20 x 20, as the release does when it starts from BEiT-3's 224 pixel weights."""
    table = rule_input(301, (199, 768))
    resized = interpolate_positions(table[None, 3:], (14, 14), (20, 20))[0]
    with np.load(fixtures_dir / "posembed_fixture.npz") as expected:
        ours = torch.cat([table[:3], resized])[:, ::16]
        assert torch.equal(ours, torch.from_numpy(expected["pos_c16"]))
