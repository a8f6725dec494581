#!/usr/bin/env python
"""Generate the Shapes data set: images and expressions in the files of gRefCOCO.

Example:
    python datasets/prepare_synthetic.py --output datasets/shapes --seed 0
"""

import argparse
import json
import os
import sys
import time

from igvg_d2.data.synthetic import GENERATOR_VERSION, STATISTICS_FILE, write_shapes


def parse_args() -> argparse.Namespace:
    """Command line; see --help."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the data set")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default 0)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="factor on the number of images (default 1)"
    )
    parser.add_argument(
        "--num-workers", type=int, default=os.cpu_count(), help="processes (default: all cores)"
    )
    parser.add_argument("--force", action="store_true", help="generate even if already complete")
    args = parser.parse_args()
    if args.seed < 0:
        parser.error(f"--seed: expected 0 or more, got {args.seed}")
    if args.scale <= 0:
        parser.error(f"--scale: expected a positive factor, got {args.scale}")
    return args


class Progress:
    """Prints images done and the time left, at most every two seconds."""

    def __init__(self) -> None:
        self.start = self.last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` images are written."""
        now = time.monotonic()
        if done < total and now - self.last < 2:
            return
        self.last = now
        left = (now - self.start) / done * (total - done)
        print(f"{done}/{total} images, {left:.0f} s left", flush=True)


def print_table(statistics: dict) -> None:
    """Print the counts per split."""
    cardinalities = ("0", "1", "2", "3+")
    print(
        "split    images  expressions  " + "".join(f"{n + ' targets':>12}" for n in cardinalities)
    )
    for name, split in statistics["splits"].items():
        counts = [split["cardinality"].get(n, 0) for n in cardinalities]
        shares = "".join(f"{n:>6} ({n / split['expressions']:.0%})" for n in counts)
        print(f"{name:<8} {split['images']:>6}  {split['expressions']:>11}  {shares}")
        for group in ("kind", "no_target_kind"):
            print("         " + ", ".join(f"{key} {n}" for key, n in split[group].items()))


def read_complete(args: argparse.Namespace) -> dict:
    """Statistics of a complete data set that these arguments would write again, else {}."""
    path = os.path.join(args.output, STATISTICS_FILE)
    if args.force or not os.path.isfile(path):
        return {}
    with open(path) as stream:
        statistics = json.load(stream)
    wanted = {"generator_version": GENERATOR_VERSION, "seed": args.seed, "scale": args.scale}
    return statistics if all(statistics.get(key) == value for key, value in wanted.items()) else {}


def main() -> None:
    """Generate unless the folder already holds the same data set, then print the counts."""
    args = parse_args()
    statistics = read_complete(args)
    if statistics:
        print(f"{args.output} is complete; use --force to generate it again")
    else:
        statistics = write_shapes(
            args.output,
            args.seed,
            scale=args.scale,
            num_workers=args.num_workers,
            progress=Progress(),
        )
    print_table(statistics)


if __name__ == "__main__":
    sys.exit(main())
