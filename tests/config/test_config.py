"""Every config merges into the keys that exist, and the small ones build a model."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY

import igvg_d2.modeling  # noqa: F401
from igvg_d2.checkpoint import find_weights
from igvg_d2.config import REMOVED_KEYS, add_igvg_config
from igvg_d2.engine import resolve_epochs, setup_config
from igvg_d2.io.hub import BEIT3_TOKENIZER
from igvg_d2.solver import build_lr_scheduler

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml")) + sorted((ROOT / "projects").rglob("*.yaml"))
# Outside projects have keys of their own; tests/projects covers them.
OUTSIDE = {"example_extension", "ViLT", "pretrain_tiny.yaml"}
CONFIGS = [path for path in CONFIGS if not OUTSIDE & set(path.parts)]
# Parts that configs name second in _BASE_, without a schedule of their own.
PARTS = {"BEiT3-Large.yaml", "Mix-RefCOCO.yaml"}
CONFIGS = [path for path in CONFIGS if path.name not in PARTS]
SMALL = [p for p in CONFIGS if "tiny" in p.name or {"ablations", "findings"} & set(p.parts)]


def name_of(path):
    return str(path.relative_to(ROOT))


def build_shell(cfg):
    """The model without memory for its parameters; test_every_config.py builds small ones."""
    with torch.device("meta"):
        return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)


def test_there_are_configs():
    assert len(SMALL) >= 15 and len(CONFIGS) > len(SMALL)


def test_number_of_keys():
    """At most 100; lower the bound whenever keys go."""
    before = dict(flatten(get_cfg()))
    cfg = get_cfg()
    add_igvg_config(cfg)
    assert len(dict(flatten(cfg))) - len(before) <= 100


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_config_merges_and_keeps_no_target_samples(path):
    cfg = setup_config(str(path))
    assert not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    assert cfg.INPUT.RANDOM_FLIP == "none"
    assert path.read_text().startswith("#")


@pytest.mark.parametrize("path", SMALL, ids=name_of)
def test_small_config_builds(path):
    cfg = setup_config(str(path))
    words = cfg.MODEL.BEIT3.VOCAB_SIZE * cfg.MODEL.BEIT3.EMBED_DIM
    assert sum(p.numel() for p in build_shell(cfg).parameters()) - words < 3.2e6


@pytest.mark.parametrize("path", [p for p in CONFIGS if p not in SMALL], ids=name_of)
def test_large_config_builds_in_full_size(path):
    cfg = setup_config(str(path))
    model = build_shell(cfg)
    assert model.backbone.embed_dim == cfg.MODEL.BEIT3.EMBED_DIM >= 768
    assert sum(p.numel() for p in model.parameters()) > 200e6


BENCHMARKS = {"gRefCOCO": 10, "Ref-ZOM": 10, "R-RefCOCO": 10, "RefCOCO": 20}


@pytest.mark.parametrize("size, width", [("base", 768), ("large", 1024)])
@pytest.mark.parametrize("folder, epochs", BENCHMARKS.items())
def test_paper_configs_have_the_recipe(folder, epochs, size, width):
    """Adam with amsgrad, clipping at 0.15, encoder at a tenth; 10 or 20 epochs."""
    path = ROOT / "configs" / folder / f"igvg_beit3_{size}_320_{epochs}ep.yaml"
    cfg = setup_config(str(path))
    solver = cfg.SOLVER
    assert (solver.OPTIMIZER, solver.AMSGRAD, solver.BETAS) == ("Adam", True, (0.9, 0.98))
    assert (solver.EPS, solver.WEIGHT_DECAY, solver.CLIP_TOTAL_NORM) == (1e-9, 0.0, 0.15)
    assert (solver.BASE_LR, solver.BACKBONE_MULTIPLIER) == (5e-4, 0.1)
    assert cfg.MODEL.BEIT3.EMBED_DIM == width
    unit = "object" if folder in ("R-RefCOCO", "RefCOCO") else "expression"
    assert cfg.DATALOADER.SAMPLE_UNIT == unit
    # Options that the paper's runs do not have.
    assert cfg.INPUT.COLOR_JITTER == cfg.INPUT.FLIP.HORIZONTAL_PROB == 0.0
    assert solver.LAYER_DECAY == 1.0 and not cfg.MODEL.FREEZE
    assert cfg.MODEL.PIXEL_DECODER.NORM == "BN"
    assert cfg.INPUT.RESIZE_MODE == "squash"
    head = path.read_text().split("_BASE_")[0]
    for word in ("Command: ", "Hardware: ", "Expected"):
        assert word in head, f"the head comment lacks {word!r}"
    assert path.name in head
    resolved = resolve_epochs(cfg, 10 * solver.IMS_PER_BATCH).SOLVER
    warmup, step = (1, 6) if epochs == 10 else (3, 14)
    assert (resolved.MAX_ITER, resolved.WARMUP_ITERS) == (10 * epochs, 10 * warmup)
    assert (resolved.STEPS, resolved.CHECKPOINT_PERIOD) == ((10 * step,), 10)


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_schedules_resolve_for_any_size(path):
    cfg = setup_config(str(path))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    for num_items in (1, 1000, 209344):
        resolved = resolve_epochs(cfg, num_items)
        build_lr_scheduler(resolved, optimizer)
        if cfg.SOLVER.EPOCHS:
            epoch = -(-num_items // cfg.SOLVER.IMS_PER_BATCH)
            assert resolved.SOLVER.MAX_ITER == epoch * cfg.SOLVER.EPOCHS
            assert resolved.TEST.EVAL_PERIOD == epoch * cfg.TEST.EVAL_EPOCHS


def flatten(node, prefix=""):
    for key, value in node.items():
        if hasattr(value, "items"):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_no_default_of_detectron2_is_changed():
    before = dict(flatten(get_cfg()))
    cfg = get_cfg()
    add_igvg_config(cfg)
    after = dict(flatten(cfg))
    assert {key: after[key] for key in before} == before


def test_every_key_has_a_comment():
    lines = (ROOT / "igvg_d2" / "config.py").read_text().splitlines()
    is_key = [bool(re.match(r"    cfg\.[\w.]+ = (?!CN)", line)) for line in lines]
    for number, line in enumerate(lines):
        if not is_key[number]:
            continue
        # A comment may head a group of keys that it names together.
        above = number - 1
        while is_key[above]:
            above -= 1
        assert lines[above].strip().startswith("#"), f"no comment above: {line.strip()}"


@pytest.mark.parametrize("through_base", [False, True])
def test_a_config_runs_no_code(tmp_path, through_base):
    proof = tmp_path / "ran"
    evil, outer = tmp_path / "evil.yaml", tmp_path / "outer.yaml"
    evil.write_text(f'SEED: !!python/object/apply:os.system ["touch {proof}"]\n')
    outer.write_text('_BASE_: "evil.yaml"\n')
    path = outer if through_base else evil
    with pytest.raises(ValueError, match=f"{path.name}' or its _BASE_ is not plain YAML.*python"):
        setup_config(str(path))
    assert not proof.exists()


def test_a_config_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no config file 'absent.yaml'"):
        setup_config("absent.yaml")
    path = tmp_path / "own_base.yaml"
    path.write_text('_BASE_: "own_base.yaml"\n')
    with pytest.raises(ValueError, match="own_base.yaml': it is its own _BASE_"):
        setup_config(str(path))
    path.write_text("SEED: [1\n")
    with pytest.raises(ValueError, match="own_base.yaml' or its _BASE_ is not plain YAML"):
        setup_config(str(path))


@pytest.mark.parametrize(
    "files, message",
    [
        ({"a": "_BASE_: b.yaml", "b": "_BASE_: ./a.yaml"}, "it is its own _BASE_"),
        ({"a": "_BASE_: [b.yaml]", "b": "_BASE_: [c.yaml]"}, "c.yaml', named as _BASE_, is not"),
        ({"a": "_BASE_: 5"}, "a.yaml' or its _BASE_ does not fit.*int"),
        ({"a": ""}, "expected lines of KEY: VALUE, found 'None'"),
        ({"a": "- 1"}, "expected lines of KEY: VALUE"),
        ({"a": "SEEDS: 1"}, "a.yaml' or .* mend this: .*SEEDS"),
        ({"a": "SEED: x"}, "a.yaml' or .* SEED"),
        ({"a": "SEED: " + "9" * 9999}, "a.yaml' or .* digits"),
        ({"a": "SEED: " + "[" * 9999}, "a.yaml' or its _BASE_"),
        ({"a": "SEED: 1 #" + "x" * 200_000}, "at most 200000 characters"),
        ({"a": "_BASE_: b.yaml", "b": "SEED: \xff"}, "a.yaml' or .* decode"),
    ],
)
def test_a_config_that_does_not_fit_is_named(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        setup_config(str(tmp_path / "a.yaml"))


def test_the_config_that_a_run_wrote_is_read_again(tmp_path):
    """Detectron2's defaults have one tuple in several places, which YAML writes as an alias."""
    path = tmp_path / "config.yaml"
    path.write_text(setup_config(str(ROOT / "configs/Shapes/igvg_tiny.yaml")).dump())
    found = yaml.safe_load(setup_config(str(path)).dump())
    assert ": *id" in path.read_text() and found == yaml.safe_load(path.read_text())


