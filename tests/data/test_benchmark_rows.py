"""RefCOCO-M, Ref-L4, OpenRef and reviewed labels, in made-up records of their cards' formats."""

import json
import os
import sys

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from igvg_d2.data.datasets import (
    fingerprint,
    load_expressions,
    load_referring,
    load_reviewed,
    load_rows,
    register_grounding,
)
from igvg_d2.io.rle import to_json
from tests.scripts import load_script

export = load_script("tools/export_dataset.py")

SIDES = {"original_width": 200, "original_height": 100}


def rle(height=10, width=12):
    """RLE as text of a square of 16 pixels."""
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[2:6, 3:7] = 1
    return to_json(mask_util.encode(mask))


def row(**changes):
    """A row of RefCOCO-M."""
    person = {"id": 7, "image_id": 1, "category": "person", "sentences": ["left man", "him"]}
    person.update({"bbox": [3.0, 2.0, 4.0, 4.0], "mask": rle(), **changes})
    return {"image_id": 1, "file_name": "COCO_train2014_1.jpg", "samples": [person]}


def caption(number, split="val", **changes):
    """A row of Ref-L4."""
    sides = {"height": 480, "width": 640}
    facts = {"id": number, "caption": "a long text", "bbox": [10, 20, 100.5, 50], "split": split}
    other = {"image_id": "coco_128974", "file_name": "coco_128974.jpg", "is_rewrite": False}
    return {**facts, **sides, **other, **changes}


def record(relation="multi", boxes=2, **changes):
    """A record of OpenRef in percent of 200 x 100 pixels, as Label Studio exports it."""
    box = {"x": 10.0, "y": 20.0, "width": 50.0, "height": 40.0}
    box.update(SIDES)
    facts = {"image": "a.jpg", "relation_type": relation, "proposal": [box] * boxes}
    texts = {"positive": "the dogs", "negative": "the cats"}
    return {**facts, **texts, "bbox_num": boxes, **changes}


@pytest.fixture
def load(tmp_path):
    """Callable: records -> dataset dicts by a rule."""

    def _load(records, rule, split="val", name="val.json", **arguments):
        path = tmp_path / name
        path.write_text(json.dumps(records))
        return load_rows(str(path), str(tmp_path), split, rule, **arguments)

    return _load


def test_refcoco_m(load, tmp_path):
    samples = load([row(), row()], "refcoco_m")
    assert [s["sample_id"] for s in samples] == ["0.0_0", "0.0_1", "1.0_0", "1.0_1"]
    sample = samples[1]
    assert sample["expression"] == "him" and (sample["height"], sample["width"]) == (10, 12)
    assert sample["file_name"] == str(tmp_path / "COCO_train2014_1.jpg")
    (target,) = sample["annotations"]
    assert mask_util.area(target["segmentation"]) == 16 and target["bbox"] == [3.0, 2.0, 4.0, 4.0]
    other = {**row(), "image_meta": {"image_id": 5, "width": 12, "height": 10}}
    del other["image_id"]
    assert load([other], "refcoco_m")[0]["image_id"] == 5
    masks = [None, {**rle(), "counts": "o3"}, *({**rle(), "size": x} for x in ([], [10]))]
    for change in (*({"mask": mask} for mask in masks), {"sentences": ["?!"]}):
        with pytest.raises(ValueError, match="val.json: record 0, field"):
            load([row(**change)], "refcoco_m")


def test_refcoco_m_shares_targets_and_has_one_size_per_image(load):
    samples = load([row()], "refcoco_m")
    assert samples[0]["annotations"][0] is samples[1]["annotations"][0]
    other = {**row()["samples"][0], "mask": rle(20, 24)}
    with pytest.raises(ValueError, match=r"field 'mask': .*size \[10, 12\] of .* \[20, 24\]"):
        load([{**row(), "samples": [*row()["samples"], other]}], "refcoco_m")
    other = {**row(), "image_meta": {"image_id": 5, "width": 24, "height": 20}}
    with pytest.raises(ValueError, match=r"field 'mask': .*size \[20, 24\] of .* \[10, 12\]"):
        load([other], "refcoco_m")


