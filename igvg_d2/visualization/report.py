"""One-page HTML report of a run; opens from disk, needs no network and no script."""

import base64
import io
import json
import logging
import os
import re
from glob import escape as escape_glob
from glob import glob
from html import escape
from typing import Any, Dict, List, Optional, Sequence

from PIL import Image

from .charts import Series, line_chart
from .report_parts import (
    CARDINALITIES,
    CARDINALITY_NAMES,
    details,
    facts,
    gallery,
    number,
    page,
    section,
    table,
    tiles,
)

logger = logging.getLogger(__name__)

REPORT_NAME = "report.html"
# Width of the embedded pictures; the file a picture links to keeps its full size.
_EMBEDDED_WIDTH = 1500
_TASK_TITLES = {
    "gres": "GRES (masks)",
    "grec": "GREC (boxes)",
    "instance": "instances",
    "no_target": "no-target score",
}
_PER_CARDINALITY = re.compile(r"^(\w+?)_(0|1|2|3plus)$")
_VALIDATION_CURVES = ("gIoU", "cIoU", "N_acc", "T_acc", "F1score")


def build_report(
    output_dir: str,
    pictures: Optional[Sequence[str]] = None,
    *,
    embed: bool = True,
    title: Optional[str] = None,
) -> str:
    """Write ``report.html`` into a run's output directory from the files that are there.

    Read are ``config.yaml`` and ``metrics.json`` (Detectron2 writes them), ``run_summary.json``
    (facts of the run, a flat dict), ``inference/**/*_metrics.json`` (evaluators) and the picture
    indices. Anything absent is left out of the page, with a log message.

    Args:
        output_dir: ``cfg.OUTPUT_DIR`` of the run.
        pictures: paths of ``index.json`` files (see ``render_result_pictures``); by default every
            ``pictures/**/index.json`` below ``output_dir``.
        embed: put the pictures into the page, so that the file can be sent around alone; otherwise
            link them by relative paths.
        title: heading; by default the name of the output directory.

    Returns:
        path of the page.

    Raises:
        FileNotFoundError: ``output_dir`` is not a directory.
    """
    if not os.path.isdir(output_dir):
        raise FileNotFoundError(
            f"output_dir '{output_dir}' is not a directory; pass the OUTPUT_DIR of a training or "
            "evaluation run."
        )
    title = title or os.path.basename(os.path.abspath(output_dir))
    summary = _read_json(os.path.join(output_dir, "run_summary.json")) or {}
    evaluations = load_evaluations(output_dir)
    curves = load_curves(os.path.join(output_dir, "metrics.json"))
    if pictures is None:
        pattern = os.path.join(escape_glob(output_dir), "pictures", "**", "index.json")
        pictures = sorted(glob(pattern, recursive=True))
    sections = [
        _header(title, summary, evaluations),
        section("Results", *_result_tables(evaluations)),
        section("Training curves", *_curve_charts(curves)),
        section("This run", *_run_facts(output_dir, summary)),
        *(_picture_section(index, output_dir, embed) for index in pictures),
        "<footer>Written by igvg_d2. Rates in percent; tasks without a protocol in their name are "
        "at the original image resolution.</footer>",
    ]
    path = os.path.join(output_dir, REPORT_NAME)
    with open(path, "w", encoding="utf-8") as f:
        f.write(page(title, sections))
    logger.info("Wrote %s (%.1f MB)", path, os.path.getsize(path) / 1e6)
    return path


def load_evaluations(output_dir: str) -> List[Dict[str, Any]]:
    """Evaluation reports below ``<output_dir>/inference``, sorted by file name.

    Returns:
        dicts with "dataset", "results" {task: {metric: value}} and whatever else the evaluator
        wrote ("counts", "settings", "breakdown", "protocol").
    """
    pattern = os.path.join(escape_glob(output_dir), "inference", "**", "*_metrics.json")
    reports = []
    for path in sorted(glob(pattern, recursive=True)):
        report = _read_json(path)
        if report and "results" in report:
            reports.append(report)
    # Validation first: the headline tiles show it, and it is what a run may be tuned on.
    reports.sort(key=lambda report: not str(report["dataset"]).endswith("val"))
    return reports


