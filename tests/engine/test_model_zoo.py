"""Models by name, and weights that carry their config; the hub itself: tests/io/test_hub.py."""

import hashlib
import re
from pathlib import Path

import pytest
import yaml
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_model
from detectron2.utils.logger import _LOG_COUNTER as log_first_n_counter
from safetensors.torch import load_file, save_file

import igvg_d2
from igvg_d2 import model_zoo
from igvg_d2.checkpoint import GroundingCheckpointer, read_metadata
from igvg_d2.engine import setup_config, train_net
from igvg_d2.io.hub import BEIT3_TOKENIZER

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "demo" / "igvg_tiny_shapes.safetensors"
ISSUE_NAMES = (
    "instancevg-grefcoco instancevg-refzom instancevg-rrefcoco instancevg-refcoco-base "
    "instancevg-refcoco-large beit3-base beit3-base-indomain shapes-tiny"
)


def with_header(tmp_path, config):
    """The shipped weights with another config in their header, or with none."""
    facts = {} if config is None else {"config": config}
    path = tmp_path / "own.safetensors"
    save_file(load_file(SHIPPED), path, metadata=facts)
    return str(path)


def test_names_lead_to_configs_weights_and_tokenizer():
    assert model_zoo.names() == ISSUE_NAMES.split()
    for name in model_zoo.names():
        model = model_zoo.get(name)
        assert model.note and (model.weights.startswith("hf://") or model.find())
        if name == "shapes-tiny":
            continue
        cfg = setup_config(name, ["MODEL.DEVICE", "cpu"])
        assert cfg.MODEL.WEIGHTS == name and cfg.INPUT.TOKENIZER.FILE == BEIT3_TOKENIZER
        assert cfg.MODEL.BEIT3.EMBED_DIM == (1024 if "large" in name else 768)
        # One query and short texts in the models of RefCOCO.
        queries = cfg.MODEL.QUERY_GENERATOR.NUM_OBJECT_QUERIES
        assert queries == (1 if "-refcoco-" in name else 10)
    with pytest.raises(ValueError, match="no model 'x'; the names are instancevg-grefcoco, "):
        model_zoo.get("x")
    with pytest.raises(FileNotFoundError, match="no config file 'x'.* models have the names inst"):
        model_zoo.load("x")


def test_the_shipped_file_has_the_hash_of_the_table():
    digest = hashlib.sha256(SHIPPED.read_bytes()).hexdigest()
    assert model_zoo.get("shapes-tiny").sha256 == digest
    assert model_zoo.resolve_weights("shapes-tiny").endswith(SHIPPED.name)