@pytest.mark.parametrize("through_base", [False, True])
@pytest.mark.parametrize("kind", ["aliases", "merged keys", "itself", "bases"])
def test_a_config_cannot_grow_without_end(tmp_path, kind, through_base):
    """Ten lines or 30 small files of 2 ** 30 values; refused in no time."""
    path = tmp_path / "0.yaml"
    if kind == "bases":
        for i in range(30):
            (tmp_path / f"{i}.yaml").write_text(f"_BASE_: [{i + 1}.yaml, {i + 1}.yaml]\n")
        (tmp_path / "30.yaml").write_text("SEED: 1\n")
    elif kind == "itself":
        path.write_text("A: &a [*a]\n")
    else:
        first, more = (
            ("[1]", "[{0}, {0}]") if kind == "aliases" else ("{X: 1}", "{{<<: [{0}, {0}]}}")
        )
        lines = [f"A0: &a0 {first}"]
        lines += [f"A{i}: &a{i} {more.format(f'*a{i - 1}')}" for i in range(1, 30)]
        path.write_text("\n".join(lines))
    if through_base:
        path = tmp_path / "outer.yaml"
        path.write_text("_BASE_: 0.yaml\n")
    with pytest.raises(ValueError, match="at most 50 files" if kind == "bases" else "by aliases"):
        setup_config(str(path))


