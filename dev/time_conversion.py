#!/usr/bin/env python
"""Time and memory of the converters on full-size checkpoints, reading and writing included.

    python dev/time_conversion.py [--sizes base large] [--folder build/conversion]

builds each released model by the deterministic rule of ../shared/reference (not timed), converts it
in a process of its own to .safetensors and .pth and back, and a BEiT-3 file too. It writes up
to 9 GB to the folder and removes them. The bars are one minute and 6 GiB each.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Dict, List, Tuple

import torch
from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT.parent / "shared" / "reference" / "fixtures"
KEY_FILES = {
    "base": "state_dict_grefcoco_rrefcoco_refzom.json",
    "large": "state_dict_L-refcoco.json",
}
INSTANCEVG, BEIT3 = (f"tools/convert-{name}-to-d2.py" for name in ("instancevg", "beit3"))


def build_released(size: str) -> Dict[str, torch.Tensor]:
    """State dict of a released model by the deterministic rule."""
    sys.path.insert(0, str(ROOT))
    from tests.checkpoint.conftest import rule_tensor

    keys = json.loads((FIXTURES / KEY_FILES[size]).read_text(encoding="utf-8"))
    return {key: rule_tensor(key, shape) for key, (shape, _) in keys.items()}


def run(*command: str) -> Tuple[float, float]:
    """Seconds and peak GiB of a command in a process of its own; fails when it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    unit = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - start, usage.ru_maxrss * unit / 2**30


def measure(size: str, folder: Path) -> List[tuple]:
    """Rows (what, seconds, GiB) of one size."""
    released = folder / "released.pth"
    state = build_released(size)
    torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}, released)
    rows = []
    for ending in (".safetensors", ".pth"):
        ours, back = folder / f"ours{ending}", folder / "back.pth"
        rows.append((f"{size}: released to {ending}", *run(INSTANCEVG, str(released), str(ours))))
        command = (INSTANCEVG, "--to-released", str(ours), str(back))
        rows.append((f"{size}: {ending} to released", *run(*command)))
        back.unlink()
        ours.unlink()
    released.unlink()
    raw = folder / "beit3.zip"
    encoder = {
        key.removeprefix("vis_enc."): tensor
        for key, tensor in state.items()
        if key.startswith("vis_enc.")
    }
    torch.save({"model": encoder}, raw)
    del state, encoder
    rows.append((f"{size}: BEiT-3", *run(BEIT3, str(raw), str(folder / "beit3.safetensors"))))
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=list(KEY_FILES), default=list(KEY_FILES))
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "conversion")
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    try:
        rows = [row for size in args.sizes for row in measure(size, args.folder)]
    finally:
        shutil.rmtree(args.folder)
    print(tabulate(rows, ("conversion", "seconds", "peak GiB"), tablefmt="github", floatfmt=".1f"))


if __name__ == "__main__":
    main()
