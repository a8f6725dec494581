#!/usr/bin/env python
"""Damage prediction files at random and score them: a clear error or a correct result follows.

    python dev/fuzz_predictions.py --count 2000 --seed 0

Every damaged file is scored by tools/score_predictions.py in this process. Allowed are a ValueError
that names the file or the sample, and a report; a report must equal that of an independent reading:
the damaged text parsed by Python's own json (which knows neither our reader nor our fields), its
masks decoded pixel by pixel in plain Python, gIoU and F1score computed from the definitions.
Anything else, other exceptions and other numbers, is a failure. Exit status 1 if there is one.
"""

import argparse
import copy
import importlib.util
import json
import math
import random
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
_SIZE = (12, 17)
_NAME = "fuzz_predictions"


def load_scorer():
    """tools/score_predictions.py as a module."""
    path = ROOT / "tools" / "score_predictions.py"
    spec = importlib.util.spec_from_file_location("score_predictions", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def encode(mask):
    """RLE with a list of runs, the form without a code to misread."""
    flat, runs, value = mask.flatten(order="F"), [], False
    position = 0
    while position < len(flat):
        end = position
        while end < len(flat) and flat[end] == value:
            end += 1
        runs.append(end - position)
        position, value = end, not value
    return {"size": list(mask.shape), "counts": runs}


def compress(runs):
    """COCO's compressed text of runs."""
    text = ""
    for i, run in enumerate(runs):
        value, more = run - runs[i - 2] if i > 2 else run, True
        while more:
            bits, value = value & 31, value >> 5
            more = value != -1 if bits & 16 else value != 0
            text += chr((bits | 32 if more else bits) + 48)
    return text


def decompress(text):
    """Runs of COCO's compressed text."""
    runs, value, shift = [], 0, 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value, shift = 0, 0
    return runs


def box_mask(box):
    """bool mask filled with an XYXY box."""
    mask = np.zeros(_SIZE, bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def make_case():
    """Data set dicts with 0, 1 and 2 targets and good predictions for them."""
    boxes = {1: [], 2: [[1, 2, 7, 9]], 3: [[1, 2, 7, 9], [9, 3, 16, 11]]}
    samples, predictions = [], []
    for ref_id, targets in boxes.items():
        annotations = [
            {
                "bbox": list(box),
                "bbox_mode": 0,
                "category_id": 0,
                "iscrowd": 0,
                "segmentation": {
                    "size": list(_SIZE),
                    "counts": compress(encode(box_mask(box))["counts"]),
                },
            }
            for box in targets
        ]
        samples.append(
            dict(
                sample_id=f"{ref_id}_0", ref_id=ref_id, sent_id=0, image_id=ref_id,
                height=_SIZE[0], width=_SIZE[1], expression="x", file_name="x.jpg",
                annotations=annotations,
            )  # fmt: skip
        )
        union = np.zeros(_SIZE, bool)
        for box in targets:
            union |= box_mask(box)
        union[0, :3] = bool(targets)
        rle = encode(union)
        if ref_id == 3:
            rle["counts"] = compress(rle["counts"])
        found = [[b[0], b[1], b[2] + 0.25, b[3]] for b in targets] or [[2, 2, 5, 5]]
        predictions.append(
            {
                "ref_id": ref_id,
                "sent_id": 0,
                "mask": rle,
                "no_target": not targets,
                "no_target_score": 0.125 if targets else 0.75,
                "boxes": found,
                "scores": [0.875] * len(targets) or [0.25],
                "masks": [encode(box_mask(b)) for b in (targets or [[2, 2, 5, 5]])],
            }
        )
    return samples, predictions


_VALUES = (
    *(None, True, -1, 0, 1, 2.5, 1e400, float("nan"), 10**30, "", "x", [], {}, [[]], [None]),
    # Boxes that match everything, runs that wrap around, text that no file or terminal can take.
    *(1e19, [[-1e20, -1e20, 1e20, 1e20]], [[0, 0, 1e300, 5]], [1e19], [[-1e20, 1e20]], 10**400),
    *({"size": list(_SIZE), "counts": [2**64, 204 - 2**64]}, [2**63] * 2 + [204], "o" * 20 + "0"),
    *({"size": [10**9, 10**9], "counts": [10**18]}, {"size": [2**32, 2**32], "counts": [0]}),
    *("\ud800", "\x1b[2J\rgIoU 99", "x" * 400, 1e-300, -0.0, {"x": {"x": []}}),
)


def damage_content(predictions, rng):
    """Change one value, key or record of the parsed predictions."""
    predictions = copy.deepcopy(predictions)
    target, path = predictions, []
    while isinstance(target, (list, dict)) and target and (not path or rng.random() < 0.75):
        key = rng.choice(list(target) if isinstance(target, dict) else range(len(target)))
        path.append((target, key))
        target = target[key]
    parent, key = path[-1]
    kind = rng.randrange(4)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[key]))
    elif kind == 1:
        name = list(key)
        name[rng.randrange(len(name))] = rng.choice("abcdefghijklmnopqrstuvwxyz_0")
        parent["".join(name)] = parent.pop(key)
    elif kind == 2 and isinstance(parent[key], (int, float)):
        parent[key] += rng.choice([-1, 1, 0.5, -1000, 7])
    else:
        parent[key] = rng.choice(_VALUES)
    return predictions


