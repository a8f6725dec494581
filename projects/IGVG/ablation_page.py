"""RESULTS.md and its figures, from the runs that are complete."""

import math
import platform
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import matplotlib
import numpy as np
from ablation_differences import METRICS, Difference, Evaluated, difference
from ablation_plan import FULL, PAPER_METRICS, SETTINGS, TABLES, Row, Run, max_iter

from igvg_d2.io.atomic import write_atomically
from igvg_d2.io.json_stream import read_metrics

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

Attempts = Mapping[Run, List[Dict[str, Any]]]
# Rows among which the paper's full model should be best.
_AIMS = {table: ("F1score", "gIoU", "mask AP50", "box AP50") for table in ("5", "8")}
_AIMS["fig4"] = ("CoverAcc",)
_COLORS = ("#56b4e9", "#e69f00", "#009e73", "#0072b2")


class Results:
    """The complete runs, by config and seed."""

    def __init__(self, runs: Sequence[Run], done: Attempts, dataset: str):
        """
        Args:
            runs: all that were planned.
            done: those that are complete, with their attempts.
            dataset: key of SETTINGS.

        Raises:
            ValueError: they come from two states of the code, or of the data.
        """
        self.runs, self.done = runs, done
        self.tables, test = SETTINGS[dataset].tables, SETTINGS[dataset].test
        self.evaluated = {run: Evaluated.read(run.folder, test) for run in done}
        self.by_name = {(name, run.seed): run for run in done for name in run.configs}
        codes = {attempt["code"] for attempts in done.values() for attempt in attempts}
        data = {found.results["data"]["hash"] for found in self.evaluated.values()}
        for kind, found in (("code", codes), ("data", data)):
            if len(found) > 1:
                raise ValueError(f"the runs are of {len(found)} states of the {kind}: {found}")

    def seeds(self, *names: str) -> List[int]:
        """Seeds of which all these configs are complete."""
        every = sorted({run.seed for run in self.runs})
        return [s for s in every if all((name, s) in self.by_name for name in names)]

    def get(self, name: str, seed: int) -> Evaluated:
        """A complete run."""
        return self.evaluated[self.by_name[name, seed]]

    def values(self, row: Row, metric: str) -> np.ndarray:
        """One value per complete seed, in percent."""
        name = row.config_of(metric)
        return np.array([self.get(name, seed).value(metric) for seed in self.seeds(name)])

    def difference(self, before: Row, after: Row, metric: str) -> Optional[Difference]:
        """Of a metric, paired over the seeds that both rows have."""
        names = before.config_of(metric), after.config_of(metric)
        seeds, paper = self.seeds(*names), None
        if metric in PAPER_METRICS and before.paper and after.paper:
            column = PAPER_METRICS.index(metric)
            paper = after.paper[column] - before.paper[column]
        found = [[self.get(name, seed) for seed in seeds] for name in names]
        return difference(metric, *found, paper)


def write_page(path: Path, dataset: str, runs: Sequence[Run], done: Attempts) -> None:
    """Write the page, and its figures into ``images`` beside it.

    Args:
        path: file to write.
        dataset: key of SETTINGS.
        runs: all that were planned, of all tables.
        done: those that are complete, with their attempts.
    """
    results = Results(runs, done, dataset)
    text = [f"# The paper's ablations on {dataset}: results", "", *_facts(results, dataset), ""]
    sections, verdicts = [], []
    for key in results.tables:
        title, rows = TABLES[key]
        sections += [f"## {title}", "", *_values(results, rows), ""]
        if any(results.seeds(name) for row in rows for name in row.configs if name != FULL):
            steps = _steps(results, key, rows)
            verdicts += [(key, *step) for step in steps]
            sections += [*_step_table(steps), ""]
        else:
            sections += ["Not run yet.", ""]
    text += [
        *_summary(verdicts, results.tables),
        "",
        *_figures(results, path, dataset),
        *sections,
    ]
    missing = [str(run) for run in runs if run not in done]
    text += ["## Missing", "", ", ".join(missing) or "Nothing.", ""]
    write_atomically(str(path), "\n".join(text))


