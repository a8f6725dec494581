"""Every metric of the shared fixtures under every protocol, through readers and scorer.

The expected values were computed by the benchmark authors' and the paper authors' own code. Which
file, which key and which of our results belong together stands in the tables below; a split whose
predictions are not shared is skipped.
"""

import json
from functools import partial

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog

from igvg_d2.data.datasets import load_referring
from igvg_d2.evaluation import PROTOCOLS, GroundTruth, parse_protocols
from igvg_d2.evaluation.frames import decode_rle, target_mask
from igvg_d2.evaluation.reporting import format_report
from igvg_d2.io.rle import mask_to_rle, to_json
from tests.scripts import load_script

load_refcoco = partial(load_referring, target_rule="refcoco")
load_refzom = partial(load_referring, target_rule="refzom")
load_rrefcoco = partial(load_referring, target_rule="rrefcoco")

scorer = load_script("tools/score_predictions.py")

REL = 1e-6


def load(path):
    """Content of a JSON file."""
    return json.loads(path.read_text())


@pytest.fixture
def dataset(fixtures_dir, register):
    """Callable: reader, annotation file, split, evaluator type -> name of a registered data set."""

    def _dataset(reader, annotation_file, split, evaluator_type):
        path = fixtures_dir / annotation_file
        samples = reader(str(path), str(path.parent / "instances.json"), "none", split)
        return register(samples, evaluator_type)

    return _dataset


@pytest.fixture
def run(fixtures_dir, tmp_path):
    """Callable: data set, prediction file, protocols -> {protocol: results}.

    The fixture's masks of 480 and 320 pixels replace the others where there is a file of them;
    without, the scorer resizes. Both must give the same.
    """

    def _run(name, file, protocols):
        path = fixtures_dir / file
        if not path.is_file():
            pytest.skip(f"{path.name} is not shared")
        results = scorer.score(name, str(path), protocols=protocols)["protocols"]
        for protocol in parse_protocols(protocols):
            resized = path.with_name(f"{path.stem}_{protocol.size}.json")
            if protocol.size is None or not resized.is_file():
                continue
            masks = {(p["ref_id"], p["sent_id"]): p["mask"] for p in load(resized)}
            predictions = [{**p, "mask": masks[p["ref_id"], p["sent_id"]]} for p in load(path)]
            replaced = tmp_path / "predictions.json"
            replaced.write_text(json.dumps(predictions))
            again = scorer.score(name, str(replaced), protocols=protocol.name)["protocols"]
            np.testing.assert_equal(
                again[protocol.name]["results"], results[protocol.name]["results"]
            )
        return {key: block["results"] for key, block in results.items()}

    return _run


def assert_close(ours, official, rel=REL):
    """Every official value; NaN where it is NaN."""
    for key, value in official.items():
        assert ours[key] == pytest.approx(value, rel=rel, nan_ok=True), key


def released_precisions(row, key="Pr@0.7-0.9"):
    """{"Pr@0.7": ...} of a list of the release."""
    first = int(key[5])
    return {f"Pr@0.{first + i}": value for i, value in enumerate(row[key])}


@pytest.mark.parametrize("split", ["val", "testA", "testB"])
def test_grefcoco(fixtures_dir, dataset, run, split):
    name = dataset(load_referring, "grefcoco/data/grefcoco/grefs(unc).json", split, "grefcoco")
    results = run(name, f"grefcoco/predictions_{split}.json", ",".join(PROTOCOLS))
    expected = load(fixtures_dir / "grefcoco/expected.json")[split]
    rows = (
        ("native", "rela_native"),
        ("official_native", "rela_native"),
        ("official", "rela_480"),
    )
    for protocol, key in rows:
        official = dict(expected["gres"][key]["results"]["grefcoco"])
        official.update({rate: 100 * official[rate] for rate in ("N_acc", "T_acc")})
        assert_close(results[protocol]["gres"], official)
        row = expected["grec"]["mdetr_official"]["results"]
        official = {k.replace("F1_score", "F1score"): 100 * v for k, v in row.items()}
        assert_close(results[protocol]["grec"], official)
    for protocol, key in (("released_native", "native"), ("released", "ivg_320")):
        row = dict(expected["instancevg"][key]["gres"])
        precisions = released_precisions(row)
        del row["Pr@0.7-0.9"]
        assert_close(results[protocol]["gres"], {**row, **precisions})
        row = expected["instancevg"][key]["grec"]
        assert_close(
            results[protocol]["grec"], {k.replace("F1_score", "F1score"): v for k, v in row.items()}
        )