def damage_text(text, rng):
    """Replace, cut out, repeat or cut off a piece."""
    start = rng.randrange(len(text))
    end = min(len(text), start + rng.choice([1, 1, 2, 30]))
    kind = rng.randrange(6)
    if kind == 5:
        # A second value under a key, digits and brackets without end.
        pieces = (
            '"no_target": true, ',
            '"scores": [], ',
            "9" * 5000,
            "[" * 5000,
            "\ud800",
            "\ufeff",
        )
        place = rng.choice([start, *(i + 1 for i, c in enumerate(text) if c == "{")])
        return text[:place] + rng.choice(pieces) + text[place:]
    if kind == 0:
        return text[:start] + chr(rng.randrange(32, 127)) + text[start + 1 :]
    if kind == 1:
        return text[:start] + chr(rng.choice([0, 10, 233, 0x4E2D])) + text[start + 1 :]
    if kind == 2:
        return text[:start] + text[end:]
    return text[:end] + text[start:] if kind == 3 else text[:start]


def expected_numbers(text, lines, samples):
    """gIoU and F1score by the definitions, from the text alone."""
    values = [json.loads(x) for x in text.split("\n") if x.strip()] if lines else json.loads(text)
    answers = {p.get("sample_id", f"{p.get('ref_id')}_{p.get('sent_id')}"): p for p in values}
    ious, correct = [], []
    for sample in samples:
        prediction = answers[sample["sample_id"]]
        masks = [decode(a["segmentation"]) for a in sample["annotations"]]
        pred = decode(prediction["mask"])
        flag = prediction.get("no_target", not pred.any())
        kept = [
            box
            for box, score in zip(prediction.get("boxes", []), prediction.get("scores", []))
            if score >= 0.7
        ]
        if not masks:
            ious.append(float(flag))
            correct.append(not kept)
            continue
        union = np.any(masks, axis=0)
        ious.append(0.0 if flag else (pred & union).sum() / (pred | union).sum())
        gt = [a["bbox"] for a in sample["annotations"]]
        correct.append(len(kept) == len(gt) == count_matches(kept, gt))
    return 100 * float(np.mean(ious)), 100 * float(np.mean(correct))


def decode(rle):
    """bool mask of an RLE in either form."""
    counts = rle["counts"]
    runs = decompress(counts) if isinstance(counts, str) else counts
    flat = [i % 2 == 1 for i, run in enumerate(runs) for _ in range(run)]
    return np.array(flat).reshape(rle["size"], order="F")


def count_matches(boxes, gt):
    """Greedy matches by generalized IoU >= 0.5."""
    pairs = sorted(((giou(b, g), i, j) for i, b in enumerate(boxes) for j, g in enumerate(gt)))
    rows, columns = set(), set()
    for overlap, i, j in reversed(pairs):
        if overlap >= 0.5 and i not in rows and j not in columns:
            rows.add(i)
            columns.add(j)
    return len(rows)


def giou(a, b):
    """Generalized IoU of two XYXY boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(width, 0) * max(height, 0)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return (inter / areas if areas else 0.0) - ((hull - areas) / hull if hull else 0.0)


def fuzz(count, seed, folder, progress=lambda items: items):
    """Score `count` damaged files.

    Args:
        count, seed: how many, and of which random sequence.
        folder: for the files; a failing one stays there.
        progress: wraps the loop.

    Returns:
        Counter of outcomes "refused" and "scored", and a list of failures (text).
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    scorer = load_scorer()
    # A bar per file would hide the one of this script.
    scorer.tqdm = lambda items, **_: items
    samples, predictions = make_case()
    rng, outcomes, failures = random.Random(seed), Counter(), []
    DatasetCatalog.register(_NAME, lambda: samples)
    MetadataCatalog.get(_NAME).set(evaluator_type="grefcoco")
    try:
        for i in progress(range(count)):
            lines = bool(rng.randrange(2))
            content = damage_content(predictions, rng) if rng.random() < 0.5 else predictions
            parts = [json.dumps(item) for item in content]
            text = "\n".join(parts) if lines else f"[{', '.join(parts)}]"
            if content is predictions and text:
                text = damage_text(text, rng)
            path = Path(folder) / "predictions.json"
            path.write_text(text, encoding="utf-8", errors="surrogatepass")
            outcome = judge(scorer, str(path), text, lines, samples)
            outcomes[outcome.split(":")[0]] += 1
            if outcome not in ("refused", "scored"):
                failures.append(f"{i}: {outcome}")
                path.rename(path.with_name(f"failure_{i}.json"))
    finally:
        DatasetCatalog.remove(_NAME)
        MetadataCatalog.remove(_NAME)
    return outcomes, failures


def judge(scorer, path, text, lines, samples):
    """ "refused", "scored", or what is wrong with the outcome."""
    try:
        report = scorer.score(_NAME, path, protocols="native,official,released")
    except ValueError as error:
        named = path in str(error) or "sample '" in str(error)
        return "refused" if named else f"unnamed: {error}"
    except Exception:  # noqa: B902  any other exception is what this script looks for
        return f"traceback: {traceback.format_exc()}"
    results = report["protocols"]["native"]["results"]
    try:
        giou_mean, f1 = expected_numbers(text, lines, samples)
    except Exception:  # noqa: B902  what cannot be read independently must not have been scored
        return f"scored what plain json cannot read: {traceback.format_exc()}"
    if not math.isclose(results["gres"]["gIoU"], giou_mean, abs_tol=1e-9):
        return f"wrong: gIoU {results['gres']['gIoU']}, expected {giou_mean}"
    if "grec" in results and not math.isclose(results["grec"]["F1score"], f1, abs_tol=1e-9):
        return f"wrong: F1score {results['grec']['F1score']}, expected {f1}"
    return "scored"


def main():
    """Print the outcomes."""
    from tqdm import tqdm

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="fuzz_predictions_")
    outcomes, failures = fuzz(args.count, args.seed, folder, tqdm)
    print(f"{args.count} damaged files, seed {args.seed}: {dict(outcomes)}")
    if failures:
        print(f"{len(failures)} failures, files in {folder}:\n" + "\n".join(failures[:20]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
