"""Readers of the official files, with their edge cases."""

import json
import os
from functools import partial

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.structures import BoxMode

from igvg_d2.data.datasets import load_referring
from igvg_d2.data.datasets.annotation_files import iterate_refs

load_refcoco = partial(load_referring, target_rule="refcoco")
load_refzom = partial(load_referring, target_rule="refzom")
load_rrefcoco = partial(load_referring, target_rule="rrefcoco")

SQUARE = [2.0, 3.0, 6.0, 3.0, 6.0, 8.0, 2.0, 8.0]  # 4 wide, 5 high


def annotation(ann_id, segmentation=None, bbox=(2.0, 3.0, 4.0, 5.0), image_id=7, iscrowd=0):
    """A COCO annotation with the square above as default mask."""
    return {
        "id": ann_id,
        "image_id": image_id,
        "category_id": 18,
        "bbox": list(bbox),
        "segmentation": [SQUARE] if segmentation is None else segmentation,
        "iscrowd": iscrowd,
    }


def ref(ref_id=0, ann_id=(1,), sentences=("the dog",), image_id=7, split="val", **extra):
    """A referring record whose file_name, as in the releases, is not that of a file."""
    ann_id = list(ann_id) if isinstance(ann_id, tuple) else ann_id
    sentences = [
        {"sent_id": 10 * ref_id + i, "sent": s} if isinstance(s, str) else s
        for i, s in enumerate(sentences)
    ]
    record = {"ref_id": ref_id, "ann_id": ann_id, "image_id": image_id, "split": split}
    return {**record, "sentences": sentences, "file_name": "COCO_7_16.jpg", **extra}


@pytest.fixture
def write(tmp_path):
    """Callable: records, annotations -> arguments of a reader."""

    def _write(refs, annotations=(annotation(1),)):
        images = [
            {"id": i, "file_name": f"COCO_{i}.jpg", "height": 10, "width": 12} for i in (7, 9)
        ]
        instances = {"images": images, "annotations": list(annotations), "categories": []}
        (tmp_path / "grefs(unc).json").write_text(json.dumps(refs))
        (tmp_path / "instances.json").write_text(json.dumps(instances))
        files = (tmp_path / "grefs(unc).json", tmp_path / "instances.json", tmp_path / "images")
        return [str(path) for path in files]

    return _write


def test_one_dict_per_sentence_with_all_keys(write):
    sentences = (
        {"sent_id": 4, "raw": "The LEFT dog.", "sent": "the left dog", "kind": "order"},
        {"sent_id": 5, "raw": " ", "sent": "dog"},
    )
    first, second = load_referring(*write([ref(sentences=sentences)]), "val")
    rle = first["annotations"][0]["segmentation"]
    assert mask_util.decode(rle)[3:8, 2:6].all() and mask_util.area(rle) == 20
    assert os.path.basename(first.pop("file_name")) == "COCO_7.jpg"
    (polygon,) = first["annotations"][0].pop("polygons")
    assert polygon.dtype == np.float64 and polygon.tolist() == SQUARE
    assert first.pop("annotations") == [
        {
            "id": 1,
            "bbox": [2.0, 3.0, 4.0, 5.0],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": 0,
            "segmentation": {"size": [10, 12], "counts": rle["counts"]},
            "iscrowd": 0,
        }
    ]
    assert first == {
        "height": 10,
        "width": 12,
        "image_id": 7,
        "sample_id": "0_4",
        "ref_id": 0,
        "sent_id": 4,
        "expression": "The LEFT dog.",
        "kind": "order",
    }
    assert second["expression"] == "dog" and "kind" not in second


@pytest.mark.parametrize(
    "ann_id, count", [((1, 2), 2), ((1,), 1), (1, 1), ((-1,), 0), (-1, 0), ((), 0)]
)
def test_target_sets_are_lists_ints_or_minus_one(write, ann_id, count):
    (sample,) = load_referring(*write([ref(ann_id=ann_id)], [annotation(1), annotation(2)]), "val")
    assert len(sample["annotations"]) == count


