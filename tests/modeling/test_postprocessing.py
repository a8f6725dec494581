"""From logits to predictions in the original image, by hand."""

import dataclasses

import pytest
import torch

from igvg_d2.modeling.postprocessing import PostprocessOptions, grounding_postprocess

OPTIONS = PostprocessOptions(
    score_thresh=0.7,
    mask_thresh=0.5,
    output_mask="merge",
    weight_scores=False,
    mask_resize="logits",
    no_target_test="softmax",
    align_corners=False,
)
FIELDS = {"pred_boxes", "scores", "pred_classes", "pred_masks", "pred_points"}
# Every mask of the tests is 2 x 2 cells: the network input is 4 x 4, the original image 4 x 8.
NETWORK, ORIGINAL = (4, 4), (4, 8)


def logit(probability):
    return torch.logit(torch.tensor(probability))


def make_outputs(scores=(0.2, 0.9), present=0.5, masks=None):
    """One sample with two queries; query 0 covers the left, query 1 the right column."""
    query_masks = torch.full((1, 2, 2, 2), -9.0)
    query_masks[0, 0, :, 0] = 9.0
    query_masks[0, 1, :, 1] = 9.0
    global_mask = torch.full((1, 1, 2, 2), -9.0)
    global_mask[0, 0, 0, :] = 9.0  # the upper row
    return {
        "pred_logits": torch.stack([logit(scores), torch.zeros(2)], dim=-1)[None],
        "pred_boxes": torch.tensor([[[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.75, 0.5]]]),
        "pred_masks": query_masks if masks is None else masks,
        "pred_points": torch.tensor([[[0.25, 0.5], [0.75, 0.25]]]),
        "sem_seg": global_mask,
        "no_target_logits": torch.tensor([[float(logit(present)), 0.0]]),
        "attention_map": torch.zeros(1, 2, 2),
    }


def postprocess(outputs, size=ORIGINAL, **changes):
    options = dataclasses.replace(OPTIONS, **changes)
    return grounding_postprocess(outputs, NETWORK, [size], options)[0]


def test_boxes_points_and_scores_are_in_the_original_frame():
    result = postprocess(make_outputs())
    candidates = result["candidates"]
    assert candidates.image_size == ORIGINAL
    torch.testing.assert_close(candidates.scores, torch.tensor([0.9, 0.2]))
    # By descending score; the first box, x from 3 to 9, is clipped at the width of 8.
    expected = torch.tensor([[3.0, 1.0, 8.0, 3.0], [0.0, 0.0, 4.0, 4.0]])
    torch.testing.assert_close(candidates.pred_boxes.tensor, expected)
    assert candidates.pred_points.tolist() == [[6.0, 1.0], [2.0, 2.0]]
    assert candidates.pred_classes.tolist() == [0, 0]
    assert candidates.pred_masks[0, :, 4:].all() and not candidates.pred_masks[0, :, :4].any()


def test_only_queries_above_the_threshold_are_kept():
    result = postprocess(make_outputs())
    assert len(result["instances"]) == 1 and result["no_target"] is False
    assert torch.equal(result["instances"].pred_masks[0], result["candidates"].pred_masks[0])
    assert tuple(result["attention_map"].shape) == (2, 2)


@pytest.mark.parametrize(
    "mode, covered",
    [("instance", "right"), ("global", "upper"), ("merge", "either")],
)
def test_union_mask(mode, covered):
    upper, right = torch.zeros(ORIGINAL, dtype=torch.bool), torch.zeros(ORIGINAL, dtype=torch.bool)
    upper[:2], right[:, 4:] = True, True
    expected = {"right": right, "upper": upper, "either": upper | right}[covered]
    assert torch.equal(postprocess(make_outputs(), output_mask=mode)["mask"], expected)


def test_union_mask_without_a_global_mask_is_that_of_the_instances():
    outputs = {**make_outputs(), "sem_seg": None}
    result = postprocess(outputs, output_mask="global")
    assert "sem_seg" not in result
    assert result["mask"][:, 4:].all() and not result["mask"][:, :4].any()