def test_refzom(fixtures_dir, dataset, run):
    name = dataset(load_refzom, "refzom/data/ref-zom/refs(final).p", "test", "refzom")
    results = run(name, "refzom/predictions_test.json", ",".join(PROTOCOLS))
    expected = load(fixtures_dir / "refzom/expected.json")["test"]
    rows = (
        ("native", "dmmi_native"),
        ("official_native", "dmmi_native"),
        ("official", "dmmi_480"),
    )
    for protocol, key in rows:
        row = expected[key]["results"]
        official = {f"Pr@{t}": value for t, value in row["precision"].items()}
        official.update(mIoU=row["mIoU"], oIoU=row["oIoU"], Acc=row["acc"])
        assert_close(results[protocol]["refzom"], official)
    for protocol, key in (("released_native", "native"), ("released", "ivg_320")):
        row = dict(expected["instancevg"][key])
        precisions = released_precisions(row, "Pr@0.5-0.9")
        del row["Pr@0.5-0.9"]
        assert_close(results[protocol]["refzom"], {**row, **precisions})


@pytest.mark.parametrize(
    "name, partition", [("rrefcoco", "unc"), ("rrefcoco+", "unc"), ("rrefcocog", "umd")]
)
def test_rrefcoco(fixtures_dir, dataset, run, name, partition):
    registered = dataset(
        load_rrefcoco, f"rrefcoco/data/{name}/refs({partition}).p", "val", "rrefcoco"
    )
    results = run(registered, f"rrefcoco/predictions_{name}_val.json", ",".join(PROTOCOLS))
    expected = load(fixtures_dir / "rrefcoco/expected.json")[name]
    keys = ("mIoU", "oIoU", "mRR", "rIoU")
    for protocol, frame in (("official_native", "native"), ("official", "rris_480")):
        for task, mode in (("rref", "masks_only"), ("rref_flag", "use_exist")):
            for suffix in ("", "_union_gt"):
                row = expected["rris"][f"{frame}_{mode}{suffix}"]["results"]
                assert_close(results[protocol][task + suffix], {key: row[key] for key in keys})
    for task, mode in (("rref", "masks_only"), ("rref_flag", "use_exist")):
        row = expected["rris"][f"native_{mode}_union_gt"]["results"]
        assert_close(results["native"][task], {key: row[key] for key in keys})
    for protocol, key in (("released_native", "native"), ("released", "ivg_320")):
        assert_close(results[protocol]["rref"], expected["instancevg"][key])