def test_records_without_text_and_other_splits_are_skipped(write):
    records = [ref(0, sentences=()), ref(1, sentences=("", "a dog")), ref(2, split="train")]
    # A record without text is not looked at any further: its broken target does no harm.
    records.append(ref(3, ann_id=(99,), sentences=()))
    samples = load_referring(*write(records), "val")
    assert [sample["sample_id"] for sample in samples] == ["1_11"]


def test_an_object_is_converted_once_and_shared(write):
    first, second = load_referring(*write([ref(0), ref(1, sentences=("it",))]), "val")
    assert first["annotations"][0] is second["annotations"][0]


@pytest.mark.parametrize(
    "record, words",
    [
        (ref(ann_id=(5,)), ["record 0", "ref_id 0", "'ann_id'", "annotation 5", "instances.json"]),
        (ref(image_id=8), ["'image_id'", "image 8"]),
        (ref(ann_id=(1, -1)), ["'ann_id'", "[1, -1]"]),
        (ref(ann_id=(True,)), ["'ann_id'", "[True]"]),
        ({**ref(), "ref_id": None}, ["'ref_id'", "None"]),
        ({**ref(), "ref_id": 1.5}, ["'ref_id'", "1.5"]),
        (ref(image_id="7"), ["'image_id'", "'7'"]),
        (ref(split=None), ["record 0", "'split'", "None"]),
        (ref(sentences=(5,)), ["'sentences'", "5"]),
        ({**ref(), "sentences": 5}, ["'sentences'", "expected a list, found 5"]),
        (ref(sentences=({"sent_id": 0},)), ["'sentences'", "'raw' or 'sent'"]),
        (ref(sentences=({"sent_id": 0, "sent": 3},)), ["'sentences'", "[3]"]),
        (ref(sentences=({"sent": "dog"},)), ["'sent_id'", "missing"]),
        ([], ["record 0", "'split'", "[]"]),
        (ref(ann_id="1"), ["'ann_id'", "list of ints"]),
        (ref(ann_id=(3,)), ["'ann_id'", "annotation 3 belongs to image 9"]),
        (ref(sentences=("a", {"sent_id": 0, "sent": "b"})), ["'sent_id'", "0_0 occurs twice"]),
        (ref(split="train"), ["no expression in split 'val'", "['train']"]),
    ],
)
def test_errors_name_file_record_and_field(write, record, words):
    files = write([record], [annotation(1), annotation(3, image_id=9)])
    with pytest.raises(ValueError) as error:
        load_referring(*files, "val")
    for word in ["grefs(unc).json", *words]:
        assert word in str(error.value)


def test_missing_field_and_wrong_files_are_named(write, tmp_path):
    record = ref()
    del record["ann_id"]
    with pytest.raises(ValueError, match="field 'ann_id': missing"):
        load_referring(*write([record]), "val")
    annotations, instances, images = write([ref()])
    with pytest.raises(ValueError, match="expected a COCO detection file.*found list"):
        load_referring(annotations, annotations, images, "val")
    with pytest.raises(ValueError, match="expected a list of records.*found dict"):
        load_referring(instances, instances, images, "val")
    (tmp_path / "cut.json").write_text('[{"ref_id": ')
    with pytest.raises(ValueError, match="cut.json: not valid JSON"):
        list(iterate_refs(str(tmp_path / "cut.json")))


def test_degenerate_box_is_replaced_by_the_box_of_the_mask(write):
    files = write([ref()], [annotation(1, bbox=(0.0, 0.0, 0.0, 0.0))])
    assert load_referring(*files, "val")[0]["annotations"][0]["bbox"] == [2.0, 3.0, 4.0, 5.0]


