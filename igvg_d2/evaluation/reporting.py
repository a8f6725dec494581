"""Merging, writing and printing the records and results of an evaluation."""

import json
import math
import os
from typing import Any, Dict, List, Optional, Sequence

from detectron2.utils.file_io import PathManager
from tabulate import tabulate

Record = Dict[str, Any]


def merge_records(shards: Sequence[Sequence[Record]]) -> List[Record]:
    """Records of all processes, one per sample id, sorted by it: free of order and sharding.

    A padded sampler repeats samples, and a repeated sample in another batch may differ in the last
    bits of a float; the choice between two versions is then by content, not by arrival.
    """
    merged: Dict[str, Record] = {}
    for record in (r for shard in shards for r in shard):
        known = merged.setdefault(record["sample_id"], record)
        if known != record and json.dumps(record, sort_keys=True) < json.dumps(
            known, sort_keys=True
        ):
            merged[record["sample_id"]] = record
    return [merged[key] for key in sorted(merged)]


def write_json(content: Any, path: str, indent: Optional[int] = None) -> None:
    """Write nested dicts and lists; NaN becomes null, because JSON has no NaN."""
    PathManager.mkdirs(os.path.dirname(path))
    with PathManager.open(path, "w") as f:
        json.dump(_nan_to_none(content), f, indent=indent)


def format_report(report: Dict[str, Any]) -> str:
    """The report of `GroundingEvaluator.evaluate` as text for the log."""
    settings = ", ".join(f"{key} {value}" for key, value in report["settings"].items())
    counts = ", ".join(f"{name}: {count}" for name, count in report["counts"].items())
    lines = [
        f"Evaluation of {report['dataset']} ({report['evaluator']}), {report['protocol']}",
        f"thresholds: {settings or 'none'}",
        f"{report['num_samples']} samples by number of targets: {counts}; all rates in percent",
    ]
    for task, metrics in report["results"].items():
        rows = [[k, f"{v:.2f}" if isinstance(v, float) else v] for k, v in metrics.items()]
        lines.append(tabulate(rows, headers=[task, ""], tablefmt="pipe", disable_numparse=True))
    for title, table in report["breakdown"].items():
        columns = list(next(iter(table.values())))
        rows = [[name, *(table[name][c] for c in columns)] for name in table]
        lines.append(tabulate(rows, headers=[title, *columns], tablefmt="pipe", floatfmt=".2f"))
    return "\n".join(lines)


def _nan_to_none(value: Any) -> Any:
    """Copy of nested dicts and lists with NaN replaced by None."""
    if isinstance(value, dict):
        return {key: _nan_to_none(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_nan_to_none(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
