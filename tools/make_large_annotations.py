#!/usr/bin/env python
"""Write made-up annotations as large as gRefCOCO's, to measure what loading them costs.

    python tools/make_large_annotations.py --output /tmp/large
    python tools/make_large_annotations.py --output /tmp/large --measure [--workers 4]

The files are in gRefCOCO's official format (grefcoco/grefs(unc).json and instances.json), all in
split "train"; there are no images. By default 259,859 expressions (of which 14 % name nothing,
31 % several objects) about the 196,771 objects of 19,994 images, outlined like COCO's by 10 to 60
points. The same seed gives the same bytes. --measure then loads them (if there already, without
writing) and prints time, peak memory and what each worker process of a data loader adds.
"""

import argparse
import json
import multiprocessing
import os
import resource
import sys
import time

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm

from igvg_d2.data import build_grounding_train_loader
from igvg_d2.data.datasets import load_referring, register_grounding
from igvg_d2.engine import setup_config

HEIGHT, WIDTH = 480, 640
WORDS = "left right big small red blue man woman dog car chair two all the of behind near".split()
# Share of expressions with no, one and two targets; the rest has three.
NO_TARGET, ONE, TWO = 0.14, 0.55, 0.28
SENTENCES_PER_REF = 3
NAME = "large_annotations"


def parse_args(argv=None):
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True, help="folder; grefcoco/ is made in it")
    parser.add_argument("--expressions", type=int, default=259859)
    parser.add_argument("--objects", type=int, default=196771)
    parser.add_argument("--images", type=int, default=19994)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure", action="store_true", help="load them and print the cost")
    parser.add_argument("--workers", type=int, default=2, help="loader processes to measure")
    return parser.parse_args(argv)


def make_instances(images, objects, rng):
    """Content of instances.json; objects are spread evenly over the images."""
    entries = [
        {"id": i, "file_name": f"COCO_train2014_{i:012d}.jpg", "height": HEIGHT, "width": WIDTH}
        for i in range(1, images + 1)
    ]
    annotations = []
    for number in tqdm(range(objects), desc="objects", leave=False):
        points = rng.integers(10, 61)
        angles = np.sort(rng.uniform(0.0, 2.0 * np.pi, points))
        radii = rng.uniform(10.0, 90.0) * rng.uniform(0.6, 1.0, points)
        center = rng.uniform((90.0, 90.0), (WIDTH - 90.0, HEIGHT - 90.0))
        outline = center + radii[:, None] * np.stack((np.cos(angles), np.sin(angles)), axis=1)
        outline = outline.round(2)
        low, high = outline.min(axis=0), outline.max(axis=0)
        annotations.append(
            {
                "id": number + 1,
                "image_id": number % images + 1,
                "category_id": 1 + number % 80,
                "bbox": [*low.tolist(), *(high - low).round(2).tolist()],
                "area": round(float(np.prod(high - low)) / 2.0, 2),
                "iscrowd": 0,
                "segmentation": [outline.ravel().tolist()],
            }
        )
    categories = [{"id": i, "name": f"thing {i}"} for i in range(1, 81)]
    return {"images": entries, "annotations": annotations, "categories": categories}


def make_refs(expressions, images, objects, rng):
    """Content of grefs(unc).json."""
    refs, sent_id = [], 0
    bounds = np.cumsum((NO_TARGET, ONE, TWO))
    with tqdm(total=expressions, desc="expressions", leave=False) as bar:
        while sent_id < expressions:
            image = int(rng.integers(0, images))
            here = range(image, objects, images)  # objects of this image, see make_instances
            number = min(int(np.searchsorted(bounds, rng.uniform())), len(here))
            targets = sorted(int(here[k]) + 1 for k in rng.permutation(len(here))[:number])
            sentences = []
            for _ in range(min(SENTENCES_PER_REF, expressions - sent_id)):
                tokens = [WORDS[k] for k in rng.integers(0, len(WORDS), rng.integers(2, 8))]
                text = " ".join(tokens)
                sentences.append({"sent_id": sent_id, "raw": text, "sent": text, "tokens": tokens})
                sent_id += 1
            refs.append(
                {
                    "ref_id": len(refs),
                    "ann_id": targets or [-1],
                    "category_id": [1 + (i - 1) % 80 for i in targets] or [-1],
                    "image_id": image + 1,
                    "split": "train",
                    "file_name": f"COCO_train2014_{image + 1:012d}_{len(refs)}.jpg",
                    "sent_ids": [sentence["sent_id"] for sentence in sentences],
                    "sentences": sentences,
                    "no_target": not targets,
                }
            )
            bar.update(len(sentences))
    return refs