@pytest.mark.parametrize(
    "name, partition, split",
    [
        ("refcoco", "unc", "val"),
        ("refcoco", "unc", "testA"),
        ("refcoco", "unc", "testB"),
        ("refcoco", "google", "val"),
        ("refcoco", "google", "test"),
        ("refcoco+", "unc", "val"),
        ("refcoco+", "unc", "testA"),
        ("refcoco+", "unc", "testB"),
        ("refcocog", "umd", "val"),
        ("refcocog", "umd", "test"),
        ("refcocog", "google", "val"),
    ],
)
def test_refcoco(fixtures_dir, dataset, run, name, partition, split):
    prefix = f"{name}_{partition}_{split}"
    file = f"refcoco/predictions_{prefix}.json"
    if not (fixtures_dir / file).is_file():
        pytest.skip(f"{file} is not shared")
    registered = dataset(load_refcoco, f"refcoco/data/{name}/refs({partition}).p", split, "refcoco")
    results = run(registered, file, ",".join(PROTOCOLS))
    expected = load(fixtures_dir / "refcoco/expected.json")[prefix]
    rows = (
        ("official", "res", "res_lavt_480"),
        ("official", "res_union_gt", "res_lavt_480_union_gt"),
        ("official_native", "res", "res_native_lavt"),
        ("official_native", "res_union_gt", "res_native_lavt_union_gt"),
        ("native", "res", "res_native_lavt_union_gt"),
        ("native", "res", "res_native_mattnet"),
    )
    for protocol, task, key in rows:
        row = expected["res"].get(key)
        if row is None:  # 480 pixels: not computed for every split
            continue
        official = {f"Pr@{t}": value for t, value in row["precision"].items()}
        official.update({k: row[k] for k in ("mIoU", "oIoU") if k in row})
        assert_close(results[protocol][task], official)
    accuracy = expected["rec"]["mattnet"]["acc50"]
    ranks = dict(zip(("P@1", "P@5", "P@10"), expected["rec"]["mdetr"]["P_at_1_5_10"]))
    for protocol in ("official", "official_native"):
        assert_close(results[protocol]["rec"], {"Acc@0.5": accuracy})
        assert_close(results[protocol]["rec"], {k: 100 * v for k, v in ranks.items()})
    assert_close(results["native"]["rec"], {"Acc@0.5": accuracy})
    for protocol, key in (("released_native", "native"), ("released", "ivg_320")):
        row = expected["instancevg"].get(key)
        if row is None:
            continue
        official = {f"Pr@0.{5 + i}": v for i, v in enumerate(row["MaskAcc@0.5-0.9"])}
        # The release takes means in float32.
        assert_close(
            results[protocol]["res"], {**official, "mIoU": row["mIoU"], "oIoU": row["oIoU"]}, 1e-4
        )
        accuracies = {f"Acc@0.{5 + i}": v for i, v in enumerate(row["DetAcc@0.5-0.9"])}
        if key == "ivg_320":
            # Boxes of exactly 0.5 fall on either side in float32, says the fixtures' README.
            del accuracies["Acc@0.5"]
        assert_close(results[protocol]["rec"], accuracies, 1e-4)


@pytest.mark.parametrize(
    "file, reader, annotations, split, protocol, official",
    [
        ("grefcoco/gt_480_rela_{}.json", load_referring, "grefcoco/data/grefcoco/grefs(unc).json",
         ("val", "testA", "testB"), "official", "polygons"),
        ("grefcoco/gt_320_instancevg_{}.json", load_referring,
         "grefcoco/data/grefcoco/grefs(unc).json", ("val", "testA", "testB"), "released", ""),
        ("refzom/gt_480_dmmi_{}.json", load_refzom, "refzom/data/ref-zom/refs(final).p",
         ("test",), "official", "nearest"),
        ("refcoco/gt_480_lavt_refcoco_unc_{}.json", load_refcoco,
         "refcoco/data/refcoco/refs(unc).p", ("val", "testA"), "official", "nearest"),
        ("rrefcoco/gt_480_rris_rrefcoco_{}.json", load_rrefcoco,
         "rrefcoco/data/rrefcoco/refs(unc).p", ("val",), "official", "nearest"),
    ],
)  # fmt: skip
def test_ground_truth_pixel_by_pixel(
    fixtures_dir, file, reader, annotations, split, protocol, official
):
    compared = 0
    single_cover = reader in (load_refcoco, load_rrefcoco)
    for name in split:
        path = fixtures_dir / file.format(name)
        if not path.is_file():
            continue
        refs = fixtures_dir / annotations
        samples = reader(str(refs), str(refs.parent / "instances.json"), "none", name)
        # One target mask per ref in some files: that of its true sentences.
        samples = sorted(samples, key=lambda sample: len(sample["annotations"]))
        samples = {(s["ref_id"], key): s for s in samples for key in (s["sent_id"], None)}
        for row in load(path):
            target = GroundTruth.from_sample(samples[row["ref_id"], row.get("sent_id")])
            mask = target_mask(target, PROTOCOLS[protocol], official, single_cover)
            mask = decode_rle(mask) if isinstance(mask, dict) else mask
            np.testing.assert_array_equal(mask, mask_util.decode(row["mask"]).astype(bool))
            compared += 1
    assert compared > 0


