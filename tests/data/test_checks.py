"""datasets/check.py: what is missing or damaged is found, named and counted."""

import json
import os
import signal
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from igvg_d2.data import ShapesTokenizer
from igvg_d2.data.datasets import checks, load_referring, register_grounding
from tests.scripts import load_script

check = load_script("datasets/check.py")

SQUARE = [2, 2, 8, 2, 8, 8, 2, 8]


@pytest.fixture
def dataset(tmp_path):
    """Name of a data set of three images, and its folder."""
    images, annotations, refs = [], [], []
    for i in range(3):
        images.append({"id": i, "file_name": f"{i}.png", "height": 20, "width": 30})
        Image.new("RGB", (30, 20)).save(tmp_path / f"{i}.png")
        annotations.append(
            {"id": i, "image_id": i, "category_id": 1, "bbox": [2, 2, 6, 6]}
            | {"segmentation": [SQUARE], "iscrowd": 0}
        )
        sentences = [{"sent_id": i, "sent": "it"}]
        refs.append({"ref_id": i, "ann_id": [i], "image_id": i, "split": "val"})
        refs[-1]["sentences"] = sentences
    refs[2]["ann_id"] = [-1]
    instances = {"images": images, "annotations": annotations, "categories": []}
    files = {
        "annotation_file": str(tmp_path / "grefs(unc).json"),
        "instances_file": str(tmp_path / "instances.json"),
        "image_root": str(tmp_path),
        "split": "val",
    }
    Path(files["annotation_file"]).write_text(json.dumps(refs))
    Path(files["instances_file"]).write_text(json.dumps(instances))
    loader = lambda skipped=None: load_referring(**files, skipped=skipped)
    register_grounding("test_check_val", files, loader)
    return "test_check_val", tmp_path


def test_a_whole_data_set(dataset, capsys):
    name, _ = dataset
    assert check.main([name, "--workers", "1"]) == 0
    text = capsys.readouterr().out
    assert "test_check_val: whole" in text and text.count("sha256") == 2
    assert "3 expressions on 3 images; without / with one / several targets: 1 / 2 / 0" in text


def test_invalid_records_are_listed_if_asked(dataset, capsys):
    name, folder = dataset
    refs = json.loads((folder / "grefs(unc).json").read_text())
    refs[0]["image_id"] = "x"
    (folder / "grefs(unc).json").write_text(json.dumps(refs))
    assert check.main([name, "--workers", "1", "--quick"]) == 1
    assert "expressions on" not in capsys.readouterr().out
    assert check.main([name, "--workers", "1", "--quick", "--skip-invalid"]) == 1
    text = capsys.readouterr().out
    assert "invalid records: 1" in text and "record 0 (ref_id 0), field 'image_id'" in text
    assert "2 expressions on 2 images" in text


def test_counts_stand_beside_published_and_known_ones():
    report = checks.DatasetReport("grefcoco_unc_val", {"x.json": "0" * 64}, 1501)
    report.expressions, report.counts = 14229, (8905, 0, 5000, 324)
    text = check.describe(report)
    assert "known of the public file: 8905 / 0 / 5324, as here" in text
    assert "278,232" in text and "two: 5000, more: 324" in text
    report.counts = (8905, 1, 5000, 323)
    assert "DIFFERENT" in check.describe(report)
    report.hashes = {"x.json": next(iter(checks.KNOWN_FILES))}
    assert "gRefCOCO's public release" in check.describe(report)