def test_nothing_kept_leaves_all_fields_and_only_the_global_mask():
    result = postprocess(make_outputs(scores=(0.2, 0.6)))
    assert result["no_target"] is True
    assert len(result["instances"]) == 0 and len(result["candidates"]) == 2
    assert set(result["instances"].get_fields()) == FIELDS
    assert tuple(result["instances"].pred_masks.shape) == (0, *ORIGINAL)
    assert result["mask"][:2].all() and not result["mask"][2:].any()
    assert not postprocess(make_outputs(scores=(0.2, 0.6)), output_mask="instance")["mask"].any()


def test_scores_are_weighted_by_the_presence_of_a_target():
    outputs = make_outputs(present=0.75)
    weighted = postprocess(outputs, weight_scores=True)
    torch.testing.assert_close(weighted["candidates"].scores, torch.tensor([0.675, 0.15]))
    assert weighted["no_target"] is True
    assert float(weighted["no_target_score"]) == pytest.approx(0.25)
    assert postprocess(outputs)["no_target"] is False


def test_released_presence_reads_the_first_logit_alone():
    outputs = make_outputs(present=0.75)
    outputs["no_target_logits"] = outputs["no_target_logits"] + torch.tensor([0.0, 2.0])
    result = postprocess(outputs, no_target_test="sigmoid0")
    assert float(result["no_target_score"]) == pytest.approx(0.25)
    # exp(log 3) against exp(2).
    softmax = postprocess(outputs)
    assert float(softmax["no_target_score"]) == pytest.approx(7.389056 / 10.389056)


def test_the_threshold_itself_is_kept_and_compared_in_float64():
    outputs = make_outputs(scores=(0.1, 0.5))
    assert postprocess(outputs, score_thresh=0.5)["no_target"] is False
    # In float32 this threshold would be 0.5.
    assert postprocess(outputs, score_thresh=0.5 + 1e-12)["no_target"] is True


def test_masks_are_resized_as_logits_or_as_binary_masks():
    masks = torch.full((1, 2, 2, 2), -9.0)
    # 2 columns of logits -1 and 3: resized to 4 columns they are -1, 0, 2, 3; to 8 the boundary,
    # where the interpolation is 0, lies between columns 2 (-0.5) and 3 (0.5).
    masks[0, 1] = torch.tensor([[-1.0, 3.0], [-1.0, 3.0]])
    outputs = make_outputs(masks=masks)
    soft = postprocess(outputs)["candidates"].pred_masks[0, 0]
    assert soft.tolist() == [False, False, False, True, True, True, True, True]
    # Binary: thresholded on the network's 4 columns, 0 is foreground, then every column twice.
    hard = postprocess(outputs, mask_resize="binary")["candidates"].pred_masks[0, 0]
    assert hard.tolist() == [False, False, True, True, True, True, True, True]
    # Aligned corners: -1, 1/3, 5/3, 3.
    corners = postprocess(outputs, mask_resize="binary", align_corners=True)
    assert corners["candidates"].pred_masks[0, 0].tolist() == [False, False] + [True] * 6
    same = postprocess(outputs, NETWORK, mask_resize="binary")["candidates"].pred_masks[0, 0]
    assert same.tolist() == [False, True, True, True]


def test_threshold_of_the_masks():
    masks = torch.zeros(1, 2, 2, 2)
    masks[0, 1] = float(logit(0.6))
    outputs = make_outputs(masks=masks)
    for mask_thresh, expected in ((0.55, True), (0.65, False)):
        result = postprocess(outputs, mask_thresh=mask_thresh)
        assert bool(result["candidates"].pred_masks[0].all()) is expected


def test_logits_of_the_global_mask_are_resized_but_not_thresholded():
    sem_seg = postprocess(make_outputs())["sem_seg"]
    assert tuple(sem_seg.shape) == (1, *ORIGINAL)
    # Bilinear between rows at 1/4 and 3/4 of the height: 9, 4.5, -4.5, -9.
    assert sem_seg[0, :, 0].tolist() == [9.0, 4.5, -4.5, -9.0]