@pytest.mark.parametrize(
    "rule, wrong, field",
    [
        ("refcoco_m", row(sentences=["?!"]), "sentences"),
        ("refcoco_m", row(mask={**rle(), "size": [10]}), "mask"),
        ("ref_l4", caption(1, caption=""), "caption"),
        ("openref", record(negative=5), "negative"),
        ("openref", record("none", 0, positive="", negative="", **SIDES), "positive"),
    ],
)
def test_errors_name_a_field_of_the_file(load, rule, wrong, field):
    with pytest.raises(ValueError, match=f"val.json: record 0, field '{field}': expected"):
        load([wrong], rule)


def test_ref_l4_and_its_all(load, tmp_path):
    (sample,) = load([caption(3)], "ref_l4")
    assert (sample["sample_id"], sample["image_id"]) == ("3_0", "coco_128974")
    (target,) = sample["annotations"]
    assert target["bbox"] == [10.0, 20.0, 100.5, 50.0] and "segmentation" not in target
    load([caption(4, "test")], "ref_l4", "test", "test.json")
    more = (str(tmp_path / "test.json"),)
    samples = load([caption(3)], "ref_l4", "all", more_files=more)
    assert [s["ref_id"] for s in samples] == [3, 4]
    with pytest.raises(ValueError, match="sample 3_0 occurs twice"):
        load([caption(3), caption(3)], "ref_l4")
    for change in ({"split": "test"}, {"bbox": None}, {"bbox": [1, 2, -3, 4]}, {"height": None}):
        with pytest.raises(ValueError, match="val.json: record 0, field"):
            load([caption(3, **change)], "ref_l4")
    old = {("ann_id" if key == "id" else key): value for key, value in caption(9).items()}
    assert load([old], "ref_l4")[0]["ref_id"] == 9


def test_openref(load, tmp_path):
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / "b.jpg")
    nothing = record("none", 0, image="b.jpg", negative="")
    samples = load([record(), nothing, record("none", 0, image="b.jpg")], "openref")
    facts = [(s["sample_id"], s["kind"], s["expression"], len(s["annotations"])) for s in samples]
    assert facts == [
        ("0_0", "multi", "the dogs", 2),
        ("0_1", "negative", "the cats", 0),
        ("1_0", "none", "the dogs", 0),
        ("2_1", "none", "the cats", 0),
    ]
    assert samples[0]["annotations"][0]["bbox"] == [20.0, 20.0, 100.0, 40.0]
    # Its size is not stated.
    assert (samples[2]["height"], samples[2]["width"]) == (30, 40)
    listed = record(boxes=1, proposal=[[10, 20, 50, 40]], original_width=20, original_height=10)
    assert load([listed], "openref")[0]["annotations"][0]["bbox"] == [2.0, 2.0, 10.0, 4.0]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"proposal": [[0.1, 0.2, 0.5, 0.4]] * 2, **SIDES}, "percent of the sides"),
        ({"proposal": [[10, 20, 150, 40]] * 2, **SIDES}, "percent of the sides"),
        ({"proposal": [[60, 20, 90, 40]] * 2, **SIDES}, "percent of the sides"),
        ({"proposal": [[-20, 20, 50, 40]] * 2, **SIDES}, "percent of the sides"),
        ({"original_width": 20}, "one size for all boxes, found 20 and 200"),
        ({"bbox_num": 3}, "2 boxes, bbox_num 3"),
        ({"relation_type": "none"}, "'none', 2 boxes"),
        ({"relation_type": "pair"}, "'pair'"),
        ({"proposal": [], "bbox_num": 0}, "0 boxes"),
        ({"proposal": [[10, 20, 50, 40]] * 2}, "its size is not stated"),
        ({"positive": ""}, "text with a word"),
    ],
)
def test_openref_refuses_what_is_not_documented(load, change, words):
    with pytest.raises(ValueError, match="record 0, field") as error:
        load([record(**change)], "openref")
    assert words in str(error.value)


