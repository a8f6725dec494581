"""The pieces of the HTML report: style sheet, tables, tiles and the picture gallery."""

import math
from html import escape
from typing import Any, Dict, Iterable, List, Optional, Sequence

STYLE = """
:root { --bg: #f8fafc; --card: #ffffff; --ink: #1f2937; --muted: #6b7280; --line: #e2e8f0;
  --accent: #0072b2; --good: #007958; --bad: #be4800; }
@media (prefers-color-scheme: dark) { :root { --bg: #0f172a; --card: #1e293b; --ink: #e5e7eb;
  --muted: #94a3b8; --line: #334155; --accent: #56b4e9; --good: #34b48a; --bad: #f08a4b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 27px; margin: 0 0 4px; } h2 { font-size: 20px; margin: 40px 0 12px; }
h3 { font-size: 16px; margin: 22px 0 8px; }
.muted { color: var(--muted); } a { color: var(--accent); }
code, pre { font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px;
  overflow-x: auto; max-height: 460px; }
pre.command { white-space: pre-wrap; overflow-wrap: anywhere; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 18px 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 10px 18px; min-width: 128px; }
.tile b { display: block; font-size: 27px; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { color: var(--muted); font-size: 13px; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
.gap { margin-top: 12px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 12px; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { color: var(--muted); font-weight: 600; font-size: 13px;
  border-bottom: 1px solid var(--line); }
thead tr.groups th { text-align: center; border-bottom: none; color: var(--ink); }
tbody tr + tr td { border-top: 1px solid var(--line); }
th.first, td.first { border-left: 1px solid var(--line); }
.charts { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(500px, 1fr)); }
.charts.small { grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 10px 12px; }
figcaption { font-weight: 600; font-size: 14px; margin-bottom: 4px; }
.key { font-weight: 400; color: var(--muted); margin-left: 10px; white-space: nowrap; }
.key i { display: inline-block; width: 12px; height: 3px; margin-right: 5px;
  vertical-align: middle; }
.key b { color: var(--ink); }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--muted); font-size: 11px; } svg .grid { stroke: var(--line); }
svg .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
details { margin: 10px 0; } summary { cursor: pointer; font-weight: 600; padding: 4px 0; }
.case { margin: 10px 0; padding: 8px; background: #ffffff; }
.case img { width: 100%; display: block; }
.jump { display: flex; flex-wrap: wrap; gap: 6px 16px; margin: 6px 0; }
footer { margin-top: 48px; color: var(--muted); font-size: 13px; }
"""

CARDINALITIES = ("0", "1", "2", "3plus")
CARDINALITY_NAMES = {
    "0": "no target",
    "1": "1 target",
    "2": "2 targets",
    "3plus": "3 or more targets",
}


def page(title: str, sections: Iterable[str]) -> str:
    """A whole HTML document; empty sections are left out."""
    body = "\n".join(section for section in sections if section)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading and its content, or "" without content."""
    content = "\n".join(part for part in parts if part)
    return f"<section><h2>{escape(title)}</h2>\n{content}</section>" if content else ""


def details(title: str, content: str) -> str:
    """Content that is folded until asked for."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>" if content else ""


def number(value: Any, digits: int = 2) -> str:
    """A metric with fixed digits, a count as it is, and a dash for what is undefined."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def tiles(values: Dict[str, Any]) -> str:
    """Large numbers with a caption below each."""
    cells = [
        f'<div class="tile"><b>{escape(number(value, 1))}</b><span>{escape(name)}</span></div>'
        for name, value in values.items()
    ]
    return f'<div class="tiles">{"".join(cells)}</div>' if cells else ""


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    groups: Optional[Sequence[tuple]] = None,
) -> str:
    """An HTML table.

    Args:
        columns: headings; the first column is left-aligned.
        rows: cells in the order of the columns.
        groups: optional [(heading, number of columns), ...] above the headings; the first column of
            every group gets a line on its left.

    Returns:
        HTML, or "" without rows.
    """
    if not rows:
        return ""
    starts, position, head = set(), 0, ""
    for title, span in groups or ():
        if position:
            starts.add(position)
        head += f'<th colspan="{span}"{_first(position in starts)}>{escape(title)}</th>'
        position += span
    head = f'<tr class="groups">{head}</tr>' if head else ""
    names = "".join(f"<th{_first(i in starts)}>{escape(c)}</th>" for i, c in enumerate(columns))
    body = ""
    for row in rows:
        cells = (f"<td{_first(i in starts)}>{escape(number(c))}</td>" for i, c in enumerate(row))
        body += f"<tr>{''.join(cells)}</tr>"
    return (
        f'<div class="scroll"><table><thead>{head}<tr>{names}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _first(is_first: bool) -> str:
    """Attribute of the first cell of a column group."""
    return ' class="first"' if is_first else ""


def gallery(dataset: str, pictures: Sequence[Dict[str, Any]]) -> str:
    """Pictures of one data set by number of targets, worst cases before the best.

    Args:
        dataset: its name.
        pictures: dicts with source (the address of the image), link (of the full-size file),
            cardinality ("0", "1", "2", "3plus"), case ("worst", "best" or "sample"), expression.
    """
    parts = []
    for cardinality in CARDINALITIES:
        chosen = [p for p in pictures if p["cardinality"] == cardinality]
        for case in ("worst", "best", "sample"):
            group = [p for p in chosen if p["case"] == case]
            if group:
                heading = f"{CARDINALITY_NAMES[cardinality]}: {case} cases"
                if case == "sample":
                    heading = CARDINALITY_NAMES[cardinality]
                anchor = f"{dataset}-{cardinality}-{case}"
                parts.append((anchor, heading, "".join(_case(p) for p in group)))
    if not parts:
        return ""
    links = (f'<a href="#{escape(a)}">{escape(h)}</a>' for a, h, _ in parts)
    blocks = (f'<h3 id="{escape(a)}">{escape(h)}</h3>{content}' for a, h, content in parts)
    return f'<div class="jump">{"".join(links)}</div>{"".join(blocks)}'


def _case(picture: Dict[str, Any]) -> str:
    """One picture that links to its file."""
    source, link = escape(picture["source"]), escape(picture["link"])
    text = escape(picture["expression"])
    image = f'<img loading="lazy" src="{source}" alt="{text}">'
    return f'<div class="case"><a href="{link}">{image}</a></div>'


def facts(values: Dict[str, Any]) -> List[Sequence[Any]]:
    """Rows (name, text) of the run facts; keys ending in _seconds and _mib are made readable."""
    rows = []
    for key, value in values.items():
        name = key.replace("_", " ")
        if isinstance(value, float) and key.endswith("seconds"):
            name, value = name.replace(" seconds", " time"), duration(value)
        elif isinstance(value, (int, float)) and key.endswith("_mib"):
            name, value = name[: -len(" mib")], f"{value:,.0f} MiB"
        rows.append((name, value))
    return rows


def duration(seconds: float) -> str:
    """'1 h 02 min', '12 min 05 s' or '3.2 s'."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(round(seconds)), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
