#!/usr/bin/env python
"""Damage annotation files at random and see what the readers make of them.

    python dev/fuzz_annotations.py --count 2000 --seed 0

Every case takes a small file of one format, changes it (bytes flipped, cut, inserted, repeated; or
its values: a field removed, renamed, or replaced by something of another kind), and loads it.
It must end in a clear error (ValueError that names the file) or load; what loads is compared with
the undamaged samples, and a sample that differs must be backed by the damaged file: its text,
image and targets stand in the file as read by Python's own json or pickle. Exit status 1 if not.
"""

import argparse
import collections
import copy
import json
import os
import pickle
import random
import sys
import tempfile
import time
from functools import partial

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
from tqdm import tqdm

from igvg_d2.data.datasets import fingerprint, load_expressions, load_referring, load_seqtr

load_refcoco = partial(load_referring, target_rule="refcoco")
load_refzom = partial(load_referring, target_rule="refzom")
load_rrefcoco = partial(load_referring, target_rule="rrefcoco")

HEIGHT, WIDTH = 30, 40
SQUARE = [[2.0, 3.0, 12.0, 3.0, 12.0, 9.0, 2.0, 9.0]]
RLE = {"size": [HEIGHT, WIDTH], "counts": [100, 50, HEIGHT * WIDTH - 150]}
# What a value may turn into.
ODD_VALUES = [
    *(None, True, -1, 0, 1.5, 10**30, float("nan"), float("inf"), "", "x", "1", [], [[]], [None]),
    *({}, {"id": 1}, [1, 2, 3], [-1], [1, -1], [float("nan")] * 6, {"size": [1, 1], "counts": "~"}),
    # Texts that no tokenizer takes, numbers that overflow, an object twice, an outline without end.
    *("?!", "\u200b", "the \ud800", "a\0b", 10**400, -(10**4000), 1e19, 65536, [1, 1], [5, 5]),
    *([1e19, 0, 1, 1], [0, 10**400, 1, 1], {"size": [10**30, 1], "counts": [10**30]}),
    *([[float(i % 2 * WIDTH), float(i)] * 30 for i in range(3)], [[-30.0, 0.0, 60.0, 9.0] * 999]),
    {"size": [HEIGHT, WIDTH], "counts": [2**64, HEIGHT * WIDTH - 2**64]},
    # Names that lead elsewhere, text that acts on a terminal, boxes without bound.
    *(
        "\x1b[2J\r",
        "x" * 400,
        "../../1.jpg",
        "/dev/zero",
        "a\\b",
        [-1e20, -1e20, 2e20, 2e20],
        2**63,
    ),
    *({"size": [HEIGHT, WIDTH], "counts": "o" * 20 + "0"}, {"size": [2**32, 2**32], "counts": [0]}),
]