def _facts(results: Results, dataset: str) -> List[str]:
    """What the numbers come from."""
    setting, attempts = SETTINGS[dataset], [a for found in results.done.values() for a in found]
    options = zip(setting.options[::2], setting.options[1::2])
    commits = sorted({a["commit"] or "unknown" for a in attempts})
    cpu, longest = (
        sum(a["cpu_seconds"] for a in attempts) / 3600.0,
        max((sum(a["wall_seconds"] for a in found) for found in results.done.values()), default=0),
    )
    return [
        "Written by `python projects/IGVG/reproduce.py"
        + (f" --dataset {dataset}`" if dataset != "shapes" else "`")
        + "; numbers in percent.",
        "",
        f"- model: `{setting.model}`; of all rows: {setting.schedule}, "
        + ", ".join(f"{key} {value}" for key, value in options),
        f"- evaluated: `{setting.test}`, after the last iteration",
        f"- runs complete: {len(results.done)} of {len(results.runs)}",
        f"- commit: {', '.join(commits) or 'none'} (+: changed files)",
        f"- CPU time of these runs: {cpu:.2f} h; longest run {longest / 60:.1f} minutes of wall "
        f"time; {platform.machine()}",
        "",
        "The paper's numbers, in parentheses, are of gRefCOCO val and another encoder: orders can "
        "be compared, values cannot. ± is the standard deviation over seeds. CoverAcc is Eq. 3: "
        "boxes with any of the points, whether their queries predict something or not.",
    ]


def _values(results: Results, rows: Sequence[Row]) -> List[str]:
    """Table of means; configs as they are called below ``configs/``."""
    head = f"| row | config | {' | '.join(METRICS)} | seeds |"
    lines = [head, "|---" * (len(METRICS) + 3) + "|"]
    for row in rows:
        cells = []
        for metric in METRICS:
            values = results.values(row, metric)
            cell = "-" if not len(values) or np.isnan(values).any() else f"{values.mean():.1f}"
            if cell != "-" and len(values) > 1:
                cell += f" ± {values.std(ddof=1):.1f}"
            if row.paper and metric in PAPER_METRICS:
                cell += f" ({row.paper[PAPER_METRICS.index(metric)]:.2f})"
            cells.append(cell)
        seeds = len(results.seeds(*row.configs))
        configs = ", ".join(row.configs)
        lines.append(f"| {row.name} | {configs} | {' | '.join(cells)} | {seeds} |")
    return lines


Step = Tuple[str, Row, Row, Dict[str, Optional[Difference]]]


def _steps(results: Results, key: str, rows: Sequence[Row]) -> List[Step]:
    """Differences of each row to the one before, and of the full model to each row."""
    if key == "findings":
        pairs = [("change", rows[0], row) for row in rows[1:]]
    else:
        ladder = list(zip(rows, rows[1:])) if key != "fig4" else []
        pairs = [("step", before, after) for before, after in ladder]
        pairs += [("full", row, rows[-1]) for row in rows[:-1] if (row, rows[-1]) not in ladder]
    return [
        (kind, before, after, {m: results.difference(before, after, m) for m in METRICS})
        for kind, before, after in pairs
    ]


def _step_table(steps: Sequence[Step]) -> List[str]:
    """Differences with interval, seeds and verdict."""
    lines = [
        "Differences in points, [95 % interval over samples], seeds with the same sign, verdict, "
        "and the paper's difference in parentheses:",
        "",
        f"| from, to | {' | '.join(METRICS)} |",
        "|---" * (len(METRICS) + 1) + "|",
    ]
    for _, before, after, found in steps:
        cells = [_cell(found[metric]) for metric in METRICS]
        lines.append(f"| {before.name}, {after.name} | {' | '.join(cells)} |")
    return lines


