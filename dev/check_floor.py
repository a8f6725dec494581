"""Fails when a metric of a finished run is below its floor.

Usage: dev/check_floor.py METRICS_JSON KEY>=VALUE [KEY>=VALUE ...]

METRICS_JSON is Detectron2's metrics.json (one JSON object per line; the last value of a key counts)
or one JSON object of metrics, whose nested keys are joined by "/". A floor's KEY may be the end of
the full key as long as only one key ends so: "gres/gIoU>=60" means "shapes_val/gres/gIoU" in a run
with one test set.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Dict, List, Tuple


def flatten(metrics: dict, prefix: str = "") -> Dict[str, float]:
    """Numbers of a nested dict, keys joined by "/"; everything that is not a number is left out."""
    flat = {}
    for key, value in metrics.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}/"))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            flat[f"{prefix}{key}"] = float(value)
    return flat


def load_metrics(path: Path) -> Dict[str, float]:
    """Metrics of a JSON-lines or JSON file.

    Args:
        path: file to read.

    Returns:
        Flat metric name to its last value.

    Raises:
        ValueError: if the file is neither.
    """
    text = path.read_text(encoding="utf-8")
    try:
        return flatten(json.loads(text))
    except json.JSONDecodeError:
        pass
    merged = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            merged.update(flatten(json.loads(line)))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: expected a JSON object, got {line[:60]!r}"
            ) from error
    return merged


def parse_floor(text: str) -> Tuple[str, float]:
    """ "key>=value" as (key, value)."""
    key, separator, value = text.partition(">=")
    try:
        if not (separator and key.strip()):
            raise ValueError
        return key.strip(), float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected KEY>=NUMBER, got {text!r}") from None


def find_metric(metrics: Dict[str, float], key: str) -> float:
    """Value of a key given in full or by its unambiguous end.

    Raises:
        KeyError: if no key or more than one key matches; the message lists candidates.
    """
    if key in metrics:
        return metrics[key]
    matches = [name for name in metrics if name.endswith(f"/{key}")]
    if len(matches) == 1:
        return metrics[matches[0]]
    if matches:
        raise KeyError(f"{key} is ambiguous: {', '.join(sorted(matches))}; write the full key")
    known = sorted(name for name in metrics if "/" in name)
    raise KeyError(f"{key} was not measured; metrics in the file: {', '.join(known) or 'none'}")


def check_floors(metrics: Dict[str, float], floors: List[Tuple[str, float]]) -> bool:
    """Print one line per floor.

    Args:
        metrics: flat metric name to value, as :func:`load_metrics` returns it.
        floors: (key, lowest accepted value).

    Returns:
        Whether every floor is reached. An unknown key or a NaN is a failure.
    """
    passed = True
    for key, floor in floors:
        try:
            value = find_metric(metrics, key)
        except KeyError as error:
            print(f"FAIL  {error.args[0]}")
            passed = False
            continue
        reached = not math.isnan(value) and value >= floor
        print(f"{'ok  ' if reached else 'FAIL'}  {key} = {value:.2f}, floor {floor:g}")
        passed = passed and reached
    return passed


def main() -> int:
    """Exit status: 0 when all floors are reached, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("metrics", type=Path, help="metrics.json of a run")
    parser.add_argument("floors", type=parse_floor, nargs="+", metavar="KEY>=VALUE")
    args = parser.parse_args()
    try:
        metrics = load_metrics(args.metrics)
    except (OSError, ValueError) as error:
        print(f"FAIL  {error}")
        return 1
    return 0 if check_floors(metrics, args.floors) else 1


if __name__ == "__main__":
    sys.exit(main())
