"""Shapes: scenes, polygons, expressions against an independent interpreter, files."""

import hashlib
import json
import math
from collections import Counter

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from igvg_d2.data import is_flippable, swap_direction_words
from igvg_d2.data.synthetic import (
    COLORS,
    GENERATOR_VERSION,
    HELD_OUT_PAIRS,
    SHAPES,
    SPLITS,
    count_expressions,
    generate_image,
    mask_to_polygons,
    sample_scene,
    vocabulary_words,
    write_shapes,
)
from igvg_d2.data.synthetic.expressions import KINDS
from igvg_d2.data.synthetic.writers import INSTANCES_FILE, REFS_FILE
from tests.data.shapes_interpreter import Interpreter


class ShapesFiles:
    """A written data set, indexed for the tests."""

    def __init__(self, root, statistics):
        self.root, self.statistics = root, statistics
        self.refs = json.loads((root / REFS_FILE).read_text())
        instances = json.loads((root / INSTANCES_FILE).read_text())
        self.categories = {item["id"]: item["name"] for item in instances["categories"]}
        self.images = {item["id"]: item for item in instances["images"]}
        self.annotations = {image_id: [] for image_id in self.images}
        for annotation in instances["annotations"]:
            self.annotations[annotation["image_id"]].append(annotation)

    def pair(self, annotation):
        """(colour, shape) of an annotation."""
        return annotation["attributes"]["color"], self.categories[annotation["category_id"]]

    def targets(self, ref, sentence, flip_axis=None):
        """Annotation ids by the interpreter, optionally in the mirrored image."""
        image = self.images[ref["image_id"]]
        annotations = self.annotations[ref["image_id"]]
        if flip_axis is not None:
            axis = 0 if flip_axis == "horizontal" else 1
            annotations = [dict(item, bbox=list(item["bbox"])) for item in annotations]
            for box in (item["bbox"] for item in annotations):
                box[axis] = (image["width"], image["height"])[axis] - box[axis] - box[axis + 2]
        return Interpreter(sentence, annotations, self.categories, image).targets()


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """About 1,500 expressions."""
    root = tmp_path_factory.mktemp("shapes")
    return ShapesFiles(root, write_shapes(str(root), 0, scale=0.055))


def sentences_of(shapes):
    """(ref, sentence) pairs of all splits."""
    return [(ref, sentence) for ref in shapes.refs for sentence in ref["sentences"]]


def test_interpreter_finds_the_written_targets(shapes):
    pairs = sentences_of(shapes)
    assert len(pairs) > 1400
    for ref, sentence in pairs:
        expected = set(ref["ann_id"]) - {-1}
        assert shapes.targets(ref, sentence["sent"]) == expected, sentence["sent"]


@pytest.mark.parametrize("axis", ["horizontal", "vertical"])
def test_swapped_words_fit_the_flipped_image(shapes, axis):
    changed = 0
    for ref, sentence in sentences_of(shapes):
        swapped = swap_direction_words(sentence["sent"], axis)
        assert is_flippable(sentence["sent"], axis)
        assert shapes.targets(ref, swapped, axis) == set(ref["ann_id"]) - {-1}, swapped
        changed += swapped != sentence["sent"]
    assert changed > 100


def test_official_schema(shapes):
    sample_ids, annotation_ids = set(), {a["id"] for v in shapes.annotations.values() for a in v}
    assert len(annotation_ids) == sum(map(len, shapes.annotations.values()))
    assert len({ref["ref_id"] for ref in shapes.refs}) == len(shapes.refs)
    for ref, sentence in sentences_of(shapes):
        assert ref["no_target"] == (ref["ann_id"] == [-1]) == (ref["category_id"] == [-1])
        assert ref["no_target"] or set(ref["ann_id"]) <= annotation_ids
        assert len(ref["ann_id"]) == len(ref["category_id"]) == len(set(ref["ann_id"]))
        assert ref["file_name"] == f"COCO_train2014_{ref['image_id']:012d}.jpg"
        assert sentence["tokens"] == sentence["sent"].split()
        assert ref["sent_ids"] == [item["sent_id"] for item in ref["sentences"]]
        assert bool(sentence["no_target_kind"]) == ref["no_target"]
        sample_ids.add((ref["ref_id"], sentence["sent_id"]))
    assert len(sample_ids) == len(sentences_of(shapes))
    for image in list(shapes.images.values())[::40]:
        with Image.open(shapes.root / "images" / "train2014" / image["file_name"]) as opened:
            assert opened.size == (image["width"], image["height"]) and opened.mode == "RGB"


