"""Reader of the released project's JSON, against the official files of the same samples."""

import json
from functools import partial

import pycocotools.mask as mask_util
import pytest

from igvg_d2.data.datasets import load_referring, load_seqtr

load_refcoco = partial(load_referring, target_rule="refcoco")
load_refzom = partial(load_referring, target_rule="refzom")
load_rrefcoco = partial(load_referring, target_rule="rrefcoco")

SQUARE = [2.0, 3.0, 6.0, 3.0, 6.0, 8.0, 2.0, 8.0]
RLE = {"size": [10, 12], "counts": [23, 5, 5, 5, 5, 5, 5, 5, 62]}
EMPTY = {"bbox": None, "category_id": None, "iscrowd": None, "empty": True}


def target(segmentation=None, **extra):
    return {"bbox": [2.0, 3.0, 4.0, 5.0], "segmentation": segmentation or [SQUARE], **extra}


def sample(annotations=(), raw="The DOG", **extra):
    """A sample of gRefCOCO's kind."""
    record = {"image_id": 7, "height": 10, "width": 12, "annotations": list(annotations)}
    return {**record, "expressions": {"raw": raw, **extra}}


@pytest.fixture
def write(tmp_path):
    """Callable: samples of split "val" -> path."""

    def _write(samples, split="val"):
        path = tmp_path / "instances.json"
        path.write_text(json.dumps({split: samples, "train": []}))
        return str(path)

    return _write


def facts(samples, names=("ref_id", "sent_id")):
    """What both formats say: ids, words, image, and the targets' boxes and masks."""
    return sorted(
        (
            *(str(s[name]) for name in names),
            *(s["expression"], s["file_name"], s["height"], s["width"]),
            [(a["bbox"], mask_util.decode(a["segmentation"]).tobytes()) for a in s["annotations"]],
        )
        for s in samples
    )


@pytest.mark.parametrize(
    "file, split, loader, official, official_split",
    [
        ("grefs/instance.json", "val", load_referring, "grefcoco/data/grefcoco", "val"),
        ("ref-zom/instance.json", "test", load_refzom, "refzom/data/ref-zom", "test"),
        ("rrefcoco/instance.json", "val_rrefcoco", load_rrefcoco, "rrefcoco/data/rrefcoco", "val"),
        (
            "rrefcoco/instance.json",
            "val_rrefcoco+",
            load_rrefcoco,
            "rrefcoco/data/rrefcoco+",
            "val",
        ),
        (
            "rrefcoco/instance.json",
            "val_rrefcocog",
            load_rrefcoco,
            "rrefcoco/data/rrefcocog",
            "val",
        ),
    ],
)
def test_same_samples_as_the_official_files(
    shared_dir, file, split, loader, official, official_split
):
    fixtures = shared_dir / "reference/metric_fixtures"
    found = load_seqtr(str(fixtures / "seqtr_type/annotations" / file), "x", split)
    folder = fixtures / official
    (refs,) = [path for path in folder.iterdir() if "refs(" in path.name]
    expected = loader(str(refs), str(folder / "instances.json"), "x", official_split)
    assert facts(found) == facts(expected)
    assert {len(s["annotations"]) for s in found} >= {0, 1}


def test_classic_sets_share_a_file(shared_dir):
    fixtures = shared_dir / "reference/metric_fixtures"
    path = fixtures / "seqtr_type/annotations/mixed-seg/instances_nogoogle_withid.json"
    for name, folder, by in (
        ("refcoco_unc", "refcoco", "unc"),
        ("refcocoplus_unc", "refcoco+", "unc"),
        ("refcocog_umd", "refcocog", "umd"),
    ):
        found = load_seqtr(str(path), "x", f"val_{name}")
        folder = fixtures / "refcoco/data" / folder
        files = (str(folder / f"refs({by}).p"), str(folder / "instances.json"))
        expected = load_refcoco(*files, "x", "val")
        # Ids of sentences are not in these files.
        assert facts(found, ()) == facts(expected, ())
        ids = [[s["annotations"][0]["id"] for s in samples] for samples in (found, expected)]
        assert sorted(ids[0]) == sorted(ids[1])


