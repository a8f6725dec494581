"""Medians of what processes have measured, as tables and JSON, and against an earlier run."""

import json
import os
import platform
import statistics

import torch
from tabulate import tabulate

import igvg_d2

from .clock import INFERENCE_PARTS, TRAINING_PARTS

# Of the content; a file of another one cannot be compared.
FORMAT = 1
# What tells one row of a run from another.
LABELS = (
    *("what", "variant", "batch", "size", "threads", "precision", "backend"),
    *("workers", "processes", "malloc", "clock"),
)
UNITS = {"inference": "pass", "training": "step", "loader": "batch", "evaluator": "sample"}


def summarize(case, results):
    """One row of JSON: medians over all processes and turns, the largest peak.

    Args:
        case: what was asked for, see ``LABELS``.
        results: of one or more processes, as dicts of ``Result``.
    """
    first = results[0]
    seconds = _median_of(results, "seconds")
    floors = {k: _median([r["floors"][k] for r in results]) for k in first["floors"]}
    parts = {}
    for name in _in_order(first["parts"]):
        amount = _median([s for r in results for s in r["parts"].get(name, [])])
        floor, operations = floors.get(name), first["operations"].get(name)
        parts[name] = {
            "seconds": amount,
            "share_of_peak": floor / amount if floor and amount else None,
            "gflop": operations / 1e9 if operations else None,
        }
    whole = sum(part["seconds"] for part in parts.values())
    for part in parts.values():
        part["share"] = part["seconds"] / whole if whole else None
    floor = sum(floors.values())
    keys = {key for r in results for key in r["rates"]}
    return {
        **{key: case.get(key) for key in LABELS},
        "samples": first["samples"],
        "seconds": seconds,
        "cpu_seconds": _median_of(results, "cpu_seconds"),
        "samples_per_second": first["samples"] / seconds,
        "floor_seconds": floor or None,
        "share_of_peak": floor / seconds if floor else None,
        "before_mib": max(r["before_mib"] for r in results),
        "peak_mib": max(r["peak_mib"] for r in results),
        "parts": parts,
        "others": {
            name: _median([s for r in results for s in r["others"].get(name, [])])
            for name in first["others"]
        },
        "rates": {key: _median([r["rates"][key] for r in results if r["rates"].get(key)])
                  for key in sorted(keys)},
        "notes": first["notes"],
    }  # fmt: skip


def _median(values):
    return statistics.median(values) if values else 0.0


def _median_of(results, key):
    return _median([value for r in results for value in r[key]])


def _in_order(parts):
    known = [name for name in (*INFERENCE_PARTS, *TRAINING_PARTS) if name in parts]
    # Parts of other meta-architectures stand where they were met, after the encoder.
    return sorted(parts, key=lambda name: known.index(name) if name in known else 1.5)


def machine(device):
    """Facts without which no number can be read."""
    names = [platform.processor() or platform.machine()]
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [x.partition(":")[2].strip() for x in file if x.startswith("model name")]
    return {
        "device": torch.cuda.get_device_name() if torch.device(device).type == "cuda" else "cpu",
        "cpu": names[0] if names else "unknown",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "igvg_d2": igvg_d2.__version__,
        "load": list(os.getloadavg()),
    }


def format_report(report):
    """All tables of a run as text."""
    facts = report["machine"]
    load = " -> ".join(f"{x['load'][0]:.1f}" for x in (facts, report["machine_after"]))
    lines = [
        f"{facts['device']}, {facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads, "
        f"torch {facts['torch']}, load {load}"
    ]
    lines += [f"malloc {name}: {text}" for name, text in report["malloc"].items()]
    for what in UNITS:
        rows = [row for row in report["rows"] if row["what"] == what]
        if rows:
            lines += ["", what, _overview(what, rows), *_details(rows)]
    evaluation = _share_of_evaluation(report["rows"])
    return "\n".join(lines + ([evaluation] if evaluation else []))


def name_rows(rows):
    """A short name of each row: what differs between them."""
    varying = [key for key in LABELS if len({str(row[key]) for row in rows}) > 1]
    names = []
    for row in rows:
        words = [
            row["variant"] or "as configured" if key == "variant" else f"{key} {row[key]}"
            for key in varying
            if key != "what"
        ]
        names.append(", ".join(words) or "as configured")
    return names


def _overview(what, rows):
    first = rows[0]
    lines = [
        (
            name,
            f"{row['seconds']:.4g}",
            f"{row['seconds'] / first['seconds']:.2f}",
            f"{row['cpu_seconds']:.4g}",
            f"{row['samples_per_second']:.4g}",
            _percent(row["share_of_peak"]),
            _number(row["peak_mib"], ".0f"),
            f"{row['peak_mib'] / first['peak_mib']:.2f}" if first["peak_mib"] else "-",
            _number(row["rates"].get("gemm_gflops"), ".0f"),
        )
        for name, row in zip(name_rows(rows), rows)
    ]
    unit = UNITS[what]
    headers = ["", f"s/{unit}", "ratio", "CPU s", "samples/s", "of peak", "peak MiB", "ratio"]
    return _table(lines, [*headers, "gemm GFLOP/s"])


