"""Merging, writing and printing the records and results of an evaluation."""

import json
import os
from typing import Any, Dict, List, Optional, Sequence

from detectron2.utils.events import get_event_storage, has_event_storage
from tabulate import tabulate

from igvg_d2.io.atomic import write_atomically
from igvg_d2.io.json_stream import to_json_text

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
    """Write nested dicts and lists, whole or not at all, see `to_json_text`."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    write_atomically(path, to_json_text(content, indent=indent))


def append_line(content: Dict[str, Any], path: str) -> None:
    """Append a JSON line to the log of a run, with the iteration if there is one."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if has_event_storage():
        content = {"iteration": get_event_storage().iter, **content}
    with open(path, "a", encoding="utf-8") as f:
        f.write(to_json_text(content, sort_keys=True) + "\n")


def format_report(report: Dict[str, Any]) -> str:
    """The report of `GroundingEvaluator.evaluate` as text for the log."""
    counts = ", ".join(f"{name}: {count}" for name, count in report["counts"].items())
    lines = [
        f"Evaluation of {report['dataset']} ({report['evaluator']}), "
        f"data set hash {report['dataset_hash'] or 'not computed'}",
        f"{report['num_samples']} samples by number of targets: {counts}; "
        f"{report['num_missing']} missing; all rates in percent",
    ]
    if report["num_without_masks"]:
        lines.append(
            f"{report['num_without_masks']} samples have a target without mask: boxes are scored, "
            "mask metrics leave these samples out"
        )
    for name, block in report["protocols"].items():
        settings = ", ".join(f"{key} {value}" for key, value in block["thresholds"].items())
        lines.append(f"protocol {block['protocol']}; masks at {block['resolution']}; {settings}")
        if block["ceiling"]:
            reached = ", ".join(f"{key} {value:.2f}" for key, value in block["ceiling"].items())
            lines.append(
                "ceiling: masks of the original size were resized, of which perfect ones reach "
                f"{reached} (a mask_{block['resolution'].partition('x')[0]} beside them has none)"
            )
        for task, metrics in block["results"].items():
            rows = [[k, f"{v:.2f}" if isinstance(v, float) else v] for k, v in metrics.items()]
            header = [f"{task} ({name})", ""]
            lines.append(tabulate(rows, headers=header, tablefmt="pipe", disable_numparse=True))
    if report["calibration"]:
        lines.append("calibrated: {guarantee}; {assumption}".format(**report["calibration"]))
    for title, table in report["breakdown"].items():
        columns = list(next(iter(table.values())))
        rows = [[name, *(table[name][c] for c in columns)] for name in table]
        lines.append(tabulate(rows, headers=[title, *columns], tablefmt="pipe", floatfmt=".2f"))
    return "\n".join(lines)
