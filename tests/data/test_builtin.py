"""Registration of the built-in data sets and of the user's own."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from igvg_d2.data.datasets import builtin, register_grounding


def test_register_grounding_is_lazy_and_sets_defaults():
    calls = []
    name = "reader_test_own_data"
    register_grounding(name, {"image_root": "x"}, lambda: calls.append(1) or [])
    assert not calls and DatasetCatalog.get(name) == [] and calls
    metadata = MetadataCatalog.get(name)
    assert (metadata.evaluator_type, metadata.thing_classes) == ("grefcoco", ["target"])
    assert metadata.image_root == "x"


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """name -> (metadata, loader) as registered for a root that has only COCO's train2014 folder."""
    (tmp_path / "coco/train2014").mkdir(parents=True)
    entries = {}
    record = lambda name, metadata, loader: entries.update({name: (metadata, loader)})
    monkeypatch.setattr(builtin, "register_grounding", record)
    builtin.register_builtin(str(tmp_path))
    return entries


def test_builtin_names_are_in_the_catalog_and_metadata_is_complete(registered, tmp_path):
    splits = ("train", "val", "testA", "testB")
    names = ("shapes", "grefcoco_unc", "refcoco_unc", "refcoco+_unc", "refcocop_unc")
    expected = {f"{name}_{split}" for name in names for split in splits}
    expected |= {f"refcocog_umd_{split}" for split in ("train", "val", "test")}
    expected |= {f"refcoco_google_{split}" for split in ("train", "val", "test")}
    expected |= {f"refcocog_google_{split}" for split in ("train", "val")}
    expected |= {f"refzom_final_{split}" for split in ("train", "test")}
    robust = ("rrefcoco_unc", "rrefcoco+_unc", "rrefcocop_unc", "rrefcocog_umd")
    expected |= {f"{name}_{split}" for name in robust for split in ("train", "val")}
    names = ("seqtr_grefcoco", "seqtr_refcoco_unc", "seqtr_refcocoplus_unc")
    expected |= {f"{name}_{split}" for name in names for split in splits}
    mixed = ("refcoco_unc", "refcocoplus_unc")
    expected |= {f"seqtr_mixed_{s}_{name}" for name in mixed for s in splits[1:]}
    expected |= {
        *("seqtr_mixed_train", "seqtr_mixed_val_refcocog_umd", "seqtr_mixed_test_refcocog_umd"),
        *("seqtr_mixed_val_refcocog_google", "seqtr_refzom_train", "seqtr_refzom_test"),
        *("seqtr_refcocog_google_train", "seqtr_refcocog_google_val", "seqtr_rrefcoco_train"),
        *("seqtr_rrefcoco_val_rrefcoco", "seqtr_rrefcoco_val_rrefcoco+"),
        *("seqtr_rrefcoco_val_rrefcocoplus", "seqtr_rrefcoco_val_rrefcocog"),
        *(f"seqtr_refcocog_umd_{split}" for split in ("train", "val", "test")),
    }
    names = ("refcoco_unc", "refcoco+_unc", "refcocop_unc")
    expected |= {f"{name}_{split}_reviewed" for name in names for split in splits[1:]}
    expected |= {f"refcocog_umd_{split}_reviewed" for split in ("val", "test")}
    expected |= {"refcoco_m_val", *(f"ref_l4_{split}" for split in ("val", "test", "all"))}
    expected |= {f"openref_{split}" for split in ("train", "val", "none_test")}
    assert set(registered) == expected and expected <= set(DatasetCatalog.list())
    metadata, _ = registered["shapes_testB"]
    assert "prepare_synthetic" in metadata.pop("hint")
    assert metadata == {
        "annotation_file": str(tmp_path / "shapes/grefcoco/grefs(unc).json"),
        "instances_file": str(tmp_path / "shapes/grefcoco/instances.json"),
        "image_root": str(tmp_path / "shapes/images/train2014"),
        "split": "testB",
        "evaluator_type": "grefcoco",
    }
    metadata, _ = registered["refcocog_umd_test"]
    assert metadata["evaluator_type"] == "refcoco" and metadata["split"] == "test"
    assert metadata["image_root"] == str(tmp_path / "coco/train2014")
    assert metadata["annotation_file"] == str(tmp_path / "refcocog/refs(umd).p")
    metadata, _ = registered["refzom_final_test"]
    assert metadata["evaluator_type"] == "refzom"
    assert metadata["image_root"] == str(tmp_path / "images/trainval2014")
    assert MetadataCatalog.get("grefcoco_unc_val").thing_classes == ["target"]