@pytest.mark.parametrize(
    "rule, records",
    [
        # An id of a target occurs again in another image, ids of images are text.
        ("refcoco_m", [row(), {**row(), "image_id": 2, "file_name": "2.jpg"}]),
        ("ref_l4", [caption(3), caption(4)]),
        ("openref", [record(), record("none", 0, image="b.jpg", **SIDES), record(image="c.jpg")]),
    ],
)
@pytest.mark.parametrize("form", ["expressions", "grefcoco"])
def test_exported_and_read_again_it_is_the_same(load, tmp_path, rule, records, form):
    samples = load(records, rule)
    register_grounding("test_rows_val", {"split": "val"}, lambda: samples)
    output = str(tmp_path / "out.json")
    export.main(["test_rows_val", output, "--format", form])
    if form == "expressions":
        again = load_expressions(output, str(tmp_path))
    else:
        files = [os.path.join(output, name) for name in ("grefs(unc).json", "instances.json")]
        again = load_referring(*files, str(tmp_path), "val")
    assert fingerprint(again) == fingerprint(samples)
    ids = {id(target): target["id"] for sample in samples for target in sample["annotations"]}
    assert len(set(ids.values())) == len(ids)


def test_parquet_is_the_same_data(load, tmp_path):
    arrow = pytest.importorskip("pyarrow", reason="pip install pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows, name = [{**row(), "image": b"pixels"}], "validation-0000{}-of-00002.parquet"
    for number in range(2):
        parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / name.format(number))
    path = str(tmp_path / name.format(0))
    found = load_rows(path, str(tmp_path), "val", "refcoco_m")
    assert fingerprint(found) == fingerprint(load([row(), row()], "refcoco_m"))
    whole = (tmp_path / name.format(1)).read_bytes()
    # A pointer of Git LFS, and pages of a download that went wrong.
    for damaged in (b"version https://git-lfs.github.com/spec/v1", whole[:9] + whole[:40] * 99):
        (tmp_path / name.format(1)).write_bytes(damaged[: len(whole) - 300] + whole[-300:])
        with pytest.raises(ValueError, match="00001-of-00002.parquet: no whole parquet file"):
            load_rows(path, str(tmp_path), "val", "refcoco_m")


def test_parquet_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match="x.parquet: parquet files need .pip install pyarrow"):
        load_rows(str(tmp_path / "x.parquet"), str(tmp_path), "val", "ref_l4")


def test_reviewed_labels(tmp_path):
    image = {"id": 17, "file_name": "17.jpg", "height": 10, "width": 12}
    targets = [{"id": 1, "image_id": 17, "bbox": [1, 1, 4, 4], "segmentation": rle()}]
    sentences = [{"sent_id": i, "raw": text} for i, text in enumerate(["Left man.", "him", "he"])]
    ref = {"ref_id": 5, "ann_id": 1, "image_id": 17, "split": "val", "sentences": sentences}
    files = {"refs.json": [ref], "instances.json": {"images": [image], "annotations": targets}}
    entries = [
        {"image_id": 17, "caption": "left man", "caption_quality": 1},
        {"image_id": "COCO_train2014_000000000017.jpg", "caption": "him", "caption_quality": 0},
    ]

    def read(key="annotation", skipped=None):
        files["reviewed.json"] = {key: entries}
        for name, content in files.items():
            (tmp_path / name).write_text(json.dumps(content))
        paths = [str(tmp_path / name) for name in ("reviewed.json", "refs.json", "instances.json")]
        return load_reviewed(*paths, "images", "val", skipped=skipped)

    with pytest.raises(ValueError, match="sample 5_2, 'he' is not in it"):
        read()
    skipped = []
    assert [s["expression"] for s in read(skipped=skipped)] == ["Left man."] and len(skipped) == 1
    entries.append({"image_id": 17, "caption": "he", "caption_quality": 1})
    assert [s["sample_id"] for s in read("annotations")] == ["5_0", "5_2"]
    entries.append({"image_id": 17, "caption": "he", "caption_quality": 0})
    with pytest.raises(ValueError, match="both right and wrong.*SKIP_INVALID"):
        read()
    for quality in ("0", None):
        entries[3] = {**entries[0], "caption_quality": quality}
        words = rf"'caption_quality': expected a number, found {quality!r}, in annotation\[3\]"
        with pytest.raises(ValueError, match=words):
            read()
    entries[0] = {"image_id": 17, "sentence": "left man"}
    with pytest.raises(ValueError, match="reviewed.json, field 'caption': missing"):
        read()
