"""One-page HTML report of a run; opens from disk, needs no network and no script."""

import base64
import io
import json
import logging
import math
import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from igvg_d2.evaluation.metrics import ABSENT_KINDS, CARDINALITIES
from igvg_d2.io.atomic import write_atomically
from igvg_d2.io.image import read_image
from igvg_d2.io.json_stream import read_metrics

from .charts import Series, line_chart

logger = logging.getLogger(__name__)

# Width of the embedded images; the file an image links to keeps its full size.
_EMBEDDED_WIDTH = 1500
_PER_CARDINALITY = re.compile(r"^(\w+?)_(0|1|2|3plus)$")
_HALLUCINATION = "hallucination"


def build_report(output_dir: str, *, embed: bool = True, title: Optional[str] = None) -> str:
    """Write ``report.html`` into a run's output directory from the files that are there.

    Read are ``config.yaml`` and ``metrics.json`` (Detectron2 writes them), ``run_summary.json``
    (facts of the run, a flat dict), ``inference/**/*_metrics.json`` (evaluators) and
    ``images/**/index.json`` (``render_result_images``). Anything absent is left out.

    Args:
        output_dir: ``cfg.OUTPUT_DIR`` of the run.
        embed: put the images into the page, so that the file can be sent around alone; otherwise
            link them by relative paths.
        title: heading; by default the name of the output directory.

    Returns:
        path of the page.

    Raises:
        FileNotFoundError: ``output_dir`` is not a directory.
        ValueError: a file is not valid JSON.
    """
    root = Path(output_dir)
    if not root.is_dir():
        raise FileNotFoundError(
            f"output_dir '{output_dir}' is not a folder; pass the OUTPUT_DIR of a training run or "
            "evaluation run."
        )
    summary, config = root / "run_summary.json", root / "config.yaml"
    facts = _read_json(summary) if summary.is_file() else {}
    reports = map(_read_json, sorted(root.glob("inference/**/*_metrics.json")))
    evaluations = [report for report in reports if "results" in report]
    # The headline shows the first one, and validation is what a run may be tuned on.
    evaluations.sort(key=lambda report: not report["dataset"].endswith("val"))
    path = str(root / "report.html")
    html = TEMPLATES.get_template("report.html").render(
        title=title or root.absolute().name,
        config_file=facts.pop("config_file", None),
        command=facts.pop("command", None),
        facts=_readable(facts),
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
        evaluations=evaluations,
        metric_tables=_metric_tables(evaluations),
        cardinality_table=_cardinality_table(evaluations),
        absent_table=_absent_table(evaluations),
        promises=_promises(evaluations),
        **_charts(load_curves(str(root / "metrics.json"))),
        galleries=[
            _gallery(index, root, embed) for index in sorted(root.glob("images/**/index.json"))
        ],
    )
    # Half of a surrogate pair, which JSON can hold, has no UTF-8.
    write_atomically(path, html.encode("utf-8", "backslashreplace"))
    logger.info("Wrote %s (%.1f MB)", path, len(html) / 1e6)
    return path


def load_curves(path: str) -> Dict[str, Series]:
    """Curves of Detectron2's ``metrics.json``: {name: [(iteration, value), ...]}."""
    curves: Dict[str, List[Tuple[float, float]]] = {}
    for iteration, values in read_metrics(path).items():
        for name, value in values.items():
            if name != "iteration" and isinstance(value, (int, float)):
                curves.setdefault(name, []).append((iteration, value))
    return curves


def _read_json(path: Path) -> Any:
    """Content of a JSON file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); delete it or rerun.") from error


def _metric_tables(evaluations: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Tables: masks and boxes side by side; other tasks below, where their columns have room."""
    tasks: Dict[str, List[str]] = {}
    for report in evaluations:
        for task, metrics in report["results"].items():
            known = tasks.setdefault(task, [])
            elsewhere = [m for m in metrics if _PER_CARDINALITY.match(m) or _HALLUCINATION in m]
            known += [m for m in metrics if m not in elsewhere and m not in known]
    together = [task for task in tasks if task in ("gres", "grec")]
    others = [[task] for task in tasks if task not in together]
    tables = []
    for group in filter(None, [together, *others]):
        names = [(task, metric) for task in group for metric in tasks[task]]
        rows = [
            [report["dataset"], *(report["results"].get(t, {}).get(m) for t, m in names)]
            for report in evaluations
        ]
        groups = [("", 1), *((task, len(tasks[task])) for task in group)]
        columns = ["data set", *(metric for _, metric in names)]
        tables.append({"columns": columns, "rows": rows, "groups": groups})
    return tables


