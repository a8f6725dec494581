"""Own data through the config, and back out of the readers."""

import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from igvg_d2.data import AntialiasedResize, GroundingDatasetMapper, ShapesTokenizer
from igvg_d2.data.datasets import (
    fingerprint,
    load_dataset,
    load_expressions,
    load_referring,
    load_seqtr,
    register_expressions,
    register_grounding,
)
from igvg_d2.data.synthetic import write_shapes
from igvg_d2.engine import setup_config
from igvg_d2.visualization import GroundingVisualizer
from tests.scripts import load_script

load_refcoco = partial(load_referring, target_rule="refcoco")
load_refzom = partial(load_referring, target_rule="refzom")
load_rrefcoco = partial(load_referring, target_rule="rrefcoco")

SQUARE = [2.0, 3.0, 6.0, 3.0, 6.0, 8.0, 2.0, 8.0]
export = load_script("tools/export_dataset.py")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Samples of a small validation set, registered as test_export_val."""
    root = tmp_path_factory.mktemp("export")
    write_shapes(str(root), seed=1, scale=0.01, num_workers=1)
    folder = root / "grefcoco"
    files = (str(folder / "grefs(unc).json"), str(folder / "instances.json"), "images")
    samples = load_referring(*files, "val")
    DatasetCatalog.register("test_export_val", lambda: samples)
    MetadataCatalog.get("test_export_val").set(split="val")
    return samples


def facts(sample):
    """What must survive a format."""
    masks = [mask_util.decode(a["segmentation"]).tobytes() for a in sample["annotations"]]
    boxes = [tuple(a["bbox"]) for a in sample["annotations"]]
    return sample["expression"], sample["image_id"], sample["file_name"], masks, boxes


@pytest.mark.parametrize("style", ["expressions", "grefcoco"])
def test_nothing_is_lost(shapes, tmp_path, style):
    output = str(tmp_path / ("out.json" if style == "expressions" else "out"))
    export.main(["test_export_val", output, "--format", style])
    if style == "expressions":
        found = load_expressions(output, "images")
    else:
        found = load_referring(
            f"{output}/grefs(unc).json", f"{output}/instances.json", "images", "val"
        )
        assert {s["sample_id"] for s in found} == {s["sample_id"] for s in shapes}
    assert sorted(map(facts, found)) == sorted(map(facts, shapes))
    assert {len(s["annotations"]) for s in found} >= {0, 1, 2}


@pytest.mark.parametrize(
    "load, folder, split",
    [
        (load_referring, "grefcoco/data/grefcoco", "val"),
        (load_referring, "grefcoco_crowd/data/grefcoco", "val"),
        (load_refcoco, "refcoco/data/refcocog", "val"),
        (load_refzom, "refzom/data/ref-zom", "test"),
        (load_rrefcoco, "rrefcoco/data/rrefcoco", "val"),
        (load_seqtr, "seqtr_type/annotations/rrefcoco", "val_rrefcoco"),
    ],
)
def test_the_round_trip_is_exact_from_every_reader(shared_dir, tmp_path, load, folder, split):
    folder = shared_dir / "reference/metric_fixtures" / folder
    if load is load_seqtr:
        samples = load(str(folder / "instance.json"), "images", split)
    else:
        refs = next(path for path in sorted(folder.iterdir()) if "refs(" in path.name)
        samples = load(str(refs), str(folder / "instances.json"), "images", split)
    DatasetCatalog.register("test_round_trip", lambda: samples)
    MetadataCatalog.get("test_round_trip").set(split=split, image_root="images")
    export.main(["test_round_trip", str(tmp_path / "own.json")])
    export.main(["test_round_trip", str(tmp_path / "g"), "--format", "grefcoco"])
    files = [str(tmp_path / "g" / name) for name in ("grefs(unc).json", "instances.json")]
    expected = fingerprint(samples)
    assert fingerprint(load_expressions(str(tmp_path / "own.json"), "images")) == expected
    assert fingerprint(load_referring(*files, "images", split)) == expected


def test_unknown_names_are_told():
    with pytest.raises(SystemExit, match="no data set 'nope'"):
        export.main(["nope", "out.json"])


def test_a_config_registers_its_own_data(tmp_path):
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 4}],
        "annotations": [],
        "expressions": [{"image_id": 1, "text": "a cat", "annotation_ids": []}],
    }
    (tmp_path / "mine.json").write_text(json.dumps(content))
    config = tmp_path / "config.yaml"
    entry = ["test_mine", str(tmp_path / "mine.json"), "images"]
    config.write_text(json.dumps({"DATASETS": {"EXPRESSION_FILES": [entry]}}))
    for _ in range(2):
        setup_config(str(config))
    assert DatasetCatalog.get("test_mine")[0]["expression"] == "a cat"
    assert MetadataCatalog.get("test_mine").evaluator_type == "grefcoco"
    other = ["DATASETS.EXPRESSION_FILES", [["test_mine", "other.json", "images"]]]
    with pytest.raises(ValueError, match="'test_mine' is taken"):
        setup_config("", other)
    with pytest.raises(ValueError, match="expected entries of"):
        setup_config("", ["DATASETS.EXPRESSION_FILES", [["x", "y"]]])


def test_invalid_records_are_skipped_only_if_asked(tmp_path, caplog):
    items = [{"image_id": 7, "text": t, "annotation_ids": []} for t in ("a", 3, "b", " ")]
    path = write_expressions(tmp_path, items)
    register_expressions("test_skip", path, "images")
    with pytest.raises(ValueError, match="expression 1, field 'text'"):
        DatasetCatalog.get("test_skip")
    opts = ["DATASETS.TRAIN", ("test_skip",), "DATASETS.SKIP_INVALID"]
    setup_config("", [*opts, True])
    with caplog.at_level("WARNING", logger="igvg_d2"):
        assert [s["expression"] for s in DatasetCatalog.get("test_skip")] == ["a", "b"]
    assert "skipped: " in caplog.text and "expression 3, field 'text'" in caplog.text
    assert "'test_skip': 2 invalid records skipped, 2 expressions left" in caplog.text
    samples, skipped = load_dataset("test_skip", skip_invalid=True)
    assert len(samples) == len(skipped) == 2
    setup_config("", [*opts, False])
    with pytest.raises(ValueError, match="expression 1"):
        DatasetCatalog.get("test_skip")
    register_grounding("test_skip_none", {}, lambda: [])
    with pytest.raises(ValueError, match="its reader cannot skip invalid records"):
        load_dataset("test_skip_none", skip_invalid=True)


def write_expressions(tmp_path, expressions):
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "height": 10, "width": 12}],
        "annotations": [{"id": i, "image_id": 7, "segmentation": [SQUARE]} for i in (1, 2)],
        "categories": [],
        "expressions": expressions,
    }
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content))
    return str(path)


def test_own_format(tmp_path):
    path = write_expressions(
        tmp_path,
        [
            {"id": 5, "image_id": 7, "text": "Both dogs", "annotation_ids": [1, 2]},
            {"image_id": 7, "text": "a cat", "annotation_ids": []},
        ],
    )
    both, none = load_expressions(path, "images")
    assert both["expression"] == "Both dogs" and both["sample_id"] == "5_0"
    assert both["file_name"] == os.path.join("images", "a.jpg")
    assert len(both["annotations"]) == 2 and none["annotations"] == []


def own(**changes):
    return {"image_id": 7, "text": "x", "annotation_ids": [], **changes}


@pytest.mark.parametrize(
    "item, message",
    [
        ({"image_id": 7, "text": "x"}, "expression 0, field 'annotation_ids': missing"),
        ({"image_id": 7, "text": " ", "annotation_ids": []}, "'text': expected text with a word"),
        ({"image_id": 7, "text": "x", "annotation_ids": "1"}, "'annotation_ids'.*list of ints"),
        ({"image_id": 8, "text": "x", "annotation_ids": []}, "image 8 is not among the 1"),
        ({"image_id": 7, "text": "x", "annotation_ids": [9]}, "annotation 9 is not among"),
        ("x", "expression 0, field 'image_id': expected an object"),
        (own(annotation_ids=[1, 2, 1]), "'annotation_ids': expected every id once"),
        (own(text="?!"), "'text': expected text with a word"),
        (own(text="\u200b\u2060"), r"'text': .*found '\\u200b\\u2060'"),
        (own(text="a \ud800"), r"'text': .*half a character.*'a \\ud800'"),
        (own(id="\udfff1"), "'id': .*half a character"),
        (own(kind="\udfff1"), "'kind': .*half a character"),
    ],
)
def test_own_format_errors(tmp_path, item, message):
    with pytest.raises(ValueError, match=f"mine.json.*{message}"):
        load_expressions(write_expressions(tmp_path, [item]), "images")
    (tmp_path / "mine.json").write_text("[]")
    with pytest.raises(ValueError, match="object with 'expressions', found list"):
        load_expressions(str(tmp_path / "mine.json"), "images")


@pytest.mark.parametrize(
    "table, change, message",
    [
        ("annotations", {"bbox": [2, 3, 1e19, 5]}, "'bbox' of annotation 1.*found .2, 3, 1e.19"),
        ("annotations", {"bbox": [2, 10**400, 4, 5]}, "'bbox' of annotation 1"),
        ("annotations", {"bbox": [2, 3, float("inf"), 5]}, "'bbox' of annotation 1.*inf"),
        ("annotations", {"segmentation": {"size": [10**30, 1], "counts": [10**30]}}, "size"),
        ("annotations", {"segmentation": {"size": [10, 12], "counts": [10**30]}}, "120 pixels"),
        ("images", {"height": 10**30}, "'height' of image 7.*from 1 to 65535"),
        ("images", {"file_name": "\ud800.png"}, "'file_name' of image 7.*half a character"),
        ("images", {"id": 987654321}, "mine.json: not valid JSON .*4300 digits"),
    ],
)
def test_numbers_that_overflow_are_named(tmp_path, table, change, message):
    path = Path(write_expressions(tmp_path, [own(annotation_ids=[1])]))
    content = json.loads(path.read_text())
    content[table][0].update(change)
    path.write_text(json.dumps(content).replace("987654321", "1" + "0" * 5000))
    with pytest.raises(ValueError, match=message):
        load_expressions(str(path), "images")


def square(x, y):
    return [x, y, x + 2, y, x + 2, y + 2, x, y + 2]


def test_more_than_255_objects_and_categories(tmp_path):
    content = {
        "images": [{"id": 7, "file_name": "a.png", "height": 20, "width": 40}],
        "annotations": [
            {"id": i, "image_id": 7, "category_id": i, "bbox": [i % 38, i % 18, 2, 2]}
            | {"segmentation": [square(i % 38, i % 18)]}
            for i in range(300)
        ],
        "categories": [{"id": i, "name": str(i)} for i in range(300)],
        "expressions": [own(annotation_ids=list(range(300)))],
    }
    (tmp_path / "mine.json").write_text(json.dumps(content))
    Image.fromarray(np.zeros((20, 40, 3), np.uint8)).save(tmp_path / "a.png")
    (sample,) = load_expressions(str(tmp_path / "mine.json"), str(tmp_path))
    mapper = GroundingDatasetMapper(
        True,
        tokenizer=ShapesTokenizer(),
        image_format="RGB",
        resize=AntialiasedResize(image_size=(20, 40)),
    )
    masks = mapper(sample)["instances"].gt_masks.tensor
    assert masks.shape == (300, 20, 40) and (masks.sum(dim=(1, 2)) == 4).all()
    assert GroundingVisualizer().draw_annotation(sample).any()


def test_every_script_knows_the_data_of_a_config(tmp_path, capsys):
    texts = [("both squares", [1, 2]), ("the red square", [1]), ("the green star", [])]
    items = [own(id=i, text=text, annotation_ids=ids) for i, (text, ids) in enumerate(texts)]
    path = write_expressions(tmp_path, items)
    Image.fromarray(np.zeros((10, 12, 3), np.uint8)).save(tmp_path / "a.jpg")
    config, predictions = tmp_path / "my.yaml", tmp_path / "p.json"
    data = {"EXPRESSION_FILES": [["test_tools", path, str(tmp_path)]], "TRAIN": ("test_tools",)}
    tokenizer = {"TOKENIZER": {"NAME": "ShapesTokenizer"}}
    config.write_text(json.dumps({"DATASETS": data, "INPUT": tokenizer, "VERSION": 2}))
    empty = {"size": [10, 12], "counts": [120]}
    answers = [{"sample_id": f"{i}_0", "mask": empty, "no_target_score": i / 2} for i in range(3)]
    predictions.write_text(json.dumps(answers))
    common, scored = ["--config-file", str(config)], ["--predictions", str(predictions)]
    fit = ["--risk", "missed-targets", "--alpha", "0.6"]
    calls = {
        "datasets/check.py": ["test_tools", "--workers", "2"],
        "tools/score_predictions.py": ["--dataset", "test_tools", *scored],
        "tools/calibrate.py": ["--dataset", "test_tools", *scored, *fit, "--trained-on"],
        "tools/export_dataset.py": ["test_tools", str(tmp_path / "again.json")],
        "tools/visualize_data.py": ["--source", "annotation", "--output-dir", str(tmp_path)],
    }
    for name, args in calls.items():
        main = load_script(name).main
        assert not main(common + args), capsys.readouterr().out
        # Each registers the data itself.
        DatasetCatalog.remove("test_tools")
        MetadataCatalog.remove("test_tools")
        unknown = ["nope" if arg == "test_tools" else arg for arg in args]
        unknown += ["--dataset", "nope"] if "visualize" in name else []
        with pytest.raises(SystemExit, match="no data set 'nope'.*pass --config-file"):
            main(common + unknown)
        DatasetCatalog.remove("test_tools")
        MetadataCatalog.remove("test_tools")
        with pytest.raises(SystemExit):
            main(["--help"])
        assert "DATASETS.EXPRESSION_FILES" in capsys.readouterr().out.replace("\n", " ")
    assert fingerprint(load_expressions(str(tmp_path / "again.json"), str(tmp_path)))