def test_crowd_and_rle_targets_of_the_fixture_are_kept(shared_dir):
    """The official loaders crash on refs 1 to 3 or drop the crowd of ref 0; areas are by hand."""
    folder = shared_dir / "reference/metric_fixtures/grefcoco_crowd/data/grefcoco"
    samples = load_referring(
        str(folder / "grefs(unc).json"), str(folder / "instances.json"), "none", "val"
    )
    areas = [
        [int(mask_util.area(a["segmentation"])) for a in sample["annotations"]]
        for sample in samples
    ]
    assert areas == [[1900, 144], [144], [427], [427], [1900, 427, 635], []]
    # What official protocols need: ReLA drops crowds and takes polygons only, GREC keeps all.
    facts = [
        [(a["id"], a["iscrowd"], "polygons" in a) for a in sample["annotations"]]
        for sample in samples
    ]
    crowd, simple = (900000007777, 1, False), (100, 0, True)
    several = [simple, (215, 0, True), (345, 0, True)]
    assert facts == [[simple, crowd], [crowd], [(555, 0, False)], [(556, 0, False)], several, []]


def test_grefcoco_fixture_agrees_with_the_official_masks(shared_dir):
    """Intersection and union with the fixture's predictions are those of the official evaluator."""
    fixture = shared_dir / "reference/metric_fixtures/grefcoco"
    folder = fixture / "data/grefcoco"
    files = (str(folder / "grefs(unc).json"), str(folder / "instances.json"), "none")
    counts = {split: len(load_referring(*files, split)) for split in ("val", "testA", "testB")}
    assert counts == {"val": 55, "testA": 31, "testB": 39}
    samples = load_referring(*files, "val")
    targets = [min(len(sample["annotations"]), 2) for sample in samples]
    assert [targets.count(n) for n in (1, 2, 0)] == [23, 18, 14]
    predictions = json.loads((fixture / "predictions_val.json").read_text())
    masks = {f"{p['ref_id']}_{p['sent_id']}": p["mask"] for p in predictions}
    expected = json.loads((fixture / "expected.json").read_text())
    official = expected["val"]["gres"]["rela_native"]["per_sample"]
    official = {f"{o['ref_id']}_{o['sent_id']}": o for o in official}
    assert official.keys() == {sample["sample_id"] for sample in samples}
    for sample in samples:
        result = official[sample["sample_id"]]
        if result["gt_nt"] or result["pred_nt"]:
            assert result["gt_nt"] == (not sample["annotations"])
            continue
        truth = mask_util.merge([item["segmentation"] for item in sample["annotations"]])
        both = [masks[sample["sample_id"]], truth]
        assert mask_util.area(mask_util.merge(both, intersect=True)) == result["I"]
        assert mask_util.area(mask_util.merge(both)) == result["U"]


def test_refcoco_takes_one_target_only(write):
    for ann_id in (1, (1,)):
        assert len(load_refcoco(*write([ref(ann_id=ann_id)]), "val")) == 1
    for ann_id in ((1, 2), (), (-1,), -1):
        with pytest.raises(ValueError, match="expected one annotation id"):
            load_refcoco(*write([ref(ann_id=ann_id)]), "val")


def test_invalid_records_are_left_out_and_listed(write):
    refs = [ref(0), ref(1, ann_id=(5,)), {**ref(2), "split": None}, ref(3, image_id=8), ref(4)]
    skipped = []
    samples = load_referring(*write(refs), "val", skipped=skipped)
    assert [sample["ref_id"] for sample in samples] == [0, 4]
    positions = [message.split(": record ")[1][0] for message in skipped]
    assert positions == ["2", "1", "3"]
    with pytest.raises(ValueError, match="no valid expression"):
        load_referring(*write(refs[1:2]), "val", skipped=[])


@pytest.mark.parametrize(
    "change, words",
    [
        ({"bbox": [1.0, 2.0, 3.0]}, ["'bbox' of annotation 1", "[1.0, 2.0, 3.0]"]),
        ({"bbox": [1.0, float("nan"), 3.0, 4.0]}, ["'bbox'", "nan"]),
        ({"bbox": [1.0, 2.0, -3.0, 4.0]}, ["'bbox'", "-3.0"]),
        ({"iscrowd": "yes"}, ["'iscrowd'", "'yes'"]),
        ({"segmentation": None, "bbox": None}, ["'segmentation'", "neither a mask nor a box"]),
        ({"segmentation": [[]]}, ["'segmentation'", "three corners"]),
        ({"image_id": None}, ["belongs to image None"]),
        ({"id": "1"}, ["annotations[0], field 'id'", "'1'"]),
    ],
)
def test_errors_in_instances_are_named(write, change, words):
    files = write([ref()], [{**annotation(1), **change}])
    with pytest.raises(ValueError) as error:
        load_referring(*files, "val")
    for word in ["instances.json", *words]:
        assert word in str(error.value)


