"""What an expression without target lacks: by rule from the classes of the image, or as stated."""

import json

import pytest

from igvg_d2.data.datasets import load_expressions, load_referring
from igvg_d2.data.datasets.absent_kinds import KINDS, SYNONYMS, ClassNames, stated_kind
from igvg_d2.data.datasets.common import RecordError
from igvg_d2.evaluation.metrics import ABSENT_KINDS

NAMES = {1: "person", 2: "dog", 3: "hot dog", 4: "knife", 5: "Dining Table", 6: "bus", 7: "c++"}


@pytest.mark.parametrize(
    "text, classes, kind",
    [
        ("the man on the left", {1}, "lookalike"),
        ("The Ladies in red", {1, 2}, "lookalike"),
        ("the man on the left", {2}, "absent"),
        ("the left one", {1, 2, 3}, "unnamed"),
        ("a hot dog", {2}, "absent"),
        ("two hot dogs and a dog", {2}, "lookalike"),
        ("doghouse, manhole", {1, 2}, "unnamed"),
        ("both buses, all knives", {4}, "lookalike"),
        ("the one left of the table", {5}, "lookalike"),
        ("the dog\u2019s bowl", set(), "absent"),
        ("C++ book", {7}, "lookalike"),
    ],
)
def test_rule(text, classes, kind):
    assert ClassNames(NAMES).kind(text, classes) == kind


def test_without_names_nothing_is_said():
    assert ClassNames({}).kind("the dog", {1}) == ""
    assert ClassNames({1: " "}).kind("the dog", {1}) == "unnamed"


def test_synonyms_are_those_of_one_class():
    words = [word for words in SYNONYMS.values() for word in words.split()]
    assert len(words) == len(set(words)) and SYNONYMS["teddy bear"] == "teddy"
    assert KINDS == ABSENT_KINDS
    assert "skier" in SYNONYMS["person"] and not set(words) & set(SYNONYMS)


def test_what_a_file_states():
    made = {"absent": "absent", "swap": "lookalike", "false": "lookalike", "": None, 3: None}
    for kind, expected in made.items():
        assert stated_kind({"no_target_kind": kind}) == expected
    assert stated_kind({"absent_kind": "unnamed", "no_target_kind": "swap"}) == "unnamed"
    with pytest.raises(RecordError, match="expected one of .*'lookalike'.* found 'other'"):
        stated_kind({"absent_kind": "other"})


@pytest.fixture
def files(tmp_path):
    """Callable (sentences, categories) -> arguments of load_referring; a crowd of dogs in view."""

    def write(sentences, categories):
        record = {"ref_id": 1, "ann_id": [-1], "image_id": 7, "split": "val"}
        sentences = [{"sent_id": i, **sentence} for i, sentence in enumerate(sentences)]
        dogs = {"id": 1, "image_id": 7, "category_id": 18, "iscrowd": 1}
        image = {"id": 7, "file_name": "7.jpg", "height": 10, "width": 12}
        instances = {"images": [image], "annotations": [dogs], **categories}
        (tmp_path / "refs.json").write_text(json.dumps([{**record, "sentences": sentences}]))
        (tmp_path / "instances.json").write_text(json.dumps(instances))
        return [str(tmp_path / name) for name in ("refs.json", "instances.json", "")] + ["val"]

    return write


def test_readers_look_at_all_objects_of_the_image(files):
    texts = ("the puppy", "the cat", "the red one")
    categories = [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}, "damaged", {"id": 1}]
    names = {"categories": categories}
    kinds = [
        s.get("absent_kind") for s in load_referring(*files([{"raw": t} for t in texts], names))
    ]
    assert kinds == ["lookalike", "absent", "unnamed"]
    stated = [{"raw": "the cat", "no_target_kind": "swap"}]
    assert load_referring(*files(stated, names))[0]["absent_kind"] == "lookalike"
    # Without categories nothing is known; with a wrong statement the record is named.
    assert "absent_kind" not in load_referring(*files([{"raw": "the cat"}], {}))[0]
    with pytest.raises(ValueError, match="ref_id 1.*'absent_kind': expected one of"):
        load_referring(*files([{"raw": "the cat", "absent_kind": "x"}], names))


def test_own_format(tmp_path):
    image = {"id": 7, "file_name": "7.jpg", "height": 10, "width": 12}
    annotation = {"id": 1, "image_id": 7, "category_id": 1, "bbox": [1, 1, 3, 3]}
    annotation["segmentation"] = [[1, 1, 4, 1, 4, 4, 1, 4]]
    asked = {"image_id": 7, "annotation_ids": []}
    expressions = [
        {**asked, "text": "all dogs", "annotation_ids": [1]},
        {**asked, "text": "the small dog"},
        {**asked, "text": "the small dog", "absent_kind": "absent"},
    ]
    content = {"images": [image], "annotations": [annotation], "expressions": expressions}
    content["categories"] = [{"id": 1, "name": "dog"}]
    (tmp_path / "my.json").write_text(json.dumps(content))
    samples = load_expressions(str(tmp_path / "my.json"), str(tmp_path))
    assert [s.get("absent_kind") for s in samples] == [None, "lookalike", "absent"]
