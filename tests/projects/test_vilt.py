"""An outside project brings another encoder and tokenizer to the same heads, data and tools."""

import json
import pickle
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from detectron2.utils.events import EventStorage
from transformers import ViltConfig, ViltForMaskedLM, ViltModel

from igvg_d2 import add_igvg_config
from igvg_d2.checkpoint import GroundingCheckpointer
from igvg_d2.data import TOKENIZER_REGISTRY
from igvg_d2.data.synthetic import vocabulary_words, write_shapes
from igvg_d2.data.tokenizer import is_mostly_unknown, unknown_words
from igvg_d2.inference.graph import GroundingGraph, example_inputs, longest_text, trace
from igvg_d2.solver import build_optimizer
from igvg_d2.testing import (
    assert_all_parameters_used,
    assert_backbone_contract,
    assert_losses_contract,
    random_batch,
    tiny_cfg,
)
from tests.projects.test_example_extension import run_commands

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ROOT / "projects" / "ViLT"
CONFIG = PROJECT / "configs" / "vilt_tiny_shapes.yaml"
SMALL = {
    "HIDDEN_SIZE": 32,
    "NUM_HIDDEN_LAYERS": 2,
    "NUM_ATTENTION_HEADS": 2,
    "INTERMEDIATE_SIZE": 48,
    "PATCH_SIZE": 16,
    "IMAGE_SIZE": 64,
    "VOCAB_SIZE": 64,
}


@pytest.fixture(scope="module")
def vilt():
    """The module, imported as its train_net.py does; unregistered afterwards."""
    sys.path.insert(0, str(PROJECT))
    import vilt_backbone

    yield vilt_backbone
    sys.path.remove(str(PROJECT))
    del sys.modules["vilt_backbone"]
    BACKBONE_REGISTRY._obj_map.pop("ViLT")
    TOKENIZER_REGISTRY._obj_map.pop("WordPieceTokenizer")


def config_of(**options):
    """``ViltConfig`` of the small encoder."""
    return ViltConfig(**{key.lower(): value for key, value in {**SMALL, **options}.items()})


def make_cfg(vilt, opts=(), **options):
    """Config of the tiny model with the small encoder."""
    cfg = tiny_cfg(["MODEL.BACKBONE.NAME", "ViLT", "INPUT.TOKENIZER.MAX_TOKENS", 40])
    vilt.add_vilt_config(cfg)
    for key, value in {**SMALL, **options}.items():
        cfg.MODEL.VILT[key] = value
    cfg.merge_from_list(list(opts))
    return cfg


def write_vocabulary(folder):
    """A ``vocab.txt`` that has the words of Shapes, "##s" and BERT's special tokens."""
    words = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "##s", *vocabulary_words()]
    path = folder / "vocab.txt"
    path.write_text("\n".join(words) + "\n", encoding="utf-8")
    return path


def test_project_is_small():
    lines = [len(path.read_text().splitlines()) for path in PROJECT.rglob("*.py")]
    assert len(lines) == 3 and sum(lines) < 150


def test_defaults_are_those_of_vilt_b32(vilt):
    cfg = get_cfg()
    add_igvg_config(cfg)
    vilt.add_vilt_config(cfg)
    assert {key.lower(): value for key, value in cfg.MODEL.VILT.items()}.items() <= (
        ViltConfig().to_dict().items()
    )


@pytest.mark.parametrize("patch_size", [8, 16, 32])
def test_backbone_keeps_the_contract(vilt, patch_size):
    torch.manual_seed(0)
    assert_backbone_contract(vilt.ViLT(config=config_of(PATCH_SIZE=patch_size)))


@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
def test_features_are_those_of_transformers(vilt, size):
    """Whose order of the patches is random: words and CLS agree, patches after sorting."""
    torch.manual_seed(0)
    backbone = vilt.ViLT(config=config_of()).eval()
    original = ViltModel(config_of(), add_pooling_layer=False).eval()
    original.load_state_dict(backbone.vilt.state_dict())
    images, text_ids = torch.randn(2, 3, *size), torch.randint(4, 60, (2, 9))
    padding = torch.arange(9)[None] >= torch.tensor([[4], [9]])
    with torch.no_grad():
        found = backbone(images, text_ids, padding)
        expected = original(
            input_ids=text_ids,
            attention_mask=(~padding).long(),
            pixel_values=images,
            pixel_mask=torch.ones(2, *size, dtype=torch.int64),
        ).last_hidden_state
    torch.testing.assert_close(found.text, expected[:, :9], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.pooled, expected[:, 0], atol=1e-5, rtol=1e-4)
    cells = found.image["last_feat"].flatten(2).transpose(1, 2)
    distances = torch.cdist(cells, expected[:, 10:])
    assert distances.min(dim=2).values.max() < 1e-4
    assert all(sorted(row.argmin(dim=1).tolist()) == list(range(len(row))) for row in distances)


