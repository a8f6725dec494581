#!/usr/bin/env python
"""Kill a short training at random moments, resume it, and compare with an undisturbed one.

    python dev/kill_and_resume.py --kills 20

Needs the Shapes data (make data). Exit status 0 when both trainings end with the same weights to
the last bit and no unfinished file is left. A training that ends before all kills is a failure.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
# Few samples a step and many checkpoints: kills also hit a save.
_OPTIONS = (
    "SOLVER.IMS_PER_BATCH 4 SOLVER.CHECKPOINT_PERIOD 4 DATASETS.TEST () TEST.VIS_SAMPLES 0 "
    "MODEL.BEIT3.DROP_PATH 0.2"
).split()


def start(args, output):
    """The training as a process group of its own; continues what is in ``output``."""
    command = [
        sys.executable, str(ROOT / "train_net.py"), "--resume", "--config-file", args.config_file,
        "OUTPUT_DIR", output, "SOLVER.MAX_ITER", str(args.iterations), *_OPTIONS,
    ]  # fmt: skip
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(f"{output}.log", "a") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env=environ, stdout=log, stderr=log, start_new_session=True
        )


def train_with_kills(args, output):
    """Returns how many times the training was killed before it ended."""
    rng = random.Random(args.seed)
    for kill in range(args.kills):
        process = start(args, output)
        try:
            process.wait(rng.uniform(*args.seconds))
            return kill
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            print(f"kill {kill + 1} of {args.kills}", flush=True)
    if start(args, output).wait():
        sys.exit(f"the resumed training failed: {output}.log")
    return args.kills


def main():
    """Print the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", default="configs/Shapes/igvg_tiny.yaml")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=480)
    parser.add_argument(
        "--seconds", type=float, nargs=2, default=(14, 24), help="shortest and longest life"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="kill_and_resume_")
    whole, parts = os.path.join(folder, "whole"), os.path.join(folder, "parts")
    if start(args, whole).wait():
        sys.exit(f"the undisturbed training failed: {whole}.log")
    kills = train_with_kills(args, parts)
    if kills < args.kills:
        sys.exit(f"the training ended after {kills} kills; give it more --iterations")
    expected, found = (
        torch.load(os.path.join(output, "model_final.pth"), weights_only=True)["model"]
        for output in (whole, parts)
    )
    other = [name for name, value in expected.items() if not torch.equal(value, found[name])]
    unfinished = list(Path(parts).glob("*.unfinished"))
    print(f"{kills} kills: {len(other)} of {len(expected)} tensors differ; logs in {folder}")
    for path in unfinished:
        print(f"left over: {path}")
    sys.exit(bool(other or unfinished))


if __name__ == "__main__":
    main()