def _cell(found: Optional[Difference]) -> str:
    if found is None:
        return "-"
    mark = found.verdict if found.verdict in ("noise", "tie") else f"**{found.verdict}**"
    text = f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}]"
    text += f" {found.num_agreeing}/{len(found.per_seed)} {mark}"
    return text if found.paper is None else f"{text} ({found.paper:+.2f})"


def _summary(verdicts: Sequence[Tuple], tables: Sequence[str]) -> List[str]:
    """Which orders hold; verdicts are (table, kind, from row, to row, {metric: difference})."""
    lines = [
        "## What holds",
        "",
        'An order "holds" (or is "reversed") if the 95 % interval of the difference over samples, '
        "images drawn anew 1,000 times and alike for both rows, is on one side of 0 and the "
        "difference has that sign in every seed; else it is noise. Where the paper's own rows are "
        "closer than 0.25 it claims no order (tie). With one seed the spread over seeds is "
        "unknown. Counted are the steps from row to row in the paper's four columns.",
        "",
        "| table | steps x columns | hold | reversed | noise | tie in the paper | no number |",
        "|---|---|---|---|---|---|---|",
    ]
    for table in [name for name in ("5", "6", "7", "8") if name in tables]:
        steps = [step[-1] for step in verdicts if step[:2] == (table, "step")]
        found = [step[metric] for step in steps for metric in PAPER_METRICS]
        names = [item.verdict if item else "none" for item in found]
        counts = [names.count(kind) for kind in ("holds", "reversed", "noise", "tie", "none")]
        lines.append(f"| {table} | {len(found)} | {' | '.join(map(str, counts))} |")
    for word in ("holds", "reversed", "noise"):
        found = [
            f"{table}: {before.name} to {after.name}, {metric} {step[metric].mean:+.1f}"
            for table, kind, before, after, step in verdicts
            if kind == "step"
            for metric in PAPER_METRICS
            if step[metric] and step[metric].verdict == word
        ]
        lines += ["", f"{word.capitalize()}: " + ("; ".join(found) or "none") + "."]
    lines += ["", "The full model against the other rows:", ""]
    for table in [name for name in _AIMS if name in tables]:
        rows = TABLES[table][1]
        for metric in _AIMS[table]:
            to_full = {
                step[2].name: step[-1][metric]
                for step in verdicts
                if step[0] == table and step[3] == rows[-1] and step[-1][metric]
            }
            found = {row.name: to_full[row.name] for row in rows if row.name in to_full}
            lines.append(f"- {TABLES[table][0]}, {metric}: {_best(found, len(rows) - 1)}")
    changes = {step[3].name: step[-1] for step in verdicts if step[1] == "change"}
    return lines + (_changes(changes) if "findings" in tables else [])


def _changes(changes: Mapping[str, Mapping[str, Optional[Difference]]]) -> List[str]:
    """What each choice of the findings does to the full model, and which ones help."""
    lines = ["", "One choice changed in the full model; what is not named is noise:", ""]
    helpful = []
    for name, found in changes.items():
        parts, signs = [], {item.sign for item in found.values() if item}
        for word, sign in (("higher", 1), ("lower", -1)):
            names = [f"{m} {d.mean:+.1f}" for m, d in found.items() if d and d.sign == sign]
            parts += [f"{word}: {', '.join(names)}"] * bool(names)
        lines.append(f"- {name}: {'; '.join(parts) or 'noise'}")
        helpful += [name] * (signs <= {0, 1} and 1 in signs)
    return [*lines, "", f"Higher somewhere and lower nowhere: {', '.join(helpful) or 'none'}."]


def _best(found: Mapping[str, Difference], num_rows: int) -> str:
    """Whether the full model is above the rows, beyond noise."""
    if not found:
        return "not run yet"
    groups: Dict[str, List[str]] = {
        word: [name for name, item in found.items() if item.sign == sign]
        for word, sign in (("above", 1), ("not separable from", 0), ("below", -1))
    }
    text = "; ".join(f"{word} {', '.join(names)}" for word, names in groups.items() if names)
    rest = num_rows - len(found)
    return text + (f"; {rest} rows have no such number" if rest else "")


