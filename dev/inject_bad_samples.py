#!/usr/bin/env python
"""Damage 200 of 2,000 training samples and see that a training run names each of them.

    python dev/inject_bad_samples.py --samples 2000 --bad 200 --seed 0

Needs the Shapes data (make data). Every sample gets an image and annotations of its own; --bad of
them are damaged in turn by these kinds:

{kinds}

A small model then trains for one epoch with DATALOADER.SKIP_BAD_SAMPLES, in one process without
workers and in two processes with one worker each: bad_samples.jsonl must name exactly the damaged
samples with their files and with what is wrong. Without the option the run must stop at the
first one it meets and name it. Exit status 1 if not. Records that a reader refuses are another
matter, see DATASETS.SKIP_INVALID and fuzz_annotations.py.
"""

import argparse
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
import numpy as np
from PIL import Image

from igvg_d2.data.sampling import VisitSampler
from igvg_d2.data.synthetic.writers import IMAGE_FOLDER, INSTANCES_FILE, REFS_FILE
from igvg_d2.io.image import read_image

ROOT = Path(__file__).resolve().parents[1]
_BATCH = 32
_SEED = 0
# Data and what becomes of them are looked at here, not the model.
_OPTIONS = (
    f"SOLVER.IMS_PER_BATCH {_BATCH} SEED {_SEED} DATASETS.TEST () TEST.VIS_SAMPLES 0 "
    "INPUT.IMAGE_SIZE (64,64) MODEL.BEIT3.DEPTH 1 MODEL.WEIGHTS '' "
    "MODEL.BEIT3.PRETRAIN_IMAGE_SIZE (64,64)"
).split()