def _details(rows):
    """Parts of all rows side by side, and what else was measured in the same turns."""
    lines = []
    parts = list(dict.fromkeys(name for row in rows for name in row["parts"]))
    numbers = [f"#{i + 1}" for i in range(len(rows))] if len(rows) > 1 else ["s (of all, of peak)"]
    if len(parts) > 1:
        body = [[name, *(_cell(row["parts"].get(name)) for row in rows)] for name in parts]
        sums = [sum(part["seconds"] for part in row["parts"].values()) for row in rows]
        body.append(["sum", *(f"{x:.4g}" for x in sums)])
        lines.append(_table(body, ["part", *numbers]))
    for number, row in zip(numbers, rows):
        where = f"{number}: " if len(rows) > 1 else ""
        first = next(iter(row["others"].values()), None)
        for name, seconds in row["others"].items():
            ratio = f" ({first / seconds:.2f} of its time)" if name.startswith("torch") else ""
            lines.append(f"{where}{name}: {seconds:.4g} s{ratio}")
        lines += [f"{where}{note}" for note in row["notes"]]
        if "memory_gb_per_second" in row["rates"]:
            lines.append(f"{where}memory: {row['rates']['memory_gb_per_second']:.1f} GB/s copied")
    return lines


def _share_of_evaluation(rows):
    """Evaluator against inference of one run, per sample."""
    passes = [row for row in rows if row["what"] == "inference"]
    judged = [row for row in rows if row["what"] == "evaluator"]
    if not passes or not judged:
        return ""
    share = judged[0]["cpu_seconds"] * passes[0]["samples"] / passes[0]["cpu_seconds"]
    return f"evaluator: {100 * share:.1f} % of the CPU time of inference per sample"


def read_run(path):
    """What ``--json`` of an earlier run wrote.

    Raises:
        ValueError: the file cannot be read, or is not one of ``--json``.
    """
    try:
        with open(path, encoding="utf-8") as file:
            earlier = json.load(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"--compare {path}: {error}") from error
    if not isinstance(earlier, dict) or earlier.get("format") != FORMAT:
        raise ValueError(f"--compare {path}: not a file that this version's --json has written")
    return earlier


def compare(report, earlier, path):
    """Rows of this run against equal ones of an earlier run, read from ``path``, as text.

    Raises:
        ValueError: nothing in it is comparable.
    """
    known = {_key(row): row for row in earlier["rows"]}
    pairs = [(known[_key(row)], row) for row in report["rows"] if _key(row) in known]
    if not pairs:
        raise ValueError(f"--compare {path}: no row of it was measured again; see its 'rows'")
    lines = []
    for name, (old, new) in zip(name_rows([new for _, new in pairs]), pairs):
        name = f"{new['what']}, {name}"
        rates = [row["rates"].get("gemm_gflops") for row in (old, new)]
        speed = rates[1] / rates[0] if all(rates) else None
        lines.append(_pair(name, old["seconds"], new["seconds"], speed))
        for part, numbers in new["parts"].items():
            if part in old["parts"] and len(new["parts"]) > 1:
                seconds = old["parts"][part]["seconds"], numbers["seconds"]
                lines.append(_pair(part, *seconds, speed))
        if old["peak_mib"]:
            ratio = f"{new['peak_mib'] / old['peak_mib']:.2f}"
            peaks = (f"{row['peak_mib']:.0f}" for row in (old, new))
            lines.append(("peak MiB", *peaks, ratio, "-"))
    missing = len(known) - len(pairs)
    text = f"{path} ({earlier['machine']['cpu']}) against this run ({report['machine']['cpu']})"
    table = _table(lines, ["", "then", "now", "ratio", "at equal gemm"])
    text = f"{text}\n{table}"
    return f"{text}\n{missing} rows of {path} were not measured now" if missing else text


def _pair(name, old, new, speed):
    """A line of :func:`compare`; a faster machine is taken out of the last ratio."""
    ratio = new / old if old else float("nan")
    equal = "-" if speed is None else f"{ratio * speed:.2f}"
    return name, f"{old:.4g}", f"{new:.4g}", f"{ratio:.2f}", equal


def _key(row):
    return tuple(str(row.get(key)) for key in LABELS)


def _cell(part):
    if part is None:
        return "-"
    share = _percent(part["share"])
    return f"{part['seconds']:.4g} ({share}, {_percent(part['share_of_peak'])})"


def _percent(value):
    return "-" if value is None else f"{100 * value:.0f} %"


def _number(value, form):
    return format(value, form) if value else "-"


def _table(lines, headers):
    return tabulate(lines, headers=headers, disable_numparse=True)