@pytest.mark.parametrize("opts", [["SEED"], ["SEEDS", "1"], ["SEED", "x"]])
def test_options_that_do_not_fit_are_named(opts):
    with pytest.raises(ValueError, match="options KEY VALUE of the command line: .*SEED"):
        setup_config("", opts)


def test_files_of_the_checkout_are_found_from_anywhere(monkeypatch, tmp_path):
    path = ROOT / "configs" / "Shapes" / "igvg_tiny.yaml"
    monkeypatch.chdir(tmp_path)
    weights = setup_config(str(path)).MODEL.WEIGHTS
    assert weights == str(ROOT / "demo" / "beit3_tiny_shapes.safetensors")
    own = tmp_path / "demo" / "beit3_tiny_shapes.safetensors"
    own.parent.mkdir()
    own.touch()
    assert setup_config(str(path)).MODEL.WEIGHTS == "demo/beit3_tiny_shapes.safetensors"


def test_paper_configs_name_their_encoder(tmp_path):
    """Base by a name that is downloaded; a file that is not there stops; empty is random."""
    for path in CONFIGS:
        if path.parent.name not in BENCHMARKS:
            continue
        cfg = setup_config(str(path))
        name = "beit3-base" if "released" in path.name else "beit3-base-indomain"
        weights = "beit3_large_patch16_224.zip" if "large" in path.name else name
        assert (cfg.MODEL.WEIGHTS, cfg.INPUT.TOKENIZER.FILE) == (weights, BEIT3_TOKENIZER)
    for size in ("base", "large"):
        path = str(tmp_path / f"beit3_{size}_patch16_224.zip")
        with pytest.raises(FileNotFoundError, match='microsoft/unilm.*MODEL.WEIGHTS "" trains'):
            find_weights(path)
    assert find_weights("") == ""


@pytest.mark.parametrize("key", REMOVED_KEYS)
def test_a_removed_key_of_an_earlier_version_is_named_and_ignored(key, tmp_path, caplog):
    path = tmp_path / "config.yaml"
    *nodes, name = key.split(".")
    path.write_text(
        "".join(f"{'  ' * i}{n}:\n" for i, n in enumerate(nodes)) + f"      {name}: 1\n"
    )
    cfg = get_cfg()
    add_igvg_config(cfg)
    default = cfg.dump()
    cfg.merge_from_file(str(path))
    assert any(key in message for message in caplog.messages)
    cfg.merge_from_list([key, "2"])
    assert cfg.dump() == default