def _truncate(path, image, target):
    """a JPEG cut in half"""
    os.truncate(path, path.stat().st_size // 2)


def _empty(path, image, target):
    """an empty file"""
    os.truncate(path, 0)


def _text(path, image, target):
    """text under the name of an image"""
    path.write_text("<html>404: not found</html>")


def _remove(path, image, target):
    """an annotation without its image"""
    path.unlink()


def _other_size(path, image, target):
    """an image of another size than its annotation says"""
    image["height"] += 1


def _nan_pixel(path, image, target):
    """a float image with a pixel that is not a number"""
    pixels = read_image(str(path), "RGB").mean(axis=2, dtype=np.float32)
    pixels[0, 0] = np.nan
    path.unlink()
    image["file_name"] = f"{path.stem}.tiff"
    Image.fromarray(pixels).save(path.with_suffix(".tiff"))


def _zero_area(path, image, target):
    """a box without width"""
    target["bbox"][2] = 0


def _outside(path, image, target):
    """a box beside the image"""
    target["bbox"][0] = image["width"] + 5


def _empty_mask(path, image, target):
    """a mask without pixels"""
    size = [image["height"], image["width"]]
    target["segmentation"] = {"size": size, "counts": [size[0] * size[1]]}


# How to damage a sample, and what the message must say of it.
KINDS = {
    _truncate: "cannot decode",
    _empty: "cannot decode",
    _text: "cannot decode",
    _remove: "no image file",
    _other_size: "height, width",
    _nan_pixel: "no range is known",
    _zero_area: "no area",
    _outside: "no area",
    _empty_mask: "no pixels",
}
_OF_TARGETS = {_zero_area, _outside, _empty_mask}


def copy_samples(source, target, count, rng):
    """Write ``count`` training samples that share neither images nor annotations.

    Args:
        source, target: folders of a data set, ``target`` new.
        count: number of samples; sampled without replacement.
        rng: ``random.Random``.

    Returns:
        The content of the two annotation files, which :func:`write` has yet to write.
    """
    refs = json.loads((source / REFS_FILE).read_text())
    instances = json.loads((source / INSTANCES_FILE).read_text())
    pairs = [(r, s) for r in refs if r["split"] == "train" for s in r["sentences"]]
    if len(pairs) < count:
        sys.exit(f"{source} has {len(pairs)} training samples, --samples asks for {count}")
    images = {image["id"]: image for image in instances["images"]}
    objects = {}
    for item in instances["annotations"]:
        objects.setdefault(item["image_id"], []).append(item)
    (target / IMAGE_FOLDER).mkdir(parents=True)
    new_refs, new = [], {**instances, "images": [], "annotations": []}
    for number, (ref, sentence) in enumerate(rng.sample(pairs, count), start=1):
        image, name = images[ref["image_id"]], f"{number:06d}.jpg"
        shutil.copy(source / IMAGE_FOLDER / image["file_name"], target / IMAGE_FOLDER / name)
        new["images"].append({**image, "id": number, "file_name": name})
        ids = {-1: -1}
        for item in objects[image["id"]]:
            ids[item["id"]] = len(new["annotations"]) + 1
            own = {"id": ids[item["id"]], "image_id": number, "bbox": list(item["bbox"])}
            new["annotations"].append({**item, **own})
        own = {"ref_id": number, "image_id": number, "sentences": [{**sentence, "sent_id": 1}]}
        new_refs.append({**ref, **own, "ann_id": [ids[i] for i in ref["ann_id"]]})
    return new_refs, new


def damage(refs, instances, folder, count, rng):
    """Damage ``count`` samples in place, the kinds of :data:`KINDS` in turn.

    Returns:
        sample id -> (kind, file name).
    """
    images = {image["id"]: image for image in instances["images"]}
    objects = {item["id"]: item for item in instances["annotations"]}
    free = rng.sample(refs, len(refs))
    damaged = {}
    for number in range(count):
        kind = list(KINDS)[number % len(KINDS)]
        has_target = [i for i, ref in enumerate(free) if -1 not in ref["ann_id"]]
        ref = free.pop(has_target[0] if kind in _OF_TARGETS else 0)
        image, ann_id = images[ref["image_id"]], ref["ann_id"][-1]
        kind(folder / IMAGE_FOLDER / image["file_name"], image, objects.get(ann_id))
        name = str(folder / IMAGE_FOLDER / image["file_name"])
        damaged[f"{ref['ref_id']}_{ref['sentences'][0]['sent_id']}"] = (kind, name)
    return damaged


def write(refs, instances, folder):
    """Write the two annotation files."""
    (folder / REFS_FILE).parent.mkdir(parents=True)
    (folder / REFS_FILE).write_text(json.dumps(refs))
    (folder / INSTANCES_FILE).write_text(json.dumps(instances))


def train(root, output, samples, processes, workers, skip):
    """One epoch; returns exit status, console output and seconds."""
    command = [
        sys.executable, str(ROOT / "train_net.py"), "--num-gpus", str(processes),
        "--config-file", str(ROOT / "configs/Shapes/igvg_tiny.yaml"), *_OPTIONS,
        "OUTPUT_DIR", str(output), "SOLVER.MAX_ITER", str(math.ceil(samples / _BATCH)),
        "DATALOADER.NUM_WORKERS", str(workers), "DATALOADER.SKIP_BAD_SAMPLES", str(skip),
    ]  # fmt: skip
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": str(root)}
    start = time.monotonic()
    run = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    (output.parent / f"{output.name}.log").write_text(run.stdout + run.stderr)
    return run.returncode, run.stdout + run.stderr, time.monotonic() - start


def compare(reports, damaged):
    """What ``bad_samples.jsonl`` gets wrong.

    Args:
        reports: its lines, as dicts.
        damaged: as :func:`damage` returns it.

    Returns:
        name of the mistake -> sample ids.
    """
    ids = [report["sample_id"] for report in reports]
    known = {i: report for i, report in zip(ids, reports) if i in damaged}
    return {
        "missing": sorted(set(damaged) - set(ids)),
        "false alarms": [i for i in ids if i not in damaged],
        "named twice": sorted({i for i in ids if ids.count(i) > 1}),
        "wrong file": [i for i, r in known.items() if r["file_name"] != damaged[i][1]],
        "wrong reason": [i for i, r in known.items() if KINDS[damaged[i][0]] not in r["reason"]],
    }


def check_skipping(root, name, damaged, samples, processes, workers):
    """Train with the option; returns whether all went well."""
    status, _, seconds = train(root, root / name, samples, processes, workers, True)
    path = root / name / "bad_samples.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    reports = [json.loads(line) for line in lines]
    mistakes = {**compare(reports, damaged), "exit status": [status] if status else []}
    counts = ", ".join(f"{len(items)} {mistake}" for mistake, items in mistakes.items())
    print(f"skip, {processes} processes, {workers} workers: {len(reports)} named, {counts}")
    print(f"    {seconds:.0f} s; log: {root / name}.log", flush=True)
    for kind in KINDS:
        own = {i for i, (its_kind, _) in damaged.items() if its_kind is kind}
        named = own & {report["sample_id"] for report in reports}
        print(f"    {kind.__doc__:<55}{len(named):>4} of {len(own)}")
    return not any(mistakes.values())


def check_stop(root, name, damaged, samples, processes, workers):
    """Train without the option; returns whether it stopped at the first bad sample."""
    order = [f"{index + 1}_1" for _, index in zip(range(samples), _visits(samples))]
    # Without workers nothing runs ahead; each process meets the first of its own share.
    firsts = [next(i for i in order[rank::processes] if i in damaged) for rank in range(processes)]
    status, log, seconds = train(root, root / name, samples, processes, workers, False)
    named = [i for i in firsts if f"sample {i} ('{damaged[i][1]}')" in log]
    passed = status not in (0, None) and bool(named)
    print(
        f"stop, {processes} processes, {workers} workers: exit status {status} after "
        f"{seconds:.0f} s, names sample {', '.join(named) or 'NONE'} (first: {firsts})",
        flush=True,
    )
    return passed


def _visits(samples):
    """Indices of the samples in the order in which they are trained on."""
    return (index for _, index in VisitSampler(samples, _SEED))


def main():
    """Exit status: 0 if all checks pass."""
    kinds = "\n".join(f"* {kind.__doc__}" for kind in KINDS)
    parser = argparse.ArgumentParser(
        description=__doc__.format(kinds=kinds),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shapes", type=Path, default=ROOT / "datasets" / "shapes")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--bad", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    root, rng = Path(tempfile.mkdtemp(prefix="bad_samples_")), random.Random(args.seed)
    refs, instances = copy_samples(args.shapes, root / "shapes", args.samples, rng)
    damaged = damage(refs, instances, root / "shapes", args.bad, rng)
    write(refs, instances, root / "shapes")
    print(f"{len(damaged)} of {len(refs)} samples damaged in {root / 'shapes'}", flush=True)
    passed = True
    for processes, workers in ((1, 0), (2, 1)):
        for check in (check_skipping, check_stop):
            name = f"{check.__name__}_{processes}"
            passed &= check(root, name, damaged, len(refs), processes, workers)
    print("passed" if passed else "FAILED")
    return not passed


if __name__ == "__main__":
    sys.exit(main())