def test_every_expression_becomes_a_sample(write):
    samples = [
        {"image_id": 7, "height": 10, "width": 12, "bbox": [2.0, 3.0, 4.0, 5.0]}
        | {"mask": RLE, "expressions": ["one", "two"]},
        sample([target()], raw=["a", "b"]),
        sample([target(), EMPTY, target()], sent_id=9, ref_id=4),
        sample([EMPTY, target()]),
    ]
    found = load_seqtr(write(samples), "images", "val")
    ids = [(s["sample_id"], s["expression"], len(s["annotations"])) for s in found]
    assert ids == [
        *(("0_0", "one", 1), ("0_1", "two", 1), ("1_0", "a", 1), ("1_1", "b", 1)),
        *(("4_9", "The DOG", 1), ("3_0", "The DOG", 0)),
    ]
    assert found[0]["file_name"] == "images/COCO_train2014_000000000007.jpg"
    assert {mask_util.area(s["annotations"][0]["segmentation"]) for s in found[:5]} == {20}


def test_groups_come_from_the_index_when_the_samples_do_not_say_them(write, tmp_path):
    path = write([[sample([target()])], [sample([EMPTY])], [sample([target()])]])
    with pytest.raises(ValueError, match="instance_index.json', which says.*is missing"):
        load_seqtr(path, "x", "val")
    index = tmp_path / "instance_index.json"
    index.write_text('{"val": [[0, 2], [2, 3]]}')
    found = load_seqtr(path, "x", "val")
    assert [s["sample_id"] for s in found] == ["0_0", "0_1", "1_2"]
    for pairs in ([[0, 2]], [[0, 2], [1, 3]], [[0, 4]], [[0, 0], [0, 3]], "x", [[0, "3"]]):
        index.write_text(json.dumps({"val": pairs}))
        with pytest.raises(ValueError, match="instance_index.json: 'val'"):
            load_seqtr(path, "x", "val")


def test_training_groups_are_expanded(write):
    group = [sample([target()]), sample([EMPTY], raw="The cat")]
    found = load_seqtr(write([group, [sample([target()])]]), "x", "val")
    assert [(s["sample_id"], len(s["annotations"])) for s in found] == [
        *(("0_0", 1), ("0_1", 0), ("1_0", 1)),
    ]


@pytest.mark.parametrize(
    "record, message",
    [
        (5, "'image_id': expected an object"),
        ([], "'expressions': expected a sample, found an empty list"),
        ({**sample(), "height": "10"}, "'height': expected an integer from 1"),
        ({**sample(), "expressions": []}, "'expressions': expected one text or a list"),
        (sample(raw=[3]), "'expressions': expected text with a word in it, found 3"),
        (sample(raw=["a dog", "?!"]), "'expressions': expected text with a word in it, found '.!'"),
        (sample([target(), target()]), "'annotations': expected every id once"),
        (sample(["x"]), "'annotations': expected objects with 'bbox'"),
        (sample([{"segmentation": [SQUARE]}]), "'annotations': expected objects with 'bbox'"),
        (sample([target(id="5")]), "'id': expected an integer"),
        (sample([target([[1.0, float("nan")] * 3])]), "'segmentation': expected polygon corners"),
        (sample([target({**RLE, "counts": [3]})]), "'segmentation': expected run lengths of 10"),
    ],
)
def test_errors_name_file_sample_and_field(write, record, message):
    path = write([sample([target()]), record])
    with pytest.raises(ValueError, match=f"instances.json: sample 1 of 'val', field.*{message}"):
        load_seqtr(path, "x", "val")
    skipped = []
    assert len(load_seqtr(path, "x", "val", skipped=skipped)) == 1 and len(skipped) == 1


def test_other_splits_and_files_are_named(write):
    path = write([sample()])
    with pytest.raises(ValueError, match="a list 'testA', found \\['train', 'val'\\]"):
        load_seqtr(path, "x", "testA")
