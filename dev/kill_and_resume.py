#!/usr/bin/env python
"""Kill a short training at random moments, resume it, and compare with an undisturbed one.

    python dev/kill_and_resume.py --kills 20

Each life is ended by SIGKILL: at a random moment after its first checkpoint, or (--saving) while a
checkpoint is being written, or (--early) before the first step; for the whole process group, or for
the main process alone, whose children then have to end by themselves. One life is ended by SIGTERM
and must end itself. Needs the Shapes data (make data). Exit status 0 when weights and metrics.json
(all but times) are those of the undisturbed training and nothing is left over.
"""

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
# Few samples a step and many checkpoints: kills also hit a save.
_OPTIONS = (
    "SOLVER.IMS_PER_BATCH 4 SOLVER.CHECKPOINT_PERIOD 4 SOLVER.CHECKPOINT_KEEP 3 DATASETS.TEST () "
    "TEST.VIS_SAMPLES 0 MODEL.BEIT3.DROP_PATH 0.2"
).split()
_STOPPED = 75
_TIMES = (
    *("time", "data_time", "rank_data_time", "eta_seconds", "eval_seconds"),
    *("samples_per_second", "memory_mib"),
)
# Seconds within which children must notice that the main process is gone.
_PATIENCE = 15


def start(args, output):
    """The training run as a process group of its own; continues what is in ``output``."""
    command = [
        sys.executable, str(ROOT / "train_net.py"), "--resume", "--config-file", args.config_file,
        "--num-gpus", str(args.processes), "OUTPUT_DIR", output, "SOLVER.MAX_ITER",
        str(args.iterations), *_OPTIONS,
    ]  # fmt: skip
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(f"{output}.log", "a") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env=environ, stdout=log, stderr=log, start_new_session=True
        )


def wait_until(condition, process):
    """Poll a condition every millisecond; False when the process ends before."""
    while not condition():
        if process.poll() is not None:
            return False
        time.sleep(0.001)
    return True


def list_group(group):
    """Ids of the processes of a group that are not zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(pgrp) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


def end_one_life(args, rng, output, how):
    """Returns what was done, or None when the run ended before it could be."""
    last = Path(output, "last_checkpoint")
    before = last.stat().st_mtime_ns if last.exists() else 0
    left = {path.stat().st_mtime_ns for path in Path(output).glob("*.unfinished")}
    process = start(args, output)
    if how == "early":
        time.sleep(rng.uniform(0, args.early_seconds))
    else:
        # A new checkpoint: this life has made some way.
        if not wait_until(lambda: last.exists() and last.stat().st_mtime_ns > before, process):
            return None
        if how == "saving":
            folder = Path(output)
            if not wait_until(lambda: any(folder.glob("*.unfinished")), process):
                return None
        else:
            time.sleep(rng.uniform(0, args.seconds))
    if process.poll() is not None:
        return None
    whole_group = rng.random() < 0.5
    number = signal.SIGTERM if how == "SIGTERM" else signal.SIGKILL
    (os.killpg if whole_group else os.kill)(process.pid, number)
    code = process.wait(timeout=120)
    if how == "SIGTERM" and code != _STOPPED:
        sys.exit(f"SIGTERM: expected exit code {_STOPPED}, found {code}: {output}.log")
    deadline = time.monotonic() + _PATIENCE
    while list_group(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    alive = list_group(process.pid)
    if alive:
        sys.exit(f"processes {alive} outlived the main process by {_PATIENCE} s: {output}.log")
    # An early kill leaves what the one before left.
    now = {path.stat().st_mtime_ns for path in Path(output).glob("*.unfinished")}
    half = ", half a file left" if now - left else ""
    return f"{how}, {'group' if whole_group else 'main process'}{half}"


def plan_lives(args, rng):
    """How each life ends, in random order."""
    saving, early = round(args.saving * args.kills), round(args.early * args.kills)
    rest = args.kills - saving - early - 1
    lives = ["SIGTERM", *["saving"] * saving, *["early"] * early, *["any moment"] * rest]
    rng.shuffle(lives)
    return lives


def train_with_kills(args, output):
    """Train to the end; ends the program when the run is over before all kills."""
    rng = random.Random(args.seed)
    done = collections.Counter()
    for number, how in enumerate(plan_lives(args, rng), start=1):
        what = end_one_life(args, rng, output, how)
        if what is None:
            sys.exit(f"the run ended after {number - 1} kills; give it more --iterations")
        done[what] += 1
        last = Path(output, "last_checkpoint")
        name = last.read_text() if last.exists() else "nothing yet"
        print(f"{number} of {args.kills}: {what}; last checkpoint {name}", flush=True)
    if start(args, output).wait():
        sys.exit(f"the resumed run failed: {output}.log")
    print("; ".join(f"{count} x {what}" for what, count in sorted(done.items())))


def compare_metrics(whole, parts):
    """Differences of two metrics.json, in words."""
    lines = [
        [json.loads(line) for line in Path(folder, "metrics.json").read_text().splitlines()]
        for folder in (whole, parts)
    ]
    numbers = [[line["iteration"] for line in x] for x in lines]
    if numbers[0] != numbers[1]:
        return [f"metrics.json: iterations {numbers[0]} and {numbers[1]}"]
    different = [
        f"metrics.json: {key} at {a['iteration']}: {a.get(key)} and {b.get(key)}"
        for a, b in zip(*lines)
        for key in sorted(a.keys() | b.keys())
        if key not in _TIMES and a.get(key) != b.get(key)
    ]
    values = sum(len(line.keys() - set(_TIMES)) for line in lines[0])
    print(f"metrics.json: {len(lines[0])} lines, {len(different)} of {values} values differ")
    return different


def main():
    """Print the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", default="configs/Shapes/igvg_tiny.yaml")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--saving", type=float, default=0.3, help="share of kills while saving")
    parser.add_argument("--early", type=float, default=0.1, help="share of kills while starting")
    parser.add_argument("--iterations", type=int, default=480)
    parser.add_argument("--processes", type=int, default=1, help="--num-gpus of the run")
    parser.add_argument("--seconds", type=float, default=4.0, help="longest wait for other kills")
    parser.add_argument("--early-seconds", type=float, default=6.0, help="and for early ones")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="kill_and_resume_")
    whole, parts = os.path.join(folder, "whole"), os.path.join(folder, "parts")
    begin = time.monotonic()
    undisturbed = start(args, whole)
    train_with_kills(args, parts)
    if undisturbed.wait():
        sys.exit(f"the undisturbed training failed: {whole}.log")
    expected, found = (
        torch.load(os.path.join(output, "model_final.pth"), weights_only=True)["model"]
        for output in (whole, parts)
    )
    other = [name for name, value in expected.items() if not torch.equal(value, found[name])]
    problems = [f"other weights: {name}" for name in other] + compare_metrics(whole, parts)
    problems += [f"left over: {path}" for path in Path(parts).glob("*.unfinished")]
    seconds = time.monotonic() - begin
    print(f"{args.kills} kills in {seconds:.0f} s: {len(other)} of {len(expected)} tensors differ")
    print(f"logs in {folder}")
    print("\n".join(problems) or "everything is as without kills")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
