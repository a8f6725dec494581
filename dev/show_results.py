"""Prints the metrics of a finished run as one table, and where its files are.

Usage: dev/show_results.py OUTPUT_DIR
"""

import argparse
import sys
from pathlib import Path
from typing import Dict, List

from check_floor import load_metrics

COLUMNS = (
    ("gIoU", "gres/gIoU"),
    ("cIoU", "gres/cIoU"),
    ("N_acc", "gres/N_acc"),
    ("T_acc", "gres/T_acc"),
    ("Pr@0.7", "gres/Pr@0.7"),
    ("F1score", "grec/F1score"),
    ("mask_AP", "instance/mask_AP"),
    ("box_AP", "instance/box_AP"),
    ("gIoU_0", "gres/gIoU_0"),
    ("gIoU_1", "gres/gIoU_1"),
    ("gIoU_2", "gres/gIoU_2"),
    ("gIoU_3+", "gres/gIoU_3plus"),
)
FILES = (
    ("report", "report.html"),
    ("pictures", "pictures"),
    ("all metrics", "metrics.json"),
    ("weights", "model_final.pth"),
    ("log", "log.txt"),
)


def format_table(metrics: Dict[str, float]) -> List[str]:
    """One line per data set.

    Args:
        metrics: "<data set>/<task>/<metric>" to percent; a metric that was not measured shows "-".
            Detectron2 leaves the data set out when there is only one; its row is called "test".

    Returns:
        header and rows, columns aligned; only the header when no data set was evaluated.
    """
    known_metrics = {metric for _, metric in COLUMNS}
    metrics = {f"test/{k}" if k in known_metrics else k: v for k, v in metrics.items()}
    datasets = []
    for key in metrics:
        name, _, metric = key.partition("/")
        if metric in known_metrics and name not in datasets:
            datasets.append(name)
    datasets.sort(key=lambda name: not name.endswith("_val"))  # the rest as in the file
    width = max((len(name) for name in datasets), default=0)
    lines = [" " * width + "".join(f"{title:>9}" for title, _ in COLUMNS)]
    for name in datasets:
        values = (metrics.get(f"{name}/{metric}") for _, metric in COLUMNS)
        cells = ("-" if value is None else f"{value:.1f}" for value in values)
        lines.append(name.ljust(width) + "".join(f"{cell:>9}" for cell in cells))
    return lines


def main() -> int:
    """Exit status: 1 when the run has no metrics."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output_dir", type=Path, help="OUTPUT_DIR of the run")
    output_dir = parser.parse_args().output_dir
    try:
        table = format_table(load_metrics(output_dir / "metrics.json"))
    except (OSError, ValueError) as error:
        print(f"no results: {error}. Run: make train OUTPUT={output_dir}", file=sys.stderr)
        return 1
    if len(table) == 1:
        print(
            f"no results: {output_dir} was never evaluated. Run: make train OUTPUT={output_dir}",
            file=sys.stderr,
        )
        return 1
    print(
        "", "Results, in percent (gIoU_0 ... gIoU_3+: by number of targets)", *table, "", sep="\n"
    )
    for title, name in FILES:
        if (output_dir / name).exists():
            print(f"{title:<12} {output_dir / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
