"""Annotation files: JSON, pickles of every Python, and segmentations in every form."""

import json
import os
import pickle
import struct
from functools import partial

import numpy as np
import pycocotools.mask as mask_util
import pytest

from igvg_d2.data.datasets import load_referring
from igvg_d2.data.datasets.annotation_files import iterate_json, iterate_refs
from igvg_d2.io.rle import to_rle

load_refcoco = partial(load_referring, target_rule="refcoco")

SQUARE = [2.0, 3.0, 6.0, 3.0, 6.0, 8.0, 2.0, 8.0]  # 4 wide, 5 high


def test_to_rle_accepts_every_coco_form_and_joins_parts():
    rle = mask_util.frPyObjects([SQUARE], 10, 12)[0]
    mask = np.zeros((10, 12), np.uint8)
    mask[3:8, 2:6] = 1
    runs = {"size": [10, 12], "counts": [23, 5, 5, 5, 5, 5, 5, 5, 62]}
    text = {**rle, "counts": rle["counts"].decode()}
    shifted = [x + 2 for x in SQUARE]
    for segmentation in ([SQUARE], rle, text, runs, [rle], [rle, runs], [SQUARE, SQUARE, [1, 1]]):
        assert (mask_util.decode(to_rle(segmentation, 10, 12)) == mask).all()
    union = mask_util.decode(to_rle([SQUARE, shifted], 10, 12))
    assert union.max() == 1 and union.sum() == 20 + 20 - 2 * 3
    for wrong in (None, [], [[1.0, 2.0, 3.0, 4.0]], {"size": [12, 10], "counts": b""}, {}):
        with pytest.raises(ValueError, match="expected"):
            to_rle(wrong, 10, 12)


@pytest.mark.parametrize(
    "variant", ["py2_proto0.p", "py2_proto2.p", "py3_proto4.p", "as_json.json"]
)
def test_pickles_of_every_python_read_the_same(shared_dir, variant):
    fixture = shared_dir / "reference/metric_fixtures/refcoco"
    refs = list(iterate_refs(str(fixture / "pickle_variants" / f"refs_{variant}")))
    assert refs == json.loads((fixture / "pickle_variants/refs_as_json.json").read_text())
    instances = str(fixture / "data/refcoco/instances.json")
    path = str(fixture / "pickle_variants" / f"refs_{variant}")
    samples = load_refcoco(path, instances, "none", "val")
    assert len(samples) == 30 and all(len(s["annotations"]) == 1 for s in samples)


def test_latin1_byte_strings_of_python_2_are_read(tmp_path):
    # Protocol 0 as Python 2 writes [{'sent': 'caf\xe9'}].
    (tmp_path / "refs(unc).p").write_bytes(b"(lp0\n(dp1\nS'sent'\np2\nS'caf\\xe9'\np3\nsa.")
    assert list(iterate_refs(str(tmp_path / "refs(unc).p"))) == [{"sent": "caf\u00e9"}]