def test_learning_rates_fall_towards_its_input(vilt):
    cfg = make_cfg(vilt, ["SOLVER.LAYER_DECAY", 0.5, "SOLVER.BASE_LR", 1.0])
    model = build_model(cfg)
    rates = {p: g["lr"] for g in build_optimizer(cfg, model).param_groups for p in g["params"]}
    last = cfg.SOLVER.BACKBONE_MULTIPLIER
    parts = {"embeddings": 8, "encoder.layer.0": 4, "encoder.layer.1": 2, "layernorm": 1}
    for name, part in ((n, model.backbone.vilt.get_submodule(n)) for n in parts):
        assert {rates[p] for p in part.parameters()} == {last / parts[name]}, name


@pytest.mark.parametrize("parts", ["all", "global"])
def test_model_trains_and_answers_with_it(vilt, parts):
    torch.manual_seed(0)
    names = ["MODEL.QUERY_GENERATOR.NAME", "", "MODEL.GROUNDING_HEAD.NAME", ""]
    model = build_model(make_cfg(vilt, names if parts == "global" else []))
    with EventStorage():
        mixed, empty = model(random_batch([2, 0, 1])), model(random_batch([0, 0]))
    assert_losses_contract(mixed, empty, {})
    assert_all_parameters_used(model, sum(mixed.values()))
    with torch.no_grad():
        (output,) = model.eval()(random_batch([1]))
    assert output["mask"].shape == (64, 64)


def test_bfloat16_and_exported_graph(vilt):
    torch.manual_seed(0)
    cfg = make_cfg(vilt)
    model = build_model(cfg)
    with EventStorage(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert_losses_contract(model(random_batch([2, 0, 1])), model(random_batch([0, 0])), {})
    assert longest_text(cfg) == 40 > cfg.MODEL.BEIT3.MAX_TEXT_POSITIONS
    graph = GroundingGraph(model.eval())
    inputs = example_inputs(cfg, model.backbone.vocab_size, (9, 5, 4), seed=1)
    with torch.no_grad():
        found, expected = trace(graph, cfg).module()(*inputs), graph(*inputs)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4)


def test_longer_texts_than_positions_are_refused_at_once(vilt):
    with pytest.raises(ValueError, match="MAX_TOKENS 41 exceeds .*POSITION_EMBEDDINGS 40; lower"):
        build_model(make_cfg(vilt, ["INPUT.TOKENIZER.MAX_TOKENS", 41]))


def test_files_of_transformers_are_weights(vilt, tmp_path, caplog):
    """As the hub has them: with a head for masked words, a pooler, and a buffer of old versions."""
    torch.manual_seed(1)
    original = ViltForMaskedLM(config_of())
    state = original.state_dict()
    state["vilt.embeddings.text_embeddings.position_ids"] = torch.arange(40)[None]
    path = str(tmp_path / "pytorch_model.bin")
    torch.save(state, path)
    model = build_model(make_cfg(vilt))
    head = model.image_projection.weight.clone()
    with caplog.at_level("INFO"):
        GroundingCheckpointer(model).load(path)
    loaded = model.backbone.vilt.state_dict()
    expected = original.vilt.state_dict()
    assert loaded.keys() == {key for key in expected if not key.startswith("pooler.")}
    assert all(torch.equal(value, expected[key]) for key, value in loaded.items())
    assert torch.equal(model.image_projection.weight, head)
    assert f"the encoder has {len(loaded)} tensors of {len(state)}" in caplog.text
    assert "it has the encoder only" in caplog.text and "image_projection.weight" in caplog.text

    wider = build_model(make_cfg(vilt, HIDDEN_SIZE=48))
    with pytest.raises(ValueError, match=r"cls_token: file \(1, 1, 32\), model \(1, 1, 48\)"):
        GroundingCheckpointer(wider).load(path)
    del state["vilt.layernorm.bias"]
    torch.save(state, path)
    with pytest.raises(ValueError, match="1 tensors in the model but not .*vilt.layernorm.bias"):
        GroundingCheckpointer(model).load(path)