def test_head_without_masks_gives_empty_masks():
    outputs = {**make_outputs(), "pred_masks": None}
    result = postprocess(outputs)
    assert tuple(result["instances"].pred_masks.shape) == (1, *ORIGINAL)
    assert not result["instances"].pred_masks.any()


def test_global_branch_alone():
    full = make_outputs(present=0.4)
    outputs = {key: full[key] for key in ("sem_seg", "no_target_logits")}
    result = postprocess(outputs)
    assert result["no_target"] is True and "attention_map" not in result
    assert set(result["instances"].get_fields()) == FIELDS and len(result["candidates"]) == 0
    assert result["mask"][:2].all() and not result["mask"][2:].any()
    outputs["no_target_logits"] = make_outputs(present=0.6)["no_target_logits"]
    assert postprocess(outputs)["no_target"] is False


def test_samples_keep_their_own_sizes():
    one = make_outputs()
    outputs = {key: torch.cat([value, value]) for key, value in one.items()}
    results = grounding_postprocess(outputs, NETWORK, [(4, 8), (6, 3)], OPTIONS)
    for result, size in zip(results, [(4, 8), (6, 3)]):
        assert tuple(result["mask"].shape) == size
        assert tuple(result["sem_seg"].shape) == (1, *size)
        assert result["candidates"].image_size == size
    assert results[1]["candidates"].pred_points.tolist() == [[2.25, 1.5], [0.75, 3.0]]


def test_bfloat16_outputs_give_float32_predictions():
    outputs = {key: value.to(torch.bfloat16) for key, value in make_outputs().items()}
    result = postprocess(outputs)
    assert result["candidates"].scores.dtype == torch.float32
    assert result["candidates"].pred_boxes.tensor.dtype == torch.float32
    assert result["sem_seg"].dtype == torch.float32


@pytest.mark.parametrize("name", ["output_mask", "mask_resize", "no_target_test"])
def test_unknown_modes_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be one of .*'x'"):
        dataclasses.replace(OPTIONS, **{name: "x"})


def test_boxes_are_clipped_before_suppression():
    outputs = make_outputs(scores=(0.8, 0.9))
    # From -2 to 6 and from -3 to 5: IoU 5/6 within the image, 7/9 as predicted.
    outputs["pred_boxes"] = torch.tensor([[[0.25, 0.5, 1.0, 1.0], [0.125, 0.5, 1.0, 1.0]]])
    scores = postprocess(outputs, nms_thresh=0.8)["candidates"].scores
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.0]))


def test_suppressed_duplicates_lose_their_score_and_stay():
    outputs = make_outputs(scores=(0.9, 0.8))
    outputs["pred_boxes"] = outputs["pred_boxes"][:, :1].expand(-1, 2, -1)
    plain, suppressed = postprocess(outputs), postprocess(outputs, nms_thresh=0.7)
    assert len(plain["instances"]) == 2 and len(suppressed["instances"]) == 1
    assert suppressed["instances"].scores[0] == plain["instances"].scores[0]
    assert len(suppressed["candidates"]) == 2 and suppressed["candidates"].scores[1] == 0
    apart = make_outputs(scores=(0.9, 0.8))
    assert len(postprocess(apart, nms_thresh=0.7)["instances"]) == 2


@pytest.mark.parametrize(
    "keys, changed, value",
    [
        (None, "pred_logits", float("nan")),
        (None, "pred_logits", float("inf")),
        (None, "pred_boxes", float("nan")),
        (None, "no_target_logits", float("nan")),
        (("sem_seg", "no_target_logits"), "no_target_logits", float("nan")),
        (("sem_seg", "no_target_logits"), "no_target_logits", float("inf")),
    ],
)
def test_numbers_that_are_not_finite_are_no_answer(keys, changed, value):
    one = make_outputs()
    outputs = {key: torch.cat([one[key], one[key]]) for key in keys or one}
    outputs[changed][1, ..., 0] = value
    with pytest.raises(FloatingPointError, match="of sample 1 of the batch are infinite or NaN"):
        grounding_postprocess(outputs, NETWORK, [ORIGINAL] * 2, OPTIONS)