def _cardinality_table(evaluations: List[Dict[str, Any]]) -> Optional[Dict[str, Any]]:
    """One row per number of targets, one group of columns per data set."""
    columns, groups = ["targets"], [("", 1)]
    rows: List[List[Any]] = [[cardinality] for cardinality in CARDINALITIES]
    for report in evaluations:
        # Of tasks with the same columns the first one counts, the model's own decision.
        tasks = reversed(report["results"].values())
        values = {k: v for metrics in tasks for k, v in metrics.items()}
        names = list(dict.fromkeys(m[1] for m in map(_PER_CARDINALITY.match, values) if m))
        names.sort(key=lambda name: name != "count")
        if names:
            columns += ["samples" if name == "count" else name for name in names]
            groups.append((report["dataset"], len(names)))
            for row, cardinality in zip(rows, CARDINALITIES):
                row += [values.get(f"{name}_{cardinality}") for name in names]
    return {"columns": columns, "rows": rows, "groups": groups} if len(groups) > 1 else None


def _absent_table(evaluations: List[Dict[str, Any]]) -> Optional[Dict[str, Any]]:
    """Hallucination rates beside T_acc, one row per data set and task."""
    rows = [
        [report["dataset"], task, metrics.get("T_acc"), metrics[_HALLUCINATION]]
        + [metrics.get(f"{_HALLUCINATION}_{kind}") for kind in ABSENT_KINDS]
        for report in evaluations
        for task, metrics in report["results"].items()
        if _HALLUCINATION in metrics
    ]
    groups = [("", 3), ("answered although nothing matches", 1 + len(ABSENT_KINDS))]
    columns = ["data set", "task", "T_acc", "all", *ABSENT_KINDS]
    return {"columns": columns, "rows": rows, "groups": groups} if rows else None


def _promises(evaluations: List[Dict[str, Any]]) -> List[str]:
    """What calibrations guarantee, a sentence per data set."""
    found = [(r["dataset"], r.get("calibration")) for r in evaluations]
    return [f"{d}: {c['guarantee']}; {c['assumption']}" for d, c in found if c]


def _charts(curves: Dict[str, Series]) -> Dict[str, List[Dict[str, Any]]]:
    """Total loss and validation large; loss components and diagnostics small."""
    main = [line_chart("total loss", {"total loss": curves.get("total_loss", ())})]
    prefixes = {name[: -len("gres/gIoU")] for name in curves if name.endswith("gres/gIoU")}
    for prefix in sorted(prefixes, key=lambda name: ("val" not in name, name)):
        validation = {}
        for metric in ("gIoU", "cIoU", "N_acc", "T_acc", "F1score"):
            for task in ("grec", "gres"):
                points = curves.get(f"{prefix}{task}/{metric}", ())
                # A single final evaluation is no curve; the tables show it.
                if len(points) > 1:
                    validation[metric] = points
        title = f"{prefix.strip('/') or 'validation'}, percent"
        main.append(line_chart(title, validation, start_at_zero=True))
    losses, others = [], []
    for name, points in sorted(curves.items()):
        is_loss, is_of_layer = name.startswith("loss_"), re.search(r"_\d+$", name)
        if is_loss and not is_of_layer:
            losses.append(line_chart(name, {name: points}, small=True, start_at_zero=True))
        elif is_loss or name == "lr" or name.startswith("igvg/"):
            others.append(line_chart(name, {name: points}, small=True))
    charts = {"main_charts": main, "loss_charts": losses, "other_charts": others}
    return {name: [chart for chart in group if chart] for name, group in charts.items()}


def _gallery(index_path: Path, root: Path, embed: bool) -> Dict[str, Any]:
    """Data set and images of one index, by number of targets, worst cases before the best."""
    index = _read_json(index_path)
    groups: Dict[Tuple[str, str], List[Dict[str, str]]] = {}
    for entry in sorted(index["images"], key=lambda e: (e["cardinality"], e["case"] != "worst")):
        file = index_path.with_name(entry["file"])
        link = file.relative_to(root).as_posix()
        image = {**entry, "source": _embedded(file) if embed else link, "link": link}
        groups.setdefault((entry["cardinality"], entry["case"]), []).append(image)
    return {"dataset": index["dataset"], "groups": groups}


def _embedded(path: Path) -> str:
    """Data address of an image, reduced to the width of the page."""
    image = Image.fromarray(read_image(str(path), "RGB"))
    image.thumbnail((_EMBEDDED_WIDTH, image.height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _readable(facts: Dict[str, Any]) -> List[Sequence[Any]]:
    """Rows (name, value) of the run's facts; times and sizes get their units."""
    rows = []
    for key, value in facts.items():
        name = key.replace("_", " ")
        if isinstance(value, float) and key.endswith("seconds"):
            name, value = name.replace(" seconds", " time"), duration(value)
        elif isinstance(value, (int, float)) and key.endswith("_mib"):
            name, value = name.removesuffix(" mib"), f"{value:,.0f} MiB"
        if not isinstance(value, (dict, list)):
            rows.append((name, value))
    return rows


def number(value: Any, digits: int = 2) -> str:
    """A metric with fixed digits, a count as it is, and a dash for what is undefined."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def duration(seconds: float) -> str:
    """'1 h 02 min', '12 min 05 s' or '3.2 s'."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(round(seconds)), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


# Whatever is put into a template is escaped.
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters["number"] = number