def test_word_pieces(vilt, tmp_path):
    path = write_vocabulary(tmp_path)
    ids = {word: index for index, word in enumerate(path.read_text().split())}
    tokenizer = vilt.WordPieceTokenizer(file=str(path), max_tokens=6)
    assert tokenizer("The red Star") == [3, ids["the"], ids["red"], ids["star"], 4]
    assert tokenizer("reds")[1:-1] == [ids["red"], ids["##s"]]
    assert len(tokenizer("the red star left of the star")) == 6 and tokenizer.unk_id == 2
    assert tokenizer("the star left of the red ring")[-1] == 4
    assert tokenizer.vocab_size == len(ids)
    assert pickle.loads(pickle.dumps(tokenizer))("the star") == tokenizer("the star")
    assert unknown_words(tokenizer, "the red zebra") == ["zebra"]
    assert is_mostly_unknown(tokenizer, "giraffe zebra star")
    with pytest.raises(ValueError, match="has no token"):
        tokenizer(" ")
    path.write_text("[CLS]\n[SEP]\n[UNK]\nred\nred\n")
    tokenizer = vilt.WordPieceTokenizer(file=str(path), max_tokens=6)
    assert tokenizer("red") == [0, 4, 1] and tokenizer.vocab_size == 5
    tokenizer = vilt.WordPieceTokenizer(file=str(path), max_tokens=2)
    with pytest.raises(ValueError, match="MAX_TOKENS: expected 3 or more, got 2"):
        tokenizer("red")


def test_another_file_than_a_vocabulary_is_refused(vilt, tmp_path):
    (tmp_path / "words.txt").write_text("[CLS]\n[UNK]\nred\n")
    with pytest.raises(ValueError, match=r"TOKENIZER.FILE: '.*words.txt' lacks a line .*\[SEP\]"):
        vilt.WordPieceTokenizer(file=str(tmp_path / "words.txt"), max_tokens=6)
    with pytest.raises(ValueError, match=r"TOKENIZER.FILE: '' lacks a line .*\[SEP\]"):
        vilt.WordPieceTokenizer(file="", max_tokens=6)
    with pytest.raises(FileNotFoundError, match="nowhere.txt"):
        vilt.WordPieceTokenizer(file=str(tmp_path / "nowhere.txt"), max_tokens=6)


def test_run_script_says_what_it_wants(vilt, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["run_script.py"])
    with pytest.raises(SystemExit, match="run_script.py SCRIPT ARGS"):
        runpy.run_path(str(PROJECT / "run_script.py"), run_name="__main__")


def test_trains_evaluates_and_answers_in_a_fresh_process(tmp_path):
    """From a file of transformers with word pieces; the demo then draws an answer."""
    write_shapes(str(tmp_path / "shapes"), seed=1, scale=0.003, num_workers=1)
    out, images = tmp_path / "out", tmp_path / "shapes" / "images" / "train2014"
    vocabulary, weights = write_vocabulary(tmp_path), str(tmp_path / "vilt.bin")
    size = {"HIDDEN_SIZE": 32, "NUM_HIDDEN_LAYERS": 1, "PATCH_SIZE": 8, "IMAGE_SIZE": 64}
    torch.save(ViltForMaskedLM(config_of(**size, VOCAB_SIZE=256)).state_dict(), weights)
    options = [
        *(x for key, value in {**SMALL, **size}.items() for x in (f"MODEL.VILT.{key}", str(value))),
        "MODEL.VILT.VOCAB_SIZE", "256", "OUTPUT_DIR", str(out), "TEST.VIS_SAMPLES", "0",
        "SOLVER.MAX_ITER", "3", "SOLVER.WARMUP_ITERS", "1", "SOLVER.IMS_PER_BATCH", "4",
        "DATALOADER.NUM_WORKERS", "0", "INPUT.TOKENIZER.NAME", "WordPieceTokenizer",
        "INPUT.TOKENIZER.FILE", str(vocabulary), "MODEL.WEIGHTS",
    ]  # fmt: skip
    final, config = str(out / "model_final.pth"), ["--config-file", str(CONFIG)]
    image, answer = str(min(images.iterdir())), tmp_path / "answer.png"
    demo = [str(ROOT / "demo" / "demo.py"), "--input", image, "--expression", "the red circle"]
    commands = [
        [str(PROJECT / "train_net.py"), *config, *options, weights],
        [str(PROJECT / "train_net.py"), *config, "--eval-only", *options, final],
        [str(PROJECT / "run_script.py"), *demo, "--output", str(answer), *config, "--opts"]
        + [*options, final],
    ]
    run_commands(commands, PROJECT, tmp_path)
    log = (out / "log.txt").read_text()
    assert re.search(r"vilt.bin' is converted while it is read: the encoder has \d+ tensors", log)
    records = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    keys = set().union(*records)
    assert {"loss_point_heatmap", "loss_giou", "gres/gIoU", "grec/F1score"} <= keys
    predictions = out / "inference" / "shapes_val" / "shapes_val_predictions.jsonl"
    assert predictions.stat().st_size > 0 and answer.is_file()
