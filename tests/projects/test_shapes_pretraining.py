"""The outside project that pretrains the tiny encoder: its scenes, its objectives, its file."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, build_model

from igvg_d2 import add_igvg_config
from igvg_d2.checkpoint import convert_beit3, is_beit3
from igvg_d2.data import build_tokenizer
from igvg_d2.data.synthetic.generator import SPLITS
from igvg_d2.solver import OPTIMIZER_REGISTRY, build_optimizer

PROJECT = Path(__file__).resolve().parents[2] / "projects" / "Shapes"
MASK_ID = 255


@pytest.fixture(scope="module")
def pretraining():
    """The package, imported as its train_net.py does; unregistered afterwards."""
    sys.path.insert(0, str(PROJECT))
    import shapes_pretraining

    yield shapes_pretraining
    sys.path.remove(str(PROJECT))
    for name in [n for n in sys.modules if n.split(".")[0] == "shapes_pretraining"]:
        del sys.modules[name]
    META_ARCH_REGISTRY._obj_map.pop("BEiT3Pretraining")
    OPTIMIZER_REGISTRY._obj_map.pop("Muon")


@pytest.fixture(scope="module")
def cfg(pretraining):
    """The shipped config with a narrow encoder."""
    cfg = get_cfg()
    add_igvg_config(cfg)
    pretraining.add_pretraining_config(cfg)
    cfg.merge_from_file(str(PROJECT / "configs" / "pretrain_tiny.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    beit3 = cfg.MODEL.BEIT3
    beit3.EMBED_DIM, beit3.DEPTH, beit3.NUM_HEADS, beit3.FFN_DIM = 32, 2, 2, 48
    return cfg


@pytest.fixture(scope="module")
def scenes(pretraining, cfg):
    tokenizer = build_tokenizer(cfg)
    return pretraining.PretrainingScenes(
        tokenizer, cfg.INPUT.IMAGE_SIZE, 8, 0, MASK_ID, task_shares=(0.5, 0.2, 0.15), pool=12
    )


@pytest.fixture(scope="module")
def samples(scenes):
    stream = iter(scenes)
    return [next(stream) for _ in range(120)]


def test_no_split_has_a_scene_of_the_stream(pretraining):
    assert pretraining.scenes.STREAM_INDEX not in [split.index for split in SPLITS]


def test_stream_depends_on_its_arguments_only(scenes, samples):
    stream = iter(scenes)
    for sample in samples[:20]:
        again = next(stream)
        assert all(torch.equal(again[key], value) for key, value in sample.items())


def test_processes_draw_other_scenes(pretraining, cfg):
    drawn = []
    for rank in range(2):
        stream = iter(
            pretraining.PretrainingScenes(
                build_tokenizer(cfg), (96, 96), 8, 0, MASK_ID, rank=rank, world_size=2, pool=12
            )
        )
        drawn.append({next(stream)["attributes"].numpy().tobytes() for _ in range(40)})
    assert drawn[0] and drawn[1] and not drawn[0] & drawn[1]


def test_every_kind_of_sample_occurs_and_says_what_is_true(samples):
    hidden = [s for s in samples if s["hidden"].any()]
    masked = [s for s in samples if (s["word_labels"] >= 0).any()]
    absent = [s for s in samples if not s["referred"].any()]
    assert len(hidden) > 20 and len(masked) > 10 and len(absent) > 10
    for sample in hidden:
        assert sample["hidden"][sample["referred"]].all(), "what the text names is hidden"
        assert not (sample["word_labels"] >= 0).any(), "then no word is masked"
    whole = [s for s in samples if s["whole"]]
    assert whole and not any((s["text_ids"] == MASK_ID).any() or s["hidden"].any() for s in whole)
    assert any((s["text_ids"] == MASK_ID).any() for s in absent), "a mask would tell what is there"
    for sample in masked:
        assert sample["referred"].any(), "words of a false text cannot be restored"
        places = sample["word_labels"] >= 0
        assert (sample["text_ids"][places] == MASK_ID).all()
        assert (sample["word_labels"][places] > 3).all()


def test_hidden_objects_are_painted_over(pretraining, samples):
    paint = torch.tensor(pretraining.scenes.HIDDEN_COLOR, dtype=torch.uint8)[:, None]
    for sample in samples:
        painted = (sample["image"].flatten(1) == paint).all(dim=0)
        objects = sample["objects"].flatten().long()
        hidden = torch.cat([sample["hidden"], torch.tensor([False])])[objects]
        assert painted[hidden].all()
        assert hidden.any() == painted.any()


def test_captions_say_how_objects_lie(pretraining):
    objects = np.full((8, 8), pretraining.scenes.BACKGROUND)
    objects[:2, :2], objects[6:, 1:3], objects[1:3, 6:] = 0, 1, 2
    attributes = np.array([[0, 0, 0], [1, 1, 1], [2, 2, 2]])
    names = ["small red circle", "medium orange square", "large yellow triangle"]
    relations = {(0, 1): "above", (0, 2): "left of", (2, 0): "right of", (1, 0): "below"}
    seen = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        words, targets = pretraining.scenes.caption(rng, objects, attributes)
        text = " ".join(words)
        assert {names[k] in text for k in targets} == {True}
        for (first, second), relation in relations.items():
            if f"{names[first]} {relation} {names[second]}" in text:
                seen.add((first, second))
            else:
                assert not (text.startswith(names[first]) and text.endswith(names[second])) or (
                    len(targets) == 3
                )
    assert seen == set(relations)


def test_referred_loss_is_of_whole_samples_and_their_patches(pretraining, cfg, samples):
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    whole = next(s for s in samples if s["whole"] and s["referred"].any())
    other = next(s for s in samples if not s["whole"] and s["referred"].any())
    loss = model([whole])["loss_referred"]
    # Two objects of one and of three patches on a grid of 2 x 4; the smaller one is meant.
    objects = torch.full((1, 16, 32), pretraining.scenes.BACKGROUND)
    objects[0, :8, :8], objects[0, 8:, 8:] = 0, 1
    referred = torch.zeros(1, pretraining.scenes.MAX_OBJECTS, dtype=torch.bool)
    referred[0, 0] = True
    logits = torch.full((1, 8), 0.7)
    found = model._referred_loss(logits, objects, referred, torch.tensor([True]), 4)
    # -log p once for the object that is meant, -log (1 - p) for the other and the background.
    error = (F.softplus(torch.tensor(-0.7)) + 2 * F.softplus(torch.tensor(0.7))) / 3
    torch.testing.assert_close(found, error)
    assert model._referred_loss(logits, objects, referred, torch.tensor([False]), 4) == 0
    assert model([other])["loss_referred"] == 0 and loss > 0
    plain = cfg.clone()
    plain.MODEL.PRETRAINING.REFERRED_WEIGHT = 0.0
    assert "loss_referred" not in build_model(plain)([whole])


def test_pointers_stand_before_the_last_layer(pretraining, cfg, samples):
    torch.manual_seed(0)
    deeper = cfg.clone()
    deeper.MODEL.BEIT3.DEPTH = 4
    deeper.MODEL.PRETRAINING.POINTER_WEIGHT = 1.0
    model = build_model(deeper)
    whole = [s for s in samples if s["whole"] and s["referred"].any()][:2]
    model(whole)["loss_pointer"].backward()
    trained = [layer.text.fc2.weight.grad is not None for layer in model.backbone.encoder.layers]
    assert trained == [True, True, True, False]
    pointer = model.pointers[0]
    patches, ends = torch.randn(2, 5, 32), torch.randn(2, 32)
    products = (pointer.image(patches) * pointer.text(ends)[:, None]).sum(dim=2)
    torch.testing.assert_close(pointer(patches, ends), products / 32**0.5 - 1.5)
    deeper.MODEL.PRETRAINING.POINTER_WEIGHT = 0.0
    assert "loss_pointer" not in build_model(deeper)(whole)


def test_listening_layers_pass_their_input_on(pretraining, cfg):
    """So an encoder can be made deeper without a change of what it says."""
    torch.manual_seed(0)
    deeper = cfg.clone()
    deeper.MODEL.BEIT3.DEPTH, deeper.MODEL.PRETRAINING.LISTENING_LAYERS = 3, 1
    shallow, deep = build_model(cfg).backbone.eval(), build_model(deeper).backbone.eval()
    deep.load_state_dict(shallow.state_dict(), strict=False)
    ids = torch.tensor([[0, 5, 6, 2]])
    image, padding = torch.randn(1, 3, 96, 96), torch.zeros(1, 4, dtype=torch.bool)
    one, two = shallow(image, ids, padding), deep(image, ids, padding)
    assert torch.equal(one.text, two.text) and torch.equal(one.pooled, two.pooled)
    assert torch.equal(one.image["last_feat"], two.image["last_feat"])


def test_words_change_with_a_flip(pretraining):
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    objects = np.arange(4).reshape(2, 2)
    seen = set()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        flipped, ids, words = pretraining.scenes.flip(rng, image, objects, ["top", "left", "star"])
        assert (flipped[..., 0] // 3 == ids).all()
        assert (words[0] == "bottom") == (ids[0, 0] in (2, 3))
        assert (words[1] == "right") == (ids[0, 0] in (1, 3))
        seen.add(tuple(words))
    assert len(seen) == 4


def test_boxes_by_hand(pretraining):
    none = pretraining.scenes.BACKGROUND
    objects = torch.full((1, 4, 8), none)
    objects[0, 1:3, 2:6] = 0
    objects[0, 3, 7] = 1
    boxes = pretraining.model.object_boxes(objects)
    expected = torch.tensor([[0.5, 0.5, 0.5, 0.5], [7.5 / 8, 3.5 / 4, 1 / 8, 1 / 4]])
    torch.testing.assert_close(boxes[0, :2], expected)
    assert (boxes[0, 2:] == 0).all()


def test_neighbors_by_hand(pretraining):
    from shapes_pretraining import neighbors

    # A red circle, right of it a red square, right and below a blue circle; a slot without object.
    centers = torch.tensor([[[0.2, 0.5], [0.5, 0.53], [0.8, 0.9], [0.0, 0.0]]])
    attributes = torch.tensor([[[0, 0, 0], [1, 0, 0], [0, 5, 0], [-1, -1, -1]]])
    present, further = neighbors.neighbor_targets(centers, attributes)
    shapes = len(pretraining.scenes.SHAPES)
    left, right, above, below = present[0].unbind(1)
    assert left[0].sum() == 0 and right[0].nonzero().flatten().tolist() == [
        0,
        1,
        shapes,
        shapes + 5,
    ]
    assert below[0].nonzero().flatten().tolist() == [0, shapes + 5], "the square is level with it"
    assert (
        left[2].nonzero().flatten().tolist()
        == [0, 1, shapes]
        == above[2].nonzero().flatten().tolist()
    )
    # (direction, group): how many of one shape, colour, both lie further that way.
    assert further[0, 0].tolist() == [[0, 0, 0], [1, 1, 0], [0, 0, 0], [1, 1, 0]]
    assert further[0, 1].tolist() == [[0, 1, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_every_batch_trains_every_parameter(pretraining, cfg, samples):
    torch.manual_seed(0)
    model = build_model(cfg)
    absent = [s for s in samples if not s["referred"].any()][:3]
    keys = None
    for batch in (samples[:4], absent):
        model.zero_grad()
        losses = model(batch)
        assert keys in (None, set(losses)), "constant keys"
        keys = set(losses)
        sum(losses.values()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert all(loss.isfinite() for loss in losses.values())


def test_encoder_survives_the_way_through_a_beit3_file(pretraining, cfg):
    torch.manual_seed(0)
    model = build_model(cfg)
    state = pretraining.beit3_state(model.backbone)
    assert is_beit3(state)
    converted, report = convert_beit3(state, (96, 96), 8)
    expected = {f"backbone.{key}": value for key, value in model.backbone.state_dict().items()}
    assert set(converted) == set(expected)
    assert all(torch.equal(converted[key], value) for key, value in expected.items())
    assert (report.size.embed_dim, report.size.depth, report.size.patch_size) == (32, 2, 8)


def test_muon_moves_equally_in_all_directions(pretraining):
    torch.manual_seed(0)
    matrix = torch.randn(20, 48) * torch.logspace(0, -3, 20)[:, None]
    values = torch.linalg.svdvals(pretraining.muon.orthogonalise(matrix, steps=8))
    assert values.min() > 0.5 and values.max() < 1.5


def test_the_config_trains_matrices_with_muon(pretraining, cfg):
    model = build_model(cfg)
    groups = build_optimizer(cfg, model).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)] for group in groups if group["orthogonal"] for p in group["params"]}
    assert "backbone.encoder.layers.0.vision.fc1.weight" in found
    assert "backbone.text_embed.tokens.weight" not in found
    assert all(group["lr"] == cfg.SOLVER.MATRIX_LR for group in groups if group["orthogonal"])