def test_ids_in_instances_must_mean_one_thing(write):
    (sample,) = load_referring(*write([ref()], [annotation(1), annotation(1)]), "val")
    assert len(sample["annotations"]) == 1
    files = write([ref()], [annotation(1), annotation(1, iscrowd=1)])
    with pytest.raises(ValueError, match="instances.json: id 1 stands for two different entries"):
        load_referring(*files, "val")


@pytest.mark.parametrize("field, value", [("height", 0), ("width", "12"), ("file_name", None)])
def test_wrong_images_are_named(write, field, value):
    files = write([ref()])
    with open(files[1], encoding="utf-8") as file:
        content = json.load(file)
    content["images"][0][field] = value
    with open(files[1], "w", encoding="utf-8") as file:
        json.dump(content, file)
    with pytest.raises(ValueError, match=f"field 'image_id': '{field}' of image 7 of .*instances"):
        load_referring(*files, "val")


def test_refzom_source_decides_and_not_the_ids(write):
    refs = [
        ref(0, (1,), source="one"),
        ref(1, (1,), source="zero"),
        ref(2, [-1], source="zero"),
        ref(3, [], source="zero"),
        ref(4, 1, source="many"),
    ]
    found = [len(record["annotations"]) for record in load_refzom(*write(refs), "val")]
    assert found == [1, 0, 0, 0, 1]
    for record, message in (
        (ref(0, [-1], source="one"), "'source' is 'one', found \\[-1\\]"),
        (ref(0), "no 'source'"),
    ):
        with pytest.raises(ValueError, match=f"ref_id 0.*{message}"):
            load_refzom(*write([record]), "val")


def test_rrefcoco_false_sentences_have_no_target(write):
    sentences = [
        {"sent_id": 0, "sent": "the dog"},
        {"sent_id": 1, "sent": "the cat", "exist": False},
        {"sent_id": 2, "sent": "a dog", "exist": 1},
    ]
    records = load_rrefcoco(*write([ref(5, 1, sentences)]), "val")
    assert [len(record["annotations"]) for record in records] == [1, 0, 1]
    assert {record["ref_id"] for record in records} == {5}
    with pytest.raises(ValueError, match="'exist' of a sentence to be true or false, found 'no'"):
        load_rrefcoco(*write([ref(5, 1, [{"sent_id": 1, "sent": "x", "exist": "no"}])]), "val")
    with pytest.raises(ValueError, match="expected one annotation id"):
        load_rrefcoco(*write([ref(5, [1, 2])]), "val")


def test_rrefcoco_records_are_groups_even_if_they_share_an_id(write):
    refs = [ref(5, 1), ref(6, 1), {**ref(7, 1), "ref_id": 5}]
    records = load_rrefcoco(*write(refs), "val")
    assert [r.get("group_id", r["ref_id"]) for r in records] == [5, 6, "5#2"]


@pytest.mark.parametrize("text", ["?!", "\u200b\u200d", "the \ud800 dog", "a\0b"])
def test_texts_that_no_tokenizer_takes_are_named(write, text):
    record = ref(1)
    record["sentences"] = [{"sent_id": 1, "raw": text, "sent": text}]
    with pytest.raises(ValueError, match="record 1 .ref_id 1., field 'sentences': expected text"):
        load_referring(*write([ref(0), record]), "val")
    skipped = []
    assert len(load_referring(*write([ref(0), record]), "val", skipped=skipped)) == len(skipped)
    # The cleaned text may have the words.
    record["sentences"][0].update(raw="?!", sent="dog")
    assert load_referring(*write([record]), "val")[0]["expression"] == "dog"


def test_an_object_named_twice_is_refused(write):
    with pytest.raises(ValueError, match="field 'ann_id': expected every id once, found .1, 1.$"):
        load_referring(*write([ref(ann_id=(1, 1))]), "val")