def instances():
    """A COCO file with polygons and a crowd."""
    image = {"height": HEIGHT, "width": WIDTH}
    images = [{"id": i, "file_name": f"{i}.jpg", **image} for i in (1, 2)]
    annotations = [
        {"id": i, "image_id": 1 + i % 2, "category_id": 1, "bbox": [2.0, 3.0, 10.0, 6.0]}
        | {"iscrowd": int(i == 4), "segmentation": RLE if i == 4 else SQUARE}
        for i in range(1, 7)
    ]
    categories = [{"id": 1, "name": "thing"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def refs(kind):
    """Records of one of the refer formats."""
    records = []
    for i in range(1, 7):
        sentences = [
            {"sent_id": 2 * i + k, "raw": f"The {i}", "sent": f"the {i}", "tokens": ["the", str(i)]}
            for k in range(2)
        ]
        record = {"ref_id": i, "ann_id": i, "image_id": 1 + i % 2, "split": "val"}
        record.update(category_id=1, file_name=f"{i}_0.jpg", sentences=sentences)
        if kind == "grefcoco":
            targets = [[i], [-1], [i, 1 + (i + 1) % 6]][i % 3]
            record["ann_id"] = targets if len(targets) < 2 else [i]
        elif kind == "refzom":
            record["source"] = "zero" if i % 3 == 0 else "one"
        elif kind == "rrefcoco":
            sentences[1]["exist"] = False
        records.append(record)
    return records


def seqtr():
    """The released project's JSON, all three kinds of samples."""
    base = {"image_id": 1, "height": HEIGHT, "width": WIDTH}
    target = {"bbox": [2.0, 3.0, 10.0, 6.0], "segmentation": SQUARE, "id": 1, "iscrowd": 0}
    empty = {"bbox": None, "iscrowd": None, "empty": True}
    words = {"raw": "The dog", "ref_id": 1}
    samples = [
        {**base, "bbox": [2.0, 3.0, 10.0, 6.0], "mask": RLE, "expressions": ["one", "two"]},
        {**base, "annotations": [target], "expressions": {**words, "sent_id": 1}},
        {**base, "annotations": [empty], "expressions": {**words, "sent_id": 2}},
        [{**base, "annotations": [target], "expressions": {**words, "sent_id": 3}}],
    ]
    return {"val": samples}


def expressions():
    """The project's own format."""
    items = [
        {"id": i, "image_id": 1 + i % 2, "text": f"the {i}", "annotation_ids": [i] if i % 3 else []}
        for i in range(1, 7)
    ]
    return {**instances(), "expressions": items}


def formats():
    """name -> (reader of a folder, {file: content}); the suffix .p stands for a pickle."""

    def official(load, name):
        return lambda folder: load(
            os.path.join(folder, name), os.path.join(folder, "instances.json"), "images", "val"
        )

    found = {}
    for kind, load, suffix in (
        *(("grefcoco", load_referring, "json"), ("grefcoco", load_referring, "p")),
        *(("refcoco", load_refcoco, "p"), ("refcoco", load_refcoco, "json")),
        *(("refzom", load_refzom, "p"), ("rrefcoco", load_rrefcoco, "p")),
    ):
        name = f"refs(unc).{suffix}"
        files = {name: refs(kind), "instances.json": instances()}
        found[f"{kind} {suffix}"] = (official(load, name), files)
    read_seqtr = lambda folder: load_seqtr(os.path.join(folder, "seqtr.json"), "images", "val")
    found["seqtr"] = (read_seqtr, {"seqtr.json": seqtr()})
    read_own = lambda folder: load_expressions(os.path.join(folder, "own.json"), "images")
    found["expressions"] = (read_own, {"own.json": expressions()})
    return found


def encode(name, content, rng):
    """File content; pickles of a random protocol."""
    if name.endswith(".p"):
        return pickle.dumps(content, rng.randrange(pickle.HIGHEST_PROTOCOL + 1))
    return json.dumps(content).encode()


def damage_bytes(data, rng):
    """Flip, cut, insert, delete or repeat."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 3, 10))):
        position = rng.randrange(len(data)) if data else 0
        how = rng.choice(("flip", "set", "cut", "insert", "delete", "repeat"))
        if how == "flip" and data:
            data[position] ^= 1 << rng.randrange(8)
        elif how == "set" and data:
            data[position] = rng.randrange(256)
        elif how == "cut":
            del data[position:]
        elif how == "insert":
            data[position:position] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 5)))
        elif how == "delete":
            del data[position : position + rng.randrange(1, 20)]
        elif how == "repeat":
            data[position:position] = data[position : position + rng.randrange(1, 200)]
    return bytes(data)


def places(value, path=()):
    """(container, key) of every value below a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items if isinstance(value, (dict, list)) else ():
        yield value, key
        if isinstance(item, (dict, list)):
            yield from places(item)


def damage_values(content, rng):
    """Change one value somewhere in the content."""
    content = copy.deepcopy(content)
    container, key = rng.choice(list(places(content)))
    how = rng.choice(("replace", "replace", "remove", "rename", "swap", "repeat"))
    if how == "remove":
        del container[key]
    elif how == "rename" and isinstance(container, dict):
        container[f"{key}x"] = container.pop(key)
    elif how == "repeat" and isinstance(container, list):
        container.insert(key, copy.deepcopy(container[key]))
    elif how == "swap":
        other, other_key = rng.choice(list(places(content)))
        container[key] = copy.deepcopy(other[other_key])
    else:
        container[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    return content


def is_backed(samples, folder):
    """Whether texts and targets of the samples stand in the files, read by other means.

    And whether they are what they must be: text that UTF-8 can hold, targets once, boxes in reach.
    """
    words, ids = set(), set()
    for name in os.listdir(folder):
        with open(os.path.join(folder, name), "rb") as file:
            data = file.read()
        # Loading has succeeded, so that the pickle is known to be plain.
        content = pickle.loads(data, encoding="latin1") if name.endswith(".p") else json.loads(data)
        for container, key in places([content]):
            value = container[key]
            if isinstance(value, str):
                words.add(value)
            elif isinstance(value, int) and not isinstance(value, bool):
                ids.add(value)
    for sample in samples:
        if sample["expression"] not in words or sample["image_id"] not in ids:
            return False
        texts = [str(sample[key]) for key in ("expression", "sample_id", "file_name")]
        if any(text.encode("utf-8", "ignore").decode() != text or "\0" in text for text in texts):
            return False
        if not any(map(str.isalnum, sample["expression"])):
            return False
        if len({item["id"] for item in sample["annotations"]}) < len(sample["annotations"]):
            return False
        if not all(abs(v) <= 1e6 for item in sample["annotations"] for v in item["bbox"]):
            return False
        for item in sample["annotations"]:
            if item["id"] not in ids and item["id"] >= 0:
                return False
            # A target may have a box only.
            size = [sample["height"], sample["width"]]
            if "segmentation" in item and list(item["segmentation"]["size"]) != size:
                return False
    return True


def run_case(read, files, rng, clean):
    """(verdict, what happened) of one damaged set of files; "wrong" is a failure."""
    with tempfile.TemporaryDirectory() as folder:
        victim = rng.choice(sorted(files))
        for name, content in files.items():
            if name == victim and rng.random() < 0.6:
                content = damage_values(content, rng)
                data = encode(name, content, rng)
            else:
                data = encode(name, content, rng)
                data = damage_bytes(data, rng) if name == victim else data
            with open(os.path.join(folder, name), "wb") as file:
                file.write(data)
        try:
            samples = read(folder)
        except ValueError as error:
            is_clear = type(error) is ValueError and folder in str(error)
            return ("error" if is_clear else "wrong"), repr(error)
        except Exception as error:  # the very thing this script looks for
            return "wrong", repr(error)
        if fingerprint(samples) == clean:
            return "unchanged", ""
        return ("changed" if is_backed(samples, folder) else "wrong"), f"{len(samples)} samples"


def fuzz(count, seed, progress=lambda items: items):
    """Runs the cases.

    Returns:
        Counter of verdicts, descriptions of the failures.
    """
    known = {}
    for name, (read, files) in formats().items():
        with tempfile.TemporaryDirectory() as folder:
            for file_name, content in files.items():
                with open(os.path.join(folder, file_name), "wb") as file:
                    file.write(encode(file_name, content, random.Random(0)))
            known[name] = (read, files, fingerprint(read(folder)))
    verdicts, failures = collections.Counter(), []
    for number in progress(range(count)):
        rng = random.Random(f"{seed} {number}")
        name = sorted(known)[number % len(known)]
        verdict, what = run_case(*known[name][:2], rng, known[name][2])
        verdicts[verdict] += 1
        if verdict == "wrong":
            failures.append(f"case {number} ({name}): {what}")
    return verdicts, failures


def main(args=None) -> int:
    """Fuzz and print the verdicts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(args)
    start = time.perf_counter()
    verdicts, failures = fuzz(args.count, args.seed, tqdm)
    print(f"{args.count} cases in {time.perf_counter() - start:.0f} s: {dict(verdicts)}")
    for failure in failures:
        print(failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