def write_annotations(output, expressions, objects, images, seed):
    """Writes both files; returns their paths as {"annotation_file": ..., "instances_file": ...}."""
    folder = os.path.join(output, "grefcoco")
    os.makedirs(folder, exist_ok=True)
    paths = {
        "annotation_file": os.path.join(folder, "grefs(unc).json"),
        "instances_file": os.path.join(folder, "instances.json"),
    }
    if all(os.path.isfile(path) for path in paths.values()):
        return paths
    rng = np.random.default_rng(seed)
    instances = make_instances(images, objects, rng)
    contents = (make_refs(expressions, images, objects, rng), instances)
    for path, content in zip(paths.values(), contents):
        with open(path + ".part", "w", encoding="utf-8") as file:
            # dumps uses the C encoder, which dump does not.
            file.write(json.dumps(content))
        os.replace(path + ".part", path)
    return paths


def private_memory(pid):
    """MiB of a process that no other process shares (USS); NaN where /proc does not say."""
    path = f"/proc/{pid}/smaps_rollup"
    if not os.path.isfile(path):
        return float("nan")
    with open(path, encoding="ascii") as file:
        sizes = [line.split() for line in file if line.startswith("Private_")]
    return sum(int(size[1]) for size in sizes) / 1024.0


def peak_memory():
    """MiB, the highest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


def measure(paths, workers, add_config=()):
    """Loads the files as a registered data set and through worker processes.

    Returns:
        dict with "samples", "load_seconds", "load_peak_mib" (whole process after loading),
        "peak_mib" (after building the loader too) and "worker_mib", a list: private memory of each
        worker process after a number of batches.
    """
    before = peak_memory()
    start, cpu = time.perf_counter(), time.process_time()
    files = {**paths, "image_root": "none", "split": "train"}
    register_grounding(NAME, files, lambda: load_referring(**files))
    try:
        number = len(DatasetCatalog.get(NAME))
        result = {"samples": number, "load_seconds": time.perf_counter() - start}
        result["load_cpu_seconds"] = time.process_time() - cpu
        result.update(baseline_peak_mib=before, load_peak_mib=peak_memory())
        cfg = setup_config(add_config=add_config)
        cfg.DATASETS.TRAIN = (NAME,)
        cfg.DATALOADER.NUM_WORKERS = workers
        start, cpu = time.perf_counter(), time.process_time()
        loader = build_grounding_train_loader(cfg, mapper=lambda sample: sample)
        others = set(multiprocessing.active_children())
        batches = iter(loader)
        for _ in range(max(1, number // (4 * cfg.SOLVER.IMS_PER_BATCH))):
            next(batches)
        result.update(loader_seconds=time.perf_counter() - start, peak_mib=peak_memory())
        started = set(multiprocessing.active_children()) - others
        result["worker_mib"] = [private_memory(worker.pid) for worker in started]
        return result
    finally:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


def main(argv=None, add_config=()):
    """Write, and measure if asked."""
    args = parse_args(argv)
    paths = write_annotations(args.output, args.expressions, args.objects, args.images, args.seed)
    for path in paths.values():
        print(f"{os.path.getsize(path) / 2**20:8.1f} MiB  {path}")
    if args.measure:
        for key, value in measure(paths, args.workers, add_config).items():
            print(f"{key:18s} {value}")


if __name__ == "__main__":
    sys.exit(main())