class Hostile:
    """Unpickling this with pickle.load would run a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_hostile_pickles_are_refused_and_not_run(tmp_path, protocol):
    path, proof = tmp_path / "refs(unc).p", tmp_path / "was_run"
    path.write_bytes(pickle.dumps([{"ref_id": 0, "sentences": Hostile(proof)}], protocol))
    with pytest.raises(ValueError, match=r"refused.*more than lists"):
        list(iterate_refs(str(path)))
    for module in ("builtins", "__builtin__"):
        path.write_bytes(f"c{module}\neval\n(S'1'\ntR.".encode())
        with pytest.raises(ValueError, match=r"refused.*more than lists"):
            list(iterate_refs(str(path)))
    assert not proof.exists()


def test_damaged_pickle_is_named(tmp_path):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps([{"ref_id": 0}])[:-3])
    with pytest.raises(ValueError, match=r"refs\(unc\).p: refused"):
        list(iterate_refs(str(path)))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_of_all_protocols(tmp_path, protocol):
    refs = [
        {"ref_id": i, "sentences": [{"sent": f"w\u00f6rd {i}", "x": [1.5, None, True, -i, 2**70]}]}
        for i in range(300)  # memo numbers of more than one byte
    ]
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps(refs, protocol))
    assert list(iterate_refs(str(path))) == refs


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02]r" + struct.pack("<I", 2**31) + b".",  # 32 GB of memo
        b"(lp2000000000\n.",
        b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"a.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
        b"\x80\x02]q\x00.more",
        b"\x80\x02]q\x00",
        b"I12",
        b"",
        b"\xff\xff",
        b"\x80\x02K\x05.",
        b"\x80\x02cos\nsystem\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"(ios\nsystem\n.",
        b"\x80\x02\x82\x01.",
        b"P1\n.",
        b"\x80\x02})" + b"\x85" * 10**6 + b"K\x01s.",  # hashed, it overflows the stack
        b"\x80\x02})q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"K\x01s.",  # its hash never ends
        b"\x80\x02]\x8b\xff\xff\x00\x00" + b"\x7f" * 65535 + b"a.",
        pickle.dumps([{1, 2}], 2),
    ],
)
def test_bombs_and_damage_are_refused(tmp_path, content):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"refs\(unc\).p: (refused|expected)"):
        list(iterate_refs(str(path)))


@pytest.mark.parametrize(
    "content, message",
    [
        ("[1, 2", "not valid JSON"),
        ("[1, 2]]", "not valid JSON"),
        ("[1,]", "not valid JSON"),
        ("[1 2]", "not valid JSON"),
        ("", "not valid JSON"),
        ("[" * 100000, "not valid JSON"),
        ("null", "expected a list of records.*found NoneType"),
    ],
)
def test_damaged_json_is_named(tmp_path, content, message):
    path = tmp_path / "refs.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"refs.json: {message}"):
        list(iterate_refs(str(path)))


def test_json_is_read_item_by_item(tmp_path):
    path = tmp_path / "x.json"
    content = {"info": {"a": [1]}, "b": [1, {"c": "]"}], "a": [], "d": [[2]]}
    for indent in (None, 2):
        path.write_text("\ufeff" + json.dumps(content, indent=indent), encoding="utf-8")
        items = list(iterate_json(str(path), ("a", "b", "d")))
        assert items == [("b", 1), ("b", {"c": "]"}), ("d", [2])]
    for text, message in (
        ('{"a": 1}', "expected a JSON object with 'a', found int under 'a'"),
        ('{"b": []}', "found dict with keys \\['b'\\]"),
        ('{"a": [], "a": []}', "key 'a' twice"),
        ('{"a": [1, {"x": 1, "x": 2}]}', "x.json.*item 2 of 'a': the key 'x' occurs twice"),
        ('{"a": [], "b": {"x": 1, "x": 2}}', "x.json.*the key 'x' occurs twice"),
        ('{"a": [] "b": 1}', "not valid JSON"),
        ('{"a": [], 5: 1}', "not valid JSON"),
        ('{"a" []}', "not valid JSON"),
        ("\udcff", "not valid JSON"),
    ):
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(ValueError, match=message):
            list(iterate_json(str(path), ("a",)))


def test_compressed_runs_are_checked():
    rng = np.random.default_rng(0)
    for size in ((1, 1), (7, 300), (480, 640)):
        for density in (0.0, 0.01, 0.5, 1.0):
            mask = np.asfortranarray(rng.random(size) < density, dtype=np.uint8)
            rle = mask_util.encode(mask)
            text = {**rle, "counts": rle["counts"].decode()}
            assert to_rle(text, *size) == rle
            # Every cut and every wrong symbol changes the sum of the runs or the syntax.
            for k in range(0, len(text["counts"]), 1 + len(text["counts"]) // 20):
                damaged = text["counts"][:k] + "~" + text["counts"][k + 1 :]
                for counts in (text["counts"][:k], damaged):
                    with pytest.raises(ValueError, match="of an RLE|in an RLE"):
                        to_rle({**text, "counts": counts}, *size)


@pytest.mark.parametrize(
    "segmentation",
    [
        *(
            [["1"] * 6],
            [[None] * 6],
            [[1.0] * 7],
            [[1e9] * 6],
            [[float("inf")] * 6],
            [5],
            "x",
            [[]],
        ),
        *([[[1, 2], [3]]], [{"counts": []}, 5], [[SQUARE], SQUARE]),
        *(
            {"size": [10, 12], "counts": c}
            for c in ([120, 1], [-1, 121], [], 5, "", "\u00e4", [1.5])
        ),
        *({"size": s, "counts": [120]} for s in (5, None, [10], [10, "12"], [12, 10])),
    ],
)
def test_wrong_segmentations_are_refused(segmentation):
    with pytest.raises(ValueError, match="expected"):
        to_rle(segmentation, 10, 12)


def test_reading_takes_time_in_proportion_to_the_file(tmp_path):
    """Look-ups in lists would take hours for these: 5e9 comparisons."""
    many = 100_000
    path = tmp_path / "x.json"
    path.write_text(json.dumps({**{f"k{i}": 0 for i in range(many)}, "a": [1]}))
    assert list(iterate_json(str(path), ("a",))) == [("a", 1)]
    path.write_text(json.dumps({f"k{i}": 0 for i in range(many)})[:-1] + ', "k99999": 1}')
    with pytest.raises(ValueError, match="'k99999' twice"):
        list(iterate_json(str(path), ("a",)))
    path.write_text(json.dumps([{f"k{i}": 0 for i in range(many)}])[:-2] + ', "k99999": 1}]')
    with pytest.raises(ValueError, match="'k99999' occurs twice"):
        list(iterate_refs(str(path)))


@pytest.mark.parametrize("size", [(10, 10), (480, 640), (65535, 65535)])
def test_the_outline_of_polygons_is_bounded(size):
    height, width = size
    zigzag = [c for i in range(200) for c in (-0.9 * width if i % 2 else 1.9 * width, float(i % 9))]
    for polygons in ([zigzag], [zigzag[:8]] * 50):
        with pytest.raises(ValueError, match=f"100 times height . width of the image of {width} x"):
            to_rle(polygons, height, width)
    around = [0.0, 0.0, 9.0, 0.0, 9.0, 9.0, 0.0, 9.0]
    assert mask_util.area(to_rle([around] * 20, height, width)) == 81


def test_every_polygon_gives_a_mask_or_a_reason():
    generator = np.random.default_rng(0)
    for _ in range(500):
        height, width = generator.integers(1, 60, 2).tolist()
        corners = generator.normal(0.5, 2.0, (generator.integers(3, 30), 2)) * (width, height)
        if generator.random() < 0.5:
            corners[1:3] = corners[0]
        try:
            rle = to_rle([corners.round(int(generator.integers(0, 3))).ravel()], height, width)
        except ValueError:
            continue
        assert 0 <= mask_util.area(rle) <= height * width