def load_curves(path: str) -> Dict[str, Series]:
    """Curves of Detectron2's ``metrics.json``: {name: [(iteration, value), ...]}.

    A resumed run repeats iterations; the last line of an iteration counts.
    """
    if not os.path.isfile(path):
        logger.info("No %s: the report has no curves", path)
        return {}
    curves: Dict[str, Dict[int, float]] = {}
    with open(path, encoding="utf-8") as f:
        for line in filter(str.strip, f):
            try:
                values = json.loads(line)
            except json.JSONDecodeError:
                # A killed run leaves half a line at the end.
                logger.warning("%s: skipped a line that is not JSON: %.60s", path, line)
                continue
            iteration = values.pop("iteration", None)
            if iteration is None:
                continue
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    curves.setdefault(name, {})[int(iteration)] = float(value)
    return {name: sorted(points.items()) for name, points in curves.items()}


def _read_json(path: str) -> Any:
    """Content of a JSON file, None when it does not exist."""
    if not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8") as f:
        try:
            return json.load(f)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not valid JSON ({error}); delete it or rerun.") from error


def _header(title: str, summary: Dict[str, Any], evaluations: List[Dict[str, Any]]) -> str:
    """Title, config, command and the headline numbers of the first data set."""
    config = summary.get("config_file")
    parts = [f"<h1>{escape(title)}</h1>"]
    if config:
        parts.append(f'<div class="muted">configuration <code>{escape(str(config))}</code></div>')
    if summary.get("command"):
        parts.append(f'<pre class="command">{escape(str(summary["command"]))}</pre>')
    if evaluations:
        results, dataset = evaluations[0]["results"], evaluations[0]["dataset"]
        chosen = {}
        for task, metric in (
            ("gres", "gIoU"),
            ("gres", "cIoU"),
            ("gres", "N_acc"),
            ("gres", "T_acc"),
            ("grec", "F1score"),
            ("instance", "mask_AP"),
        ):
            if metric in results.get(task, {}):
                chosen[metric] = results[task][metric]
        samples = number(evaluations[0].get("num_samples"))
        parts.append(tiles(chosen))
        parts.append(f'<div class="muted">on {escape(dataset)}, {samples} expressions</div>')
    return "\n".join(parts)


def _result_tables(evaluations: List[Dict[str, Any]]) -> List[str]:
    """Headline tables over the data sets, then per cardinality, then the evaluators' breakdowns."""
    tasks: Dict[str, List[str]] = {}
    for report in evaluations:
        for task, metrics in report["results"].items():
            known = tasks.setdefault(task, [])
            known += [m for m in metrics if not _PER_CARDINALITY.match(m) and m not in known]
    # Masks and boxes side by side; anything else below, where there is room for its columns.
    together = {task: names for task, names in tasks.items() if task in ("gres", "grec")}
    tables = [_metric_table(evaluations, together)]
    tables += [
        f'<div class="gap">{_metric_table(evaluations, {task: names})}</div>'
        for task, names in tasks.items()
        if task not in together
    ]
    tables.append(_cardinality_table(evaluations))
    for report in evaluations:
        for name, rows_by_name in report.get("breakdown", {}).items():
            columns = [name, *next(iter(rows_by_name.values()), {})]
            body = [[row, *cells.values()] for row, cells in rows_by_name.items()]
            heading = f"{report['dataset']} by {name}"
            tables.append(details(heading, table(columns, body)))
    return tables


def _metric_table(evaluations: List[Dict[str, Any]], tasks: Dict[str, List[str]]) -> str:
    """One row per data set, one column per metric of ``tasks`` {task: [metric, ...]}."""
    if not tasks:
        return ""
    rows = []
    for report in evaluations:
        results = report["results"]
        cells = [results.get(task, {}).get(m) for task, names in tasks.items() for m in names]
        rows.append([report["dataset"], *cells])
    columns = ["data set"] + [metric for names in tasks.values() for metric in names]
    groups = [("", 1)] + [(_TASK_TITLES.get(t, t), len(names)) for t, names in tasks.items()]
    return table(columns, rows, groups)