def test_annotated_polygons_give_box_and_area(shapes):
    for image_id, annotations in list(shapes.annotations.items())[::4]:
        size = shapes.images[image_id]["height"], shapes.images[image_id]["width"]
        total = np.zeros(size, dtype=int)
        for annotation in annotations:
            rle = mask_util.merge(mask_util.frPyObjects(annotation["segmentation"], *size))
            total += mask_util.decode(rle)
            assert mask_util.area(rle) == annotation["area"] >= 40
            assert mask_util.toBbox(rle).tolist() == annotation["bbox"]
            assert annotation["visible_fraction"] >= 0.5 and annotation["iscrowd"] == 0
        assert total.max() <= 1, "a pixel belongs to two objects"


def decode(polygons, shape):
    """Mask of polygons by pycocotools."""
    return mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, *shape))).astype(bool)


@pytest.mark.parametrize(
    "rows, pieces",
    [
        (["#"], 1),
        (["####", "####"], 1),
        (["#..", ".#.", "..#"], 3),  # pixels that touch at corners are pieces of their own
        (["###", "#.#", "###"], 2),  # the hole is cut open
        (["#####", "#.#.#", "#####"], 3),
        (["#####", "#...#", "#.#.#", "#...#", "#####"], 3),
        (["####", "#.##", "##.#", "####"], 2),  # two holes that touch at a corner
        ([".##.", "#..#", "#..#", ".##."], 4),
    ],
)
def test_polygons_of_drawn_masks(rows, pieces):
    mask = np.array([[character == "#" for character in row] for row in rows])
    polygons = mask_to_polygons(mask)
    assert len(polygons) == pieces
    assert (decode(polygons, mask.shape) == mask).all()


def test_polygons_are_exact_on_scenes_and_noise():
    rng = np.random.default_rng(0)
    masks = [rng.random((13, 17)) < density for density in (0.2, 0.5, 0.8) for _ in range(4)]
    for _ in range(10):
        masks.extend(sample_scene(rng).masks)
    for mask in masks:
        assert (decode(mask_to_polygons(mask), mask.shape) == mask).all()
    assert mask_to_polygons(np.zeros((4, 5), dtype=bool)) == []


def test_scenes_are_varied_and_visible():
    rng = np.random.default_rng(1)
    scenes = [sample_scene(rng) for _ in range(60)]
    assert {len(scene.objects) for scene in scenes} >= set(range(3, 9))
    assert len({(scene.height, scene.width) for scene in scenes}) == 9
    fractions = [value for scene in scenes for value in scene.visible_fractions]
    assert min(fractions) >= 0.5
    assert np.mean(np.array(fractions) < 0.95) > 0.1, "occlusion must not be rare"
    touching = sum(
        a.color == b.color and math.dist(a.center, b.center) < a.radius + b.radius
        for scene in scenes
        for number, a in enumerate(scene.objects)
        for b in scene.objects[:number]
    )
    assert touching > 20


def test_held_out_pairs_appear_in_testb_only(shapes):
    assert {color for color, _ in HELD_OUT_PAIRS} == set(COLORS)
    assert {shape for _, shape in HELD_OUT_PAIRS} == set(SHAPES)
    split_of = {ref["image_id"]: ref["split"] for ref in shapes.refs}
    counts = Counter()
    for image_id, annotations in shapes.annotations.items():
        for annotation in annotations:
            counts[split_of[image_id], shapes.pair(annotation) in HELD_OUT_PAIRS] += 1
    assert not any(counts[split, True] for split in ("train", "val", "testA"))
    assert counts["testB", True] > counts["testB", False]
    # Not even named: a pair that is only ever asked for in vain would give itself away.
    named = Counter()
    for ref, sentence in sentences_of(shapes):
        text = sentence["sent"].replace("crosses", "cross")
        named[ref["split"]] += any(f"{color} {shape}" in text for color, shape in HELD_OUT_PAIRS)
    assert not any(named[split] for split in ("train", "val", "testA"))
    expressions = shapes.statistics["splits"]["testB"]["expressions"]
    assert named["testB"] > 0.5 * expressions


