"""Weights of another vocabulary, number of queries or parts: strict, unless it is named."""

import pytest
import torch
from detectron2.modeling import build_model

import igvg_d2.modeling  # noqa: F401
from igvg_d2.checkpoint import GroundingCheckpointer, write_checkpoint
from igvg_d2.testing import tiny_cfg

TOKENS = "backbone.text_embed.tokens.weight"
VOCABULARY = "MODEL.BEIT3.VOCAB_SIZE"
QUERIES = "MODEL.QUERY_GENERATOR.NUM_OBJECT_QUERIES"


def build(*opts):
    return build_model(tiny_cfg(opts))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """(file of a model with 64 words and 4 queries, its tensors)."""
    path = str(tmp_path_factory.mktemp("weights") / "w.safetensors")
    state = build().state_dict()
    write_checkpoint(path, state, "somebody", num_queries=4)
    return path, state


def load(model, path, **names):
    """(lines, tensors before, tensors after)."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    lines, author = GroundingCheckpointer(model).load_changed(path, **names)
    assert author == "somebody"
    return lines, before, model.state_dict()


@pytest.mark.parametrize("rows", [70, 50])
def test_a_vocabulary_is_resized_or_begins_anew(weights, rows):
    path, state = weights
    with pytest.raises(ValueError, match=f"(?s)of another shape: {TOKENS}.*--resize {TOKENS}$"):
        load(build(VOCABULARY, rows), path)
    lines, before, after = load(build(VOCABULARY, rows), path, resize=[TOKENS])
    kept = min(rows, 64)
    assert lines == [f"resized: {TOKENS}, {kept} rows of the file's 64, {rows - kept} new"]
    assert torch.equal(after[TOKENS][:kept], state[TOKENS][:kept])
    assert torch.equal(after[TOKENS][kept:], before[TOKENS][kept:])
    lines, before, after = load(build(VOCABULARY, rows), path, reset=["backbone.text_embed.tok"])
    assert lines == [f"new: {TOKENS}"] and torch.equal(after[TOKENS], before[TOKENS])
    assert all(torch.equal(after[key], state[key]) for key in state if key != TOKENS)


def test_another_number_of_queries_is_named(weights):
    path, state = weights
    with pytest.raises(ValueError, match="has 4 object queries, the configured one 6"):
        load(build(QUERIES, 6), path)
    lines, _, after = load(build(QUERIES, 6), path, resize=["num_queries"])
    assert lines == [] and all(torch.equal(after[key], state[key]) for key in state)


def test_learned_queries_are_resized(tmp_path):
    learned = ("MODEL.QUERY_GENERATOR.NAME", "LearnedQueryGenerator")
    path, state = str(tmp_path / "learned.pth"), build(*learned).state_dict()
    write_checkpoint(path, state, "somebody", num_queries=4)
    names = ["num_queries", "query_generator."]
    lines, before, after = load(build(*learned, QUERIES, 6), path, resize=names)
    assert lines == [
        f"resized: query_generator.{key}, 4 rows of the file's 4, 2 new"
        for key in ("features", "points")
    ]
    key = "query_generator.points"
    assert torch.equal(after[key], torch.cat([state[key], before[key][4:]]))


def test_parts_that_only_one_has(weights):
    path, state = weights
    without = ("MODEL.GROUNDING_HEAD.NAME", "", "MODEL.QUERY_GENERATOR.NAME", "")
    with pytest.raises(ValueError, match="in the file but not in the model") as error:
        load(build(*without), path)
    names = str(error.value).rpartition("--reset ")[2].split()
    lines, _, after = load(build(*without), path, reset=names)
    left = [line for line in lines if line.startswith("left out: grounding_head.")]
    assert len(left) == sum(key.startswith("grounding_head.") for key in state)
    assert all(torch.equal(after[key], state[key]) for key in after if "left" not in key)
    deeper = ("MODEL.GROUNDING_HEAD.DEC_LAYERS", 3)
    with pytest.raises(ValueError, match="(?s)in the model but not.*--reset grounding_head"):
        load(build(*deeper), path)
    lines, before, after = load(build(*deeper), path, reset=["grounding_head."])
    assert "which the file lacks" in "".join(lines)
    assert all(torch.equal(after[k], before[k]) for k in after if k.startswith("grounding_head."))


@pytest.mark.parametrize(
    "names, message",
    [
        ({"reset": ["nek."]}, "reset: no tensor of file or model begins with 'nek.'"),
        ({"resize": ["neck."]}, "resize: 'neck.' begins the name of no table that differs"),
        ({"resize": ["backbone.text_embed."]}, "leave it out, or reset it"),
    ],
)
def test_names_that_fit_nothing(weights, names, message):
    with pytest.raises(ValueError, match=message):
        load(build("MODEL.BEIT3.MAX_TEXT_POSITIONS", 30), weights[0], **names)


def test_of_an_encoder_the_other_parts_are_new(tmp_path, caplog):
    state = build().state_dict()
    encoder = {key: value for key, value in state.items() if key.startswith("backbone.")}
    path = str(tmp_path / "encoder.safetensors")
    write_checkpoint(path, encoder, "BEiT-3")
    lines, author = GroundingCheckpointer(build()).load_changed(path)
    assert (lines, author) == ([], "BEiT-3") and "has the encoder only" in caplog.text
    with pytest.raises(ValueError, match=f"--resize {TOKENS}$"):
        GroundingCheckpointer(build(VOCABULARY, 70)).load_changed(path)