@pytest.mark.parametrize("name", ["shapes-tiny", str(SHIPPED)])
def test_a_name_or_a_file_alone_is_a_model(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cfg = model_zoo.load(name, device="cpu", opts=["SEED", "3"])
    assert Path(cfg.MODEL.WEIGHTS).samefile(SHIPPED) and cfg.INPUT.TOKENIZER.FILE == ""
    assert (cfg.MODEL.DEVICE, cfg.SEED, cfg.OUTPUT_DIR) == ("cpu", 3, "./output")
    expected = setup_config(str(ROOT / "configs/Shapes/igvg_tiny.yaml"), ["MODEL.DEVICE", "cpu"])
    for part in ("MODEL", "INPUT", "TEST"):
        found, wanted = yaml.safe_load(cfg[part].dump()), yaml.safe_load(expected[part].dump())
        assert {**found, "WEIGHTS": ""} == {**wanted, "WEIGHTS": ""}
    GroundingCheckpointer(build_model(cfg)).load(cfg.MODEL.WEIGHTS)  # strict


def test_the_config_of_a_name_given_as_weights_alone():
    cfg = setup_config("", ["SEED", "3", "MODEL.WEIGHTS", "instancevg-refzom"])
    assert cfg.DATASETS.TEST == ("refzom_final_test",) and cfg.SEED == 3
    own = setup_config(str(ROOT / "configs/Base-IGVG.yaml"), ["MODEL.WEIGHTS", "beit3-base"])
    assert own.INPUT.TOKENIZER.FILE == BEIT3_TOKENIZER


@pytest.mark.parametrize(
    "config, message",
    [
        (None, "has no config in its header.*pass its config file"),
        ("SEED: !!python/object/apply:os.system ['touch here']", "is not plain YAML"),
        ("_BASE_: /etc/passwd", "does not fit.*_BASE_"),
        ("NO_KEY: 1", "does not fit.*NO_KEY"),
        ("- 1", "expected lines of KEY: VALUE"),
        ("A: x" + "x" * 200_000, "at most 200000 characters"),
        (
            "A0: &a0 [1]\n" + "".join(f"A{i}: &a{i} [*a{i-1}, *a{i-1}]\n" for i in range(1, 30)),
            "alias",
        ),
    ],
)
def test_a_config_in_a_header_is_read_as_carefully_as_a_file(config, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        model_zoo.load(with_header(tmp_path, config))
    assert not list(tmp_path.glob("here"))


def test_a_header_names_neither_files_nor_addresses(tmp_path):
    config = yaml.safe_dump(
        {
            "MODEL": {
                "WEIGHTS": "http://x.invalid/a.pth",
                "DEVICE": "cuda:7",
                "BEIT3": {"DEPTH": 3},
            },
            "INPUT": {"TOKENIZER": {"FILE": "http://x.invalid/spm"}},
            "DATASETS": {"EXPRESSION_FILES": [["name", "/a.json", "/b"]]},
            "TEST": {"CALIBRATION": "/c.json"},
            "OUTPUT_DIR": "/somewhere",
        }
    )
    path = with_header(tmp_path, config)
    cfg = setup_config(path, ["MODEL.DEVICE", "cpu"])
    assert cfg.MODEL.BEIT3.DEPTH == 3 and cfg.MODEL.WEIGHTS == path
    assert cfg.INPUT.TOKENIZER.FILE == BEIT3_TOKENIZER
    assert (len(cfg.DATASETS.EXPRESSION_FILES), cfg.OUTPUT_DIR) == (0, "./output")
    assert cfg.TEST.CALIBRATION == ""


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "half.safetensors"
    path.write_bytes(SHIPPED.read_bytes()[:5000])
    with pytest.raises(ValueError, match="half.safetensors' is not a whole file of safetensors"):
        model_zoo.load(str(path))


def test_an_installation_without_the_weights_says_where_they_are(monkeypatch, tmp_path):
    monkeypatch.setattr(model_zoo, "_PACKAGE", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match="take demo/igvg_tiny_shapes.safetensors of a check"
    ):
        model_zoo.load("shapes-tiny")


def test_the_list_names_sizes_hashes_and_what_is_cached(hub, capsys):
    model_zoo.main(["--list"])
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert set(model_zoo.names()) < set(rows)
    digest = model_zoo.get("shapes-tiny").sha256
    assert rows["shapes-tiny"][1:5] == ["12.4", "MB", digest, "yes"]
    assert rows["beit3-base-indomain"][1:3] == ["554.0", "MB"]
    assert rows["beit3-base-indomain"][3].startswith("6bd34b5c94c5eb8f")
    assert rows["instancevg-grefcoco"][1:4] == ["unknown", "unknown", "no"]
    assert hub.requests == []
    hub.files["models/Dmmm997/InstanceVG"] = {"InstanceVG-grefcoco.pth": bytes(2_500_000)}
    model_zoo.resolve_weights("instancevg-grefcoco")
    model_zoo.main(["--list"])
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert rows["instancevg-grefcoco"][1:5] == ["2.5", "MB", "unknown", "yes"]


def test_a_file_may_be_a_path_object():
    assert model_zoo.load(SHIPPED, "cpu").MODEL.WEIGHTS == str(SHIPPED)


def test_an_address_that_does_not_answer_is_one_message():
    with pytest.raises(FileNotFoundError, match="'http://127.0.0.1:9/a.pth' was not downloaded: "):
        model_zoo.resolve_weights("http://127.0.0.1:9/a.pth")


def test_what_the_exported_header_says(tmp_path):
    facts = read_metadata(str(SHIPPED))
    config = yaml.safe_load(facts["config"])
    assert config["MODEL"]["WEIGHTS"] == "" and config["MODEL"]["DEVICE"] == ""
    assert str(ROOT) not in facts["config"] and "train_net.py" in facts["command"]
    assert Path(igvg_d2.__file__).parent.joinpath("configs/Base-IGVG.yaml").is_file()


@pytest.mark.parametrize(
    "opts, advice",
    [
        ([], "Set MODEL.WEIGHTS to beit3-base-indomain .554 MB, downloaded once."),
        (["MODEL.BEIT3.EMBED_DIM", "1024"], "Set MODEL.WEIGHTS to a file of BEiT-3 large"),
        (["MODEL.BEIT3.EMBED_DIM", "64"], "an encoder of this size .MODEL.BEIT3.EMBED_DIM 64."),
        (["MODEL.META_ARCHITECTURE", "BEiT3Pretraining"], None),
        (["MODEL.WEIGHTS", "beit3-base"], None),
    ],
)
def test_what_random_weights_cost_is_a_warning_in_the_first_lines(opts, advice, tmp_path):
    config = str(ROOT / "configs/Training-IGVG.yaml")
    first = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path)]
    args = default_argument_parser().parse_args(["--config-file", config, *first, *opts])
    log_first_n_counter.clear()
    train_net.setup(args)
    lines = (tmp_path / "log.txt").read_text().splitlines()
    if advice is None:
        assert not any("MODEL.WEIGHTS is empty" in line for line in lines)
        return
    assert re.search("WARNING.*MODEL.WEIGHTS is empty: .* random numbers.*by heart", lines[0])
    assert re.search(advice, lines[0])


def test_a_name_in_place_of_a_config_file(tmp_path):
    """Detectron2 logs the config file, which a name or a header does not have."""
    for name in ("shapes-tiny", "instancevg-grefcoco"):
        folder = tmp_path / name
        opts = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(folder)]
        args = default_argument_parser().parse_args(["--eval-only", "--config-file", name, *opts])
        cfg = train_net.setup(args)
        assert cfg.MODEL.WEIGHTS == name and cfg.TEST.SAVE_PREDICTIONS
        # The config of the run names it, too.
        again = setup_config(str(folder / "config.yaml"))
        assert again.MODEL.WEIGHTS == name
        assert again.INPUT.TOKENIZER.FILE == model_zoo.get(name).tokenizer