def _cardinality_table(evaluations: List[Dict[str, Any]]) -> str:
    """One row per number of targets, one group of columns per data set."""
    columns, groups = ["targets"], [("", 1)]
    rows: List[List[Any]] = [[CARDINALITY_NAMES[c]] for c in CARDINALITIES]
    for report in evaluations:
        metrics: Dict[str, Dict[str, Any]] = {}
        for values in report["results"].values():
            for name, value in values.items():
                match = _PER_CARDINALITY.match(name)
                if match:
                    metrics.setdefault(match.group(1), {})[match.group(2)] = value
        if not metrics:
            continue
        counts = {c: n if n is None else int(n) for c, n in metrics.pop("count", {}).items()}
        metrics = {"samples": counts, **metrics} if counts else metrics
        columns += metrics
        groups.append((report["dataset"], len(metrics)))
        for row, cardinality in zip(rows, CARDINALITIES):
            row += [values.get(cardinality) for values in metrics.values()]
    if len(groups) == 1:
        return ""
    return "<h3>By number of targets</h3>" + table(columns, rows, groups)


def _curve_charts(curves: Dict[str, Series]) -> List[str]:
    """Total loss and validation large; loss components and diagnostics small."""
    large = [line_chart("total loss", {"total loss": curves.get("total_loss", ())})]
    prefixes = {name[: -len("gres/gIoU")] for name in curves if name.endswith("gres/gIoU")}
    for prefix in sorted(prefixes, key=lambda name: ("val" not in name, name)):
        validation = {}
        for metric in _VALIDATION_CURVES:
            for task in ("gres", "grec"):
                points = curves.get(f"{prefix}{task}/{metric}")
                # A single final evaluation is no curve; the tables show it.
                if points and len(points) > 1 and metric not in validation:
                    validation[metric] = points
        dataset = prefix.strip("/") or "validation"
        large.append(line_chart(f"{dataset}, percent", validation, start_at_zero=True))
    small = [
        line_chart(name, {name: points}, width=300, height=170, start_at_zero=True)
        for name, points in sorted(curves.items())
        if name.startswith("loss_") and not re.search(r"_\d+$", name)
    ]
    rest = [
        line_chart(name, {name: points}, width=300, height=170)
        for name, points in sorted(curves.items())
        if name == "lr" or name.startswith("igvg/") or re.match(r"loss_.*_\d+$", name)
    ]
    return [
        _charts("charts", large),
        "<h3>Loss components</h3>" + _charts("charts small", small) if any(small) else "",
        details("Losses of the earlier decoder layers, diagnostics", _charts("charts small", rest)),
    ]


def _charts(css_class: str, charts: Sequence[str]) -> str:
    """A grid of charts, or "" when all are empty."""
    return f'<div class="{css_class}">{"".join(charts)}</div>' if any(charts) else ""


def _run_facts(output_dir: str, summary: Dict[str, Any]) -> List[str]:
    """Facts of the run summary, and the whole configuration folded."""
    hidden = ("command", "config_file")  # in the header
    shown = {
        k: v for k, v in summary.items() if k not in hidden and not isinstance(v, (dict, list))
    }
    parts = [table(["fact", "value"], facts(shown))]
    config = os.path.join(output_dir, "config.yaml")
    if os.path.isfile(config):
        with open(config, encoding="utf-8") as f:
            parts.append(details("Full configuration", f"<pre>{escape(f.read())}</pre>"))
    return parts


def _picture_section(index_path: str, output_dir: str, embed: bool) -> str:
    """The gallery of one picture index."""
    index = _read_json(index_path)
    if index is None:
        raise FileNotFoundError(
            f"picture index '{index_path}' not found; render_result_pictures writes it."
        )
    folder = os.path.dirname(os.path.abspath(index_path))
    pictures = []
    for entry in index["pictures"]:
        file = os.path.join(folder, entry["file"])
        link = os.path.relpath(file, os.path.abspath(output_dir)).replace(os.sep, "/")
        source = _embedded(file) if embed else link
        pictures.append({**entry, "source": source, "link": link})
    intro = (
        '<p class="muted">From left to right: the image; where the query generator looks, with the '
        "query points numbered by score; kept instances; the merged mask with the true outline; "
        "the ground truth.</p>"
    )
    content = gallery(index["dataset"], pictures)
    return section(f"Pictures: {index['dataset']}", intro, content) if content else ""


def _embedded(path: str) -> str:
    """Data address of a picture, reduced to the width of the page."""
    with Image.open(path) as image:
        image = image.convert("RGB")
        if image.width > _EMBEDDED_WIDTH:
            height = round(image.height * _EMBEDDED_WIDTH / image.width)
            image = image.resize((_EMBEDDED_WIDTH, height), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