def test_crowds_and_rles_as_relas_loader_takes_them(fixtures_dir):
    folder = fixtures_dir / "grefcoco_crowd"
    refs = folder / "data" / "grefcoco" / "grefs(unc).json"
    split = load(refs)[0]["split"]
    samples = load_referring(str(refs), str(refs.parent / "instances.json"), "none", split)
    expected = load(folder / "expected.json")["per_ref"]
    for sample in samples:
        row = expected[str(sample["ref_id"])]
        target = GroundTruth.from_sample(sample)
        for protocol, key in (("official_native", "mask"), ("official", "rela_480_mask")):
            if key in row:
                mask = target_mask(target, PROTOCOLS[protocol], "polygons")
                mask = decode_rle(mask) if isinstance(mask, dict) else mask
                np.testing.assert_array_equal(mask, mask_util.decode(row[key]).astype(bool))
        # Where upstream stops there is still a mask, never an exception.
        if "rela_error" in row:
            assert target_mask(target, PROTOCOLS["official"], "polygons").any()


@pytest.mark.parametrize("protocol", ["official", "released"])
@pytest.mark.parametrize(
    "file, reader, annotations, split, kind, metric",
    [
        ("grefcoco", load_referring, "grefcoco/grefs(unc).json", "val", "grefcoco", "gres/gIoU"),
        ("refzom", load_refzom, "ref-zom/refs(final).p", "test", "refzom", "refzom/mIoU"),
        ("rrefcoco", load_rrefcoco, "rrefcoco/refs(unc).p", "val", "rrefcoco", "rref/rIoU"),
        ("refcoco", load_refcoco, "refcoco/refs(unc).p", "val", "refcoco", "res/mIoU"),
    ],
)
def test_perfect_masks_of_the_original_size_reach_the_ceiling_that_is_told(
    dataset, tmp_path, file, reader, annotations, split, kind, metric, protocol
):
    name = dataset(reader, f"{file}/data/{annotations}", split, kind)
    targets = list(map(GroundTruth.from_sample, DatasetCatalog.get(name)))
    perfect = [
        {
            "sample_id": target.sample["sample_id"],
            "mask": to_json(mask_to_rle(target.union)),
            "no_target": target.num_targets == 0,
            "boxes": target.boxes.tolist(),
            "scores": [1.0] * target.num_targets,
        }
        for target in targets
    ]
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps(perfect))
    report = scorer.score(name, str(path), protocols=protocol)
    block = report["protocols"][protocol]
    task, key = metric.split("/")
    found = block["results"][task][key]
    assert block["ceiling"][key] == pytest.approx(found)
    # Only DMMI resizes its targets as we do such masks.
    assert found == 100.0 if (protocol, kind) == ("official", "refzom") else 50 < found < 99
    assert f"ones reach {next(iter(block['ceiling']))} " in format_report(report)


def test_no_ceiling_where_the_model_resizes(fixtures_dir, dataset, tmp_path):
    name = dataset(load_referring, "grefcoco/data/grefcoco/grefs(unc).json", "val", "grefcoco")
    resized = fixtures_dir / "grefcoco/predictions_val_480.json"
    report = scorer.score(name, str(resized), protocols="official")
    assert report["protocols"]["official"]["ceiling"] == {}
    assert "ceiling" not in format_report(report)


def test_protocol_names():
    assert [p.name for p in parse_protocols("official, native,official")] == ["official", "native"]
    for wrong in ("offical", "", ("native", "x")):
        with pytest.raises(ValueError, match="expected one or more of .*'native'"):
            parse_protocols(wrong)