def test_builtin_says_what_is_missing_and_what_to_run(registered, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        registered["shapes_train"][1]()
    command = f"python datasets/prepare_synthetic.py --output {tmp_path / 'shapes'}"
    for words in ("'shapes_train'", "grefs(unc).json", command):
        assert words in str(error.value)
    (tmp_path / "grefcoco").mkdir()
    (tmp_path / "grefcoco/grefs(unc).json").write_text("[]")
    with pytest.raises(FileNotFoundError) as error:
        registered["grefcoco_unc_val"][1]()
    for words in ("'grefcoco_unc_val'", "instances.json", "datasets/README.md"):
        assert words in str(error.value)


def test_builtin_loads_once_the_data_are_there(registered, tmp_path):
    image = {"id": 7, "file_name": "COCO_7.jpg", "height": 10, "width": 12}
    sentence = {"sent_id": 0, "sent": "the dog"}
    record = {"ref_id": 0, "ann_id": [-1], "image_id": 7, "split": "testA", "sentences": [sentence]}
    instances = {"images": [image], "annotations": []}
    (tmp_path / "shapes/grefcoco").mkdir(parents=True)
    (tmp_path / "shapes/grefcoco/grefs(unc).json").write_text(json.dumps([record]))
    (tmp_path / "shapes/grefcoco/instances.json").write_text(json.dumps(instances))
    (sample,) = registered["shapes_testA"][1]()
    assert sample["file_name"] == str(tmp_path / "shapes/images/train2014/COCO_7.jpg")


def test_files_are_found_under_each_of_their_names(tmp_path, monkeypatch):
    files = (
        *(("refzom", "Ref_ZOM.p"), ("rrefcocog", "refs(unc).p"), ("R-RefCOCO", "refs(umd).p")),
        *(("rrefcoco+", "refs(google).p"), ("refcoco+", "README"), ("refcocoplus", "refs(unc).p")),
        *(("gRefCOCO", "grefs(unc).p"), ("refcocog", "refs(umd).json")),
    )
    for folder, name in files:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(b"")
    found = {}
    record = lambda name, metadata, loader: found.update({name: metadata["annotation_file"]})
    monkeypatch.setattr(builtin, "register_grounding", record)
    (tmp_path / "seqtr_type/annotations/mixed-seg").mkdir(parents=True)
    (tmp_path / "seqtr_type/annotations/mixed-seg/instances_nogoogle.json").write_bytes(b"")
    builtin.register_builtin(str(tmp_path))
    assert found["refzom_final_test"] == str(tmp_path / "refzom/Ref_ZOM.p")
    assert found["rrefcocog_umd_val"] == str(tmp_path / "rrefcocog/refs(unc).p")
    assert found["rrefcoco_unc_val"] == str(tmp_path / "R-RefCOCO/refs(umd).p")
    assert found["rrefcocop_unc_val"] == str(tmp_path / "rrefcoco+/refs(google).p")
    assert found["refcoco+_unc_val"] == str(tmp_path / "refcocoplus/refs(unc).p")
    assert found["refcocog_umd_val"] == str(tmp_path / "refcocog/refs(umd).json")
    assert found["grefcoco_unc_val"] == str(tmp_path / "gRefCOCO/grefs(unc).p")
    annotations = tmp_path / "seqtr_type/annotations"
    mixed = str(annotations / "mixed-seg/instances_nogoogle.json")
    assert found["seqtr_mixed_train"] == mixed
    assert found["seqtr_grefcoco_train"] == str(annotations / "grefs/instances.json")


def test_newer_benchmarks_say_which_of_their_files_is_missing(registered, tmp_path):
    metadata, load = registered["ref_l4_all"]
    folder = tmp_path / "ref-l4"
    assert metadata["more_files"] == (str(folder / "ref-l4-test.parquet"),)
    assert (metadata["evaluator_type"], metadata["split"]) == ("ref_l4", "all")
    for name, word in (
        ("ref_l4_all", "ref-l4-val.parquet"),
        ("refcoco_m_val", "validation-00000-of-00002.parquet"),
        ("openref_val", "openref/val.json"),
    ):
        with pytest.raises(FileNotFoundError, match=f"'{name}' needs .*{word}.*datasets/README.md"):
            registered[name][1]()
    folder.mkdir()
    (folder / "ref-l4-val.parquet").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="'ref_l4_all' needs .*ref-l4-test.parquet.*README"):
        load()
    for name in ("refs(unc).p", "instances.json"):
        (tmp_path / "refcoco").mkdir(exist_ok=True)
        (tmp_path / "refcoco" / name).write_bytes(b"")
    metadata, load = registered["refcoco_unc_testA_reviewed"]
    assert metadata["evaluator_type"] == "refcoco"
    with pytest.raises(FileNotFoundError, match="annotation_reviewed/refcoco_testA_reviewed.json"):
        load()
