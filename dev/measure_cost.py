#!/usr/bin/env python
"""How cost grows: measures the curves of docs/cost.md, draws them, and prints its tables.

    python dev/measure_cost.py --json output/cost.json                  # an hour on two busy cores
    python dev/measure_cost.py --json output/cost.json --curves photo data
    python dev/measure_cost.py --json docs/cost.json --draw docs/images/cost.png
    python dev/measure_cost.py --json docs/cost.json --write docs/cost.md

Times are CPU seconds of one thread, which other users of a machine change little, with random
weights. A curve that is measured anew replaces the one in the file; --draw and --write measure
nothing. What the tables say of GPUs is arithmetic, see dev/cost_tables.py.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
import torch
from detectron2.modeling import META_ARCH_REGISTRY

import igvg_d2.modeling  # noqa: F401  registers the models
from igvg_d2.engine import setup_config

# Not there when a test runs this file.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cost_tables import tables  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BASE = os.path.join(ROOT, "configs", "gRefCOCO", "igvg_beit3_base_320_10ep.yaml")
TINY = os.path.join(ROOT, "configs", "Shapes", "igvg_tiny.yaml")
QUERIES = "MODEL.QUERY_GENERATOR.NUM_OBJECT_QUERIES"
_CPU = ["--threads", "1", "--clock", "cpu", "--no-torchscale"]
# Arguments of tools/benchmark.py for the curves that it measures.
TOOL_CURVES = {
    "size": [BASE, "--size", "160,224,320,448,640", "--steps", "2", *_CPU],
    "queries": [BASE, "--steps", "2", *_CPU]
    + [word for n in (20, 50, 100) for word in ("--variant", f"{QUERIES} {n}")],
    "batch": [BASE, "--batch", "1,2,4,8", "--tokens", "8", "--steps", "2", "--warmup", "0", *_CPU],
    "processes": [TINY, "--what", "training", "--processes", "1,2", "--batch", "16"]
    + ["--rounds", "2", *_CPU],
    "evaluator": [BASE, "--what", "evaluator", "--samples", "256", *_CPU],
}
PHOTOS = ("240x320", "480x640", "960x1280", "1920x2560")
EXPRESSIONS = (25000, 100000, 200000)
CURVES = ("size", "queries", "batch", "photo", "processes", "data", "evaluator")
MARK = r"(<!-- table (\w+), [^>]*-->\n)(.*?)(<!-- end -->)"


def run_tool(arguments):
    """Rows of tools/benchmark.py in a process of its own, and the machine."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "rows.json")
        script = os.path.join(ROOT, "tools", "benchmark.py")
        command = [sys.executable, script, "--config-file", *arguments, "--json", path]
        subprocess.run(command, check=True, stdout=sys.stderr)
        with open(path, encoding="utf-8") as file:
            return json.load(file)


def measure(curve):
    """{"rows": [...], "load": [before, after]} of one curve."""
    before, start = os.getloadavg()[0], time.time()
    rows = {"photo": measure_photos, "data": measure_data}.get(curve, lambda: _rows(curve))()
    load = [round(before, 1), round(os.getloadavg()[0], 1)]
    return {"rows": rows, "load": load, "minutes": round((time.time() - start) / 60, 1)}


def _rows(curve):
    """Of a curve of tools/benchmark.py, what the tables need."""
    rows = []
    for row in run_tool(TOOL_CURVES[curve])["rows"]:
        keys = ("size", "variant", "batch", "processes", "cpu_seconds", "peak_mib", "others")
        kept = {key: row[key] for key in keys if row[key] not in (None, "", {})}
        kept["parts"] = {k: part["seconds"] for k, part in row["parts"].items()}
        kept["gflop"] = sum(part["gflop"] or 0.0 for part in row["parts"].values())
        kept.update(row["rates"])
        rows.append(kept)
    return rows


def measure_photos():
    """CPU seconds per sample of the loader, of photos of several sizes."""
    rows = []
    for photo in PHOTOS:
        arguments = [BASE, "--what", "loader", "--workers", "0", "--batch", "8", "--photo", photo]
        (row,) = run_tool([*arguments, "--samples", "64", *_CPU])["rows"]
        seconds = row["cpu_seconds"] / row["samples"]
        decode = row["floor_seconds"] / row["samples"]
        rows.append({"photo": photo, "cpu_seconds": seconds, "decode_seconds": decode})
    return rows


def measure_data():
    """Seconds and memory to load annotation files of several sizes, made up like gRefCOCO's."""
    rows = []
    for number in EXPRESSIONS:
        objects, images = int(0.757 * number), int(0.077 * number)
        with tempfile.TemporaryDirectory() as folder:
            script = os.path.join(ROOT, "tools", "make_large_annotations.py")
            command = [sys.executable, script, "--output", folder, "--images", str(images)]
            command += ["--expressions", str(number), "--objects", str(objects)]
            # Written by another process, whose memory is not that of reading.
            subprocess.run(command, check=True, capture_output=True)
            command += ["--measure", "--workers", "1"]
            run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        facts = dict(line.split(maxsplit=1) for line in run.stdout.splitlines())
        rows.append(
            {
                "expressions": number,
                "cpu_seconds": float(facts["load_cpu_seconds"]),
                "mib": float(facts["load_peak_mib"]) - float(facts["baseline_peak_mib"]),
                "worker_mib": json.loads(facts["worker_mib"])[0],
            }
        )
    return rows


def model_facts():
    """Parameters of ViT-B's model, all of which are trained; nothing is computed."""
    cfg = setup_config(BASE)
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    return {"parameters": sum(p.numel() for p in model.parameters())}


def fill(text, content):
    """A document whose tables are those of the file; each stands between two comments."""
    made = tables(content)
    return re.sub(MARK, lambda m: f"{m[1]}\n{made[m[2]]}\n\n{m[4]}", text, flags=re.DOTALL)


def main(argv=None):
    """Measure, draw, or write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", required=True, metavar="FILE", help="the numbers")
    parser.add_argument("--curves", nargs="+", choices=CURVES, default=CURVES)
    parser.add_argument("--draw", metavar="PNG", help="draw the file's curves")
    parser.add_argument("--write", metavar="MD", help="write the file's tables into a document")
    args = parser.parse_args(argv)
    content = {}
    if os.path.exists(args.json):
        with open(args.json, encoding="utf-8") as file:
            content = json.load(file)
    if not args.draw and not args.write:
        content["model"] = model_facts()
        for curve in args.curves:
            content[curve] = measure(curve)
            with open(args.json, "w", encoding="utf-8") as file:
                json.dump(content, file, indent=1)
    if args.write:
        with open(args.write, encoding="utf-8") as file:
            text = fill(file.read(), content)
        with open(args.write, "w", encoding="utf-8") as file:
            file.write(text)
    if args.draw:
        from draw_cost import draw

        draw(content, args.draw)


if __name__ == "__main__":
    main()