def test_damage_is_named(dataset, capsys):
    name, folder = dataset
    (folder / "0.png").unlink()
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:40])
    Image.new("RGB", (31, 20)).save(folder / "2.png")
    instances = json.loads((folder / "instances.json").read_text())
    instances["annotations"][0]["bbox"] = [25, 2, 9, 6]
    instances["annotations"][1]["segmentation"] = {"size": [20, 30], "counts": [600]}
    (folder / "instances.json").write_text(json.dumps(instances))
    assert check.main([name, "--workers", "1"]) == 1
    text = capsys.readouterr().out
    for words in (
        "PROBLEMS",
        "missing images: 1",
        "0.png",
        "unreadable images: 1",
        "2.png: the file has height, width = (20, 31), the annotations say (20, 30)",
        "boxes: 1",
        "[25.0, 2.0, 34.0, 8.0]",
        "masks: 1",
    ):
        assert words in text, words
    assert check.main([name, "--workers", "1", "--quick"]) == 1
    assert "unreadable" not in capsys.readouterr().out


def test_missing_files_and_names(dataset, capsys, monkeypatch):
    name, folder = dataset
    (folder / "instances.json").unlink()
    assert check.main([name]) == 1
    assert "instances.json" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no data set 'nope'"):
        check.main(["nope"])
    monkeypatch.setattr(check, "found_names", lambda: ([], {"x.json": (["x_val"], "get x there")}))
    assert check.main([]) == 2
    text = capsys.readouterr().out
    assert "datasets/README.md" in text and "for x_val" in text and "get x there" in text


def test_reviewed_labels_are_found_and_hashed_beside_the_original(dataset, capsys):
    name, folder = dataset
    files = {key: getattr(MetadataCatalog.get(name), key) for key in ("annotation_file", "split")}
    files["reviewed_file"] = str(folder / "reviewed.json")
    register_grounding(f"{name}_reviewed", files, lambda: DatasetCatalog.get(name)[:1])
    assert files["reviewed_file"] in check.found_names()[1]
    (folder / "reviewed.json").write_text("{}")
    assert {name, f"{name}_reviewed"} <= set(check.found_names()[0])
    assert check.main([f"{name}_reviewed", "--quick"]) == 0
    assert f"  {files['reviewed_file']}\n" in capsys.readouterr().out


def test_what_is_no_file_is_named_and_not_waited_for(dataset, capsys):
    name, folder = dataset
    (folder / "1.png").unlink()
    os.mkfifo(folder / "1.png")
    for options in ([], ["--quick"]):
        assert check.main([name, "--workers", "2", *options]) == 1
        text = capsys.readouterr().out
        assert "unreadable images: 1" in text and "not a regular file" in text
    (folder / "instances.json").unlink()
    os.mkfifo(folder / "instances.json")
    assert check.main([name]) == 1
    assert "instances.json: expected a file, found a folder, pipe or" in capsys.readouterr().out


def test_a_killed_worker_is_said(dataset, monkeypatch):
    monkeypatch.setattr(checks, "_find_image", lambda _: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(SystemExit, match="cannot check: a worker process was killed"):
        check.main([dataset[0], "--workers", "2", "--quick"])


def test_boxes_words_and_repetition(dataset):
    name, folder = dataset
    samples = DatasetCatalog.get(name)
    first, second = samples[0]["annotations"][0], samples[1]["annotations"][0]
    first["bbox"] = [2, 2, 8, 10]
    samples[0] = {**samples[0], "expression": "the red square"}
    samples[1] = {**samples[1], "annotations": [second, second], "expression": "a zebra"}
    samples[2] = {**samples[2], "expression": "?"}
    register_grounding("test_check_words", {}, lambda: samples)
    found = checks.check_dataset("test_check_words", tokenizer=ShapesTokenizer()).problems
    assert found.keys() == {
        "boxes that contradict masks", "targets", "unknown words", "expressions"
    }  # fmt: skip
    (text,) = found["boxes that contradict masks"]
    assert "sample 0_0: box [2.0, 2.0, 8.0, 10.0]" in text
    assert "twice, ids [1, 1]" in found["targets"][0]
    (text,) = found["unknown words"]
    assert "'a zebra': ShapesTokenizer knows half or less" in text
    assert "sample 2_2" in found["expressions"][0] and "no token" in found["expressions"][0]
