#!/usr/bin/env python
"""What the predictor adds to the bare model: time, memory, and what it does not leak.

    python dev/benchmark_predictor.py [--rounds 10] [--parts overhead batch large leak]

Times are CPU seconds of one thread, which a busy machine changes little, wall seconds in brackets.
"overhead" and "batch" take ViT-B at 320 pixels with random weights, which needs no file; "large"
takes it and the shipped tiny model, in processes of their own so that peaks of memory are apart.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
import numpy as np
import torch
from PIL import Image, ImageDraw

from igvg_d2.data.mapper import GroundingDatasetMapper
from igvg_d2.engine import setup_config
from igvg_d2.inference import GroundingPredictor

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BASE = os.path.join(ROOT, "configs", "gRefCOCO", "igvg_beit3_base_320_10ep.yaml")
# A vocabulary that needs no file; weights at random, which cost the same.
OPTS = ["MODEL.WEIGHTS", "", "INPUT.TOKENIZER.NAME", "ShapesTokenizer", "MODEL.DEVICE", "cpu"]
TEXTS = [f"the {color} circle on the left of the square" for color in "red green blue gray".split()]
TEXTS += [f"all {color} squares that are large" for color in "red green blue gray".split()]
PARTS = ("overhead", "batch", "large", "leak")
SIZES = {"640 x 480": (640, 480), "12000 x 9000": (12000, 9000)}


def build(model):
    """A predictor of "base" or "tiny"."""
    if model == "tiny":
        return GroundingPredictor.from_pretrained("shapes-tiny", device="cpu")
    torch.manual_seed(0)
    return GroundingPredictor(setup_config(BASE, OPTS))


def write_photo(folder, size):
    """A JPEG with noise, a red circle and a blue square; returns its path."""
    path = os.path.join(folder, f"{size[0]}.jpg")
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(90, 140, (9, 12, 3), dtype=np.uint8))
    image, (width, height) = small.resize(size, Image.BICUBIC), size
    draw = ImageDraw.Draw(image)
    x, y, radius = width / 4, height / 2, height / 5
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), (214, 40, 40))
    draw.rectangle((2 * x, y - radius, 2 * x + radius, y + radius), (40, 80, 215))
    pixels = np.array(image)
    pixels += rng.integers(0, 12, (size[1], size[0], 1), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=90)
    return path


def seconds(work):
    """(CPU, wall) seconds of a call."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def compare(works, rounds):
    """Median (CPU, wall) seconds of several calls that take turns, after one of each."""
    for work in works:
        work()
    found = [[seconds(work) for work in works] for _ in range(rounds)]
    return [tuple(statistics.median(x) for x in zip(*column)) for column in zip(*found)]


def memory_mib(key):
    """VmRSS or VmHWM (its peak) of this process, in MiB."""
    with open("/proc/self/status", encoding="ascii") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines[key].split()[0]) / 2**10


def show(name, first, second, text):
    """One comparison."""
    (cpu, wall), (other_cpu, other_wall) = first, second
    print(f"{name}: {cpu:.3f} s ({wall:.3f}) against {other_cpu:.3f} s ({other_wall:.3f}): {text}")


def overhead(args, folder):
    """The predictor, from the file to masks, against the model on prepared inputs."""
    predictor, path = build("base"), write_photo(folder, SIZES["640 x 480"])
    mapper = GroundingDatasetMapper(predictor.cfg, is_train=False)
    inputs = mapper({"file_name": path, "expression": TEXTS[0], "sample_id": "", "image_id": 0})

    def ask():
        result = predictor(path, TEXTS[0])
        return result.masks, result.mask

    def bare():
        with torch.no_grad():
            return predictor.model([inputs])

    mine, model = compare([ask, bare], args.rounds)
    show("predictor, bare model", mine, model, f"{100 * (mine[0] / model[0] - 1):+.1f} % (bar: 5)")


def batch(args, folder):
    """Eight expressions about one image in one call against eight calls."""
    path = write_photo(folder, SIZES["640 x 480"])
    for model in ("base", "tiny"):
        predictor = build(model)
        works = [lambda: predictor(path, TEXTS), lambda: [predictor(path, text) for text in TEXTS]]
        one, eight = compare(works, max(1, args.rounds // 3))
        gain = f"gain {eight[0] / one[0]:.2f}"
        show(f"{model}, 8 expressions in one call, in 8", one, eight, gain)


def large(args, folder):
    """A large photo against a small one, answer and union mask, each in a process of its own."""
    for name, size in SIZES.items():
        write_photo(folder, size)
    for model in ("base", "tiny"):
        rows = {}
        for name, size in SIZES.items():
            path = os.path.join(folder, f"{size[0]}.jpg")
            command = [sys.executable, __file__, "--worker", model, path]
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            rows[name] = json.loads(output.splitlines()[-1])
        (_, small), (name, big) = rows.items()
        ratio = f"{big['seconds'][0] / small['seconds'][0]:.2f} times (bar: 3)"
        show(f"{model}, {name} against 640 x 480", big["seconds"], small["seconds"], ratio)
        mib = f"{small['peak_mib']:.0f} and {big['peak_mib']:.0f} MiB"
        print(f"  without the mask {big['call'][0]:.3f} s; peaks of memory {mib} (bar: 2000 MB)")
        share = f"the mask has {100 * big['pixels']:.1f} % of the pixels"
        print(f"  of it decoding {big['read'][0]:.3f} s; {share}")


def worker(model, path):
    """Of :func:`large`: print medians of five, and the peak of this process."""
    predictor = build(model)

    def ask():
        return predictor(path, TEXTS[0]).mask

    works = {
        "seconds": ask,
        "call": lambda: predictor(path, TEXTS[0]),
        "read": lambda: predictor._mapper.read_image(path),
    }
    found = dict(zip(works, compare(list(works.values()), 5)), pixels=float(ask().mean()))
    print(json.dumps({**found, "peak_mib": memory_mib("VmHWM")}))


def leak(args, folder):
    """Memory after 100 predictions at most, and after as many more as are asked for."""
    predictor, path = build("tiny"), write_photo(folder, SIZES["640 x 480"])
    warm = min(100, args.predictions)
    for i in range(warm + args.predictions):
        result = predictor(path, TEXTS[i % 8])
        result.to_json()
        result.plot()
        if i == warm - 1:
            before = memory_mib("VmRSS")
    after = memory_mib("VmRSS")
    print(f"{args.predictions} predictions, drawn and as JSON: {before:.0f} -> {after:.0f} MiB")


def main(argv=None):
    """Measure the parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10, help="calls of each kind")
    parser.add_argument("--predictions", type=int, default=500, help='of the part "leak"')
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    # 108 million pixels are more than Pillow takes without a warning.
    Image.MAX_IMAGE_PIXELS = None
    torch.set_num_threads(1)
    if args.worker:
        worker(*args.worker)
        return
    parts = {"overhead": overhead, "batch": batch, "large": large, "leak": leak}
    for name in args.parts:
        with tempfile.TemporaryDirectory() as folder:
            parts[name](args, folder)


if __name__ == "__main__":
    main()
