#!/usr/bin/env python
"""Time and memory of tools/score_predictions.py on synthetic predictions, see --help.

    python dev/benchmark_scoring.py --samples 5000 20000

Makes a gRefCOCO-like data set and a prediction file of each size (written sample by sample), scores
the file in a process of its own, and prints wall time, CPU time and peak memory.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
_HEIGHT, _WIDTH = 480, 640
_SPLIT = "val"


def ellipse(rng):
    """Polygon [x0, y0, ...] of an ellipse inside the image, with its box XYWH."""
    a, b = rng.uniform(20, 150), rng.uniform(20, 110)
    x, y = rng.uniform(a, _WIDTH - a), rng.uniform(b, _HEIGHT - b)
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    points = np.stack([x + a * np.cos(angles), y + b * np.sin(angles)], 1)
    return points.reshape(-1).round(2).tolist(), [x - a, y - b, 2 * a, 2 * b]


def rle_of(polygons, mask_util):
    """Compressed RLE of the union of polygons, as JSON can hold it."""
    if not polygons:
        rle = mask_util.encode(np.zeros((_HEIGHT, _WIDTH), np.uint8, order="F"))
    else:
        rle = mask_util.merge(mask_util.frPyObjects(polygons, _HEIGHT, _WIDTH))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def write_data(root, samples, queries, seed):
    """Annotation files and predictions of a data set with so many expressions."""
    import pycocotools.mask as mask_util

    rng = np.random.default_rng(seed)
    folder = Path(root) / "grefcoco"
    folder.mkdir(parents=True)
    images, annotations, refs = [], [], []
    per_image = 10
    with open(Path(root) / "predictions.json", "w") as predictions:
        predictions.write("[")
        for i in range(samples):
            image_id = i // per_image + 1
            if i % per_image == 0:
                images.append(
                    dict(id=image_id, file_name=f"{image_id}.jpg", height=_HEIGHT, width=_WIDTH)
                )
            targets = [ellipse(rng) for _ in range((0, 1, 2, 3)[i % 4])]
            ids = []
            for polygon, box in targets:
                ids.append(len(annotations) + 1)
                annotations.append(
                    dict(
                        id=ids[-1], image_id=image_id, category_id=1, iscrowd=0, bbox=box,
                        area=box[2] * box[3], segmentation=[polygon],
                    )  # fmt: skip
                )
            refs.append(
                dict(
                    ref_id=i, ann_id=ids or [-1], category_id=[1] * len(ids) or [-1],
                    image_id=image_id, split=_SPLIT, file_name=images[-1]["file_name"],
                    sentences=[{"sent_id": i, "raw": f"thing {i}", "sent": f"thing {i}"}],
                )  # fmt: skip
            )
            noise = rng.normal(0, 3, 2)
            moved = [(np.reshape(p, (-1, 2)) + noise).reshape(-1).tolist() for p, _ in targets]
            found = moved + [ellipse(rng)[0] for _ in range(queries - len(moved))]
            scores = [0.9] * len(moved) + rng.uniform(0, 0.6, queries - len(moved)).tolist()
            boxes = [
                [*np.reshape(p, (-1, 2)).min(0), *np.reshape(p, (-1, 2)).max(0)] for p in found
            ]
            record = {
                "ref_id": i,
                "sent_id": i,
                "mask": rle_of(moved, mask_util),
                "no_target": not moved,
                "no_target_score": float(rng.uniform(0, 0.5) + 0.5 * (not moved)),
                "boxes": [[float(v) for v in box] for box in boxes],
                "scores": scores,
                "masks": [rle_of([p], mask_util) for p in found],
            }
            predictions.write(("," if i else "") + json.dumps(record))
        predictions.write("]")
    (folder / "grefs(unc).json").write_text(json.dumps(refs))
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1}]}
    (folder / "instances.json").write_text(json.dumps(content))


def main():
    """Print a line per size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, nargs="+", default=[5000, 20000])
    parser.add_argument("--queries", type=int, default=10, help="boxes with masks per prediction")
    parser.add_argument("--protocol", default="official,native,released")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for samples in args.samples:
        with tempfile.TemporaryDirectory() as root:
            write_data(root, samples, args.queries, args.seed)
            path = Path(root) / "predictions.json"
            megabytes = path.stat().st_size / 2**20
            command = [
                sys.executable, str(ROOT / "tools" / "score_predictions.py"),
                "--dataset", f"grefcoco_unc_{_SPLIT}", "--predictions", str(path),
                "--protocol", args.protocol,
            ]  # fmt: skip
            env = dict(os.environ, DETECTRON2_DATASETS=root)
            start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
            wall, after = (
                time.perf_counter() - start,
                resource.getrusage(resource.RUSAGE_CHILDREN),
            )
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            # Of all children so far: sizes must ascend.
            print(
                f"{samples} predictions ({megabytes:.0f} MiB), {args.protocol}: {wall:.1f} s wall, "
                f"{cpu:.1f} CPU s, peak {after.ru_maxrss / 1024:.0f} MiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