def _figures(results: Results, path: Path, dataset: str) -> List[str]:
    """Draw them and give the lines that show them."""
    suffix = "" if dataset == "shapes" else f"_{dataset}"
    lines = []
    for name, title, draw in (
        ("cover_accuracy", "CoverAcc by selection of points, as the paper's Fig. 4", _draw_cover),
        ("learning_curves", "gIoU and F1score on the way, first seed", _draw_curves),
    ):
        figure = draw(results, dataset)
        if figure is not None:
            target = path.parent / "images" / f"{name}{suffix}.png"
            target.parent.mkdir(exist_ok=True)
            figure.savefig(target, dpi=100)
            plt.close(figure)
            lines += [f"![{title}](images/{target.name})", ""]
    return lines


def _draw_cover(results: Results, dataset: str) -> Optional[plt.Figure]:
    """Bars over the rows of Fig. 4: of all points (Eq. 3) and of predicted instances alone."""
    rows = [row for row in TABLES["fig4"][1] if results.seeds(row.config)]
    if len(rows) < 2:
        return None
    figure, both = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    titles = {"CoverAcc_all": "all points (Eq. 3)", "CoverAcc": "points of predicted instances"}
    for axes, (name, title) in zip(both, titles.items()):
        columns = [
            [
                results.get(row.config, seed).results["instance"][name]
                for seed in results.seeds(row.config)
            ]
            for row in rows
        ]
        bars = axes.bar([r.name for r in rows], [np.mean(c) for c in columns], color=_COLORS[1:])
        axes.bar_label(bars, fmt="%.1f", padding=6)
        for i, column in enumerate(columns):
            axes.plot([i] * len(column), column, "k.", markersize=5)
        axes.set_ylim(0.0, 112.0)
        axes.set(title=title, ylabel="CoverAcc, %")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"Coverage of targets by query points, {SETTINGS[dataset].test}; dots: seeds")
    return figure


def _draw_curves(results: Results, dataset: str) -> Optional[plt.Figure]:
    """gIoU and F1score over iterations, a column per table."""
    seed = min(run.seed for run in results.runs)
    tables = [k for k in results.tables if k != "findings" and _curves(results, k, seed, "gIoU")]
    if not tables:
        return None
    figure, grid = plt.subplots(
        *(2, len(tables)), figsize=(3.2 * len(tables), 6), layout="constrained", squeeze=False
    )
    for row_of_axes, metric in zip(grid, ("gIoU", "F1score")):
        for axes, key in zip(row_of_axes, tables):
            # The full model, the last row, has the last color in every table.
            colors = dict(zip([row.name for row in TABLES[key][1]][::-1], _COLORS[::-1]))
            for name, points in _curves(results, key, seed, metric).items():
                axes.plot(*zip(*points), "o-", color=colors[name], markersize=3, label=name)
            axes.set(title=TABLES[key][0], xlabel="iteration", ylabel=f"{metric}, %")
            axes.grid(alpha=0.3)
    for axes in grid[-1]:  # below the panels: inside, it would hide curves
        axes.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.22))
    return figure


def _curves(results: Results, key: str, seed: int, metric: str) -> Dict[str, List[Tuple]]:
    """Evaluations by row: (iterations done, percent)."""
    task, metric_name = METRICS[metric]
    lines = {}
    for row in TABLES[key][1]:
        name = row.config_of(metric)
        if (name, seed) not in results.by_name:
            continue
        run = results.by_name[name, seed]
        # The final evaluation is logged after the last iteration.
        points = [
            (min(i + 1, max_iter(run)), scalars[f"{task}/{metric_name}"])
            for i, scalars in read_metrics(str(run.folder / "metrics.json")).items()
            if scalars.get(f"{task}/{metric_name}") is not None
        ]
        if len(points) > 1 and not any(math.isnan(y) for _, y in points):
            lines[row.name] = points
    return lines