def test_counts(shapes):
    splits = shapes.statistics["splits"]
    assert splits == count_expressions(shapes.refs)
    assert set(splits) == {split.name for split in SPLITS}
    for split in splits.values():
        assert 0.2 < split["cardinality"]["0"] / split["expressions"] < 0.38
        assert sum(split["cardinality"].values()) == split["expressions"]
    train, several = splits["train"], splits["testA"]["cardinality"]
    assert set(train["kind"]) == set(KINDS)
    assert set(train["no_target_kind"]) == {"absent", "swap", "false"}
    assert several["2"] + several["3+"] > 2 * several["1"]


def test_text_alone_does_not_give_no_target_away(shapes):
    """Naive Bayes on the words of one half of train ranks the other half no better than chance."""
    words = {word: index for index, word in enumerate(vocabulary_words())}
    refs = [ref for ref in shapes.refs if ref["split"] == "train"]
    labels = np.array([ref["no_target"] for ref in refs])
    bags = np.zeros((len(refs), len(words)))
    for bag, ref in zip(bags, refs):
        bag[[words[token] for token in ref["sentences"][0]["tokens"]]] = 1
    half = np.arange(len(refs)) % 2 == 0
    rates = [bags[half & (labels == label)].sum(axis=0) + 1 for label in (True, False)]
    scores = bags @ np.log(rates[0] / rates[0].sum() * rates[1].sum() / rates[1])
    positive, negative = scores[~half & labels], scores[~half & ~labels]
    auc = np.mean(positive[:, None] > negative) + 0.5 * np.mean(positive[:, None] == negative)
    assert abs(auc - 0.5) < 0.07
    kinds = {kind: [] for kind in KINDS}
    for ref, label in zip(refs, labels):
        kinds[ref["sentences"][0]["kind"]].append(label)
    for kind, values in kinds.items():
        assert 0.17 < np.mean(values) < 0.42, kind


def test_vocabulary(shapes):
    """Trained weights and ids depend on this list: it must not change silently."""
    words = vocabulary_words()
    used = {token for _, sentence in sentences_of(shapes) for token in sentence["tokens"]}
    assert used <= set(words) and len(used) > 100
    assert words == sorted(set(words)) and len(words) == 141
    digest = hashlib.sha256(" ".join(words).encode()).hexdigest()
    assert digest[:16] == "60472b8cd78c2621"


def test_output_of_this_version_is_pinned():
    """Trained weights and published numbers belong to this output; see GENERATOR_VERSION."""
    scene, image, expressions = generate_image(0, SPLITS[0], 0)
    assert GENERATOR_VERSION == 1 and image.shape == (128, 112, 3)
    assert [item.box for item in scene.objects][:2] == [(63, 67, 21, 21), (51, 51, 24, 24)]
    assert [(item.sentences[0], item.targets) for item in expressions] == [
        ("smallest purple square", (5,)),
        ("the gray shape farthest to the bottom", ()),
        ("each of the boxes that are blue", (0, 1, 2, 4, 7)),
        ("all of the squares", (0, 1, 2, 3, 4, 5, 6, 7)),
    ]


def folder_digests(root):
    """SHA-256 of every file of a folder."""
    paths = [path for path in sorted(root.rglob("*")) if path.is_file()]
    names = [path.relative_to(root).as_posix() for path in paths]
    return dict(zip(names, (hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)))


def test_same_seed_same_bytes_for_any_number_of_workers(tmp_path):
    calls = []
    for name, seed, workers in (("alone", 3, 0), ("pool", 3, 2), ("other", 4, 0)):
        write_shapes(
            str(tmp_path / name),
            seed,
            scale=0.001,
            num_workers=workers,
            progress=lambda done, total: calls.append((done, total)),
        )
    alone, pool, other = (folder_digests(tmp_path / name) for name in ("alone", "pool", "other"))
    assert alone == pool and len(alone) == 6 + 3 + 3
    assert alone.keys() == other.keys() and alone != other
    assert calls[:9] == [(done, 9) for done in range(1, 10)]
    statistics = json.loads((tmp_path / "alone" / "statistics.json").read_text())
    assert statistics["sha256"] == {name: alone[name] for name in (REFS_FILE, INSTANCES_FILE)}
