"""Line charts as inline SVG text, so that a report needs neither a script nor a network."""

import math
from html import escape
from typing import Dict, List, Sequence, Tuple

Series = Sequence[Tuple[float, float]]

# Okabe and Ito's palette in an order that keeps neighbours apart; yellow is too pale for a line.
LINE_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def nice_ticks(low: float, high: float, count: int = 5) -> List[float]:
    """About ``count`` round numbers (1, 2 or 5 times a power of ten) that cover low to high.

    The first tick is <= low and the last >= high; equal bounds are widened.
    """
    if not high > low:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def format_tick(value: float) -> str:
    """Short text of a tick: 12000 becomes 12k, 0.25 stays 0.25."""
    if abs(value) >= 10000:
        return f"{value / 1000:g}k"
    return f"{value:g}"


def line_chart(
    title: str,
    series: Dict[str, Series],
    *,
    width: int = 520,
    height: int = 260,
    x_label: str = "iteration",
    start_at_zero: bool = False,
) -> str:
    """One chart with a line per series, its last value in the legend.

    Args:
        title: heading above the chart.
        series: name -> [(x, y), ...] by ascending x; values that are not finite are left out.
        width, height: of the drawing in CSS pixels; it scales with the page.
        x_label: below the axis.
        start_at_zero: force the y axis to contain 0.

    Returns:
        an HTML figure, or "" when there is nothing to draw.
    """
    clean = {n: [(x, y) for x, y in points if _finite(y)] for n, points in series.items()}
    clean = {name: points for name, points in clean.items() if points}
    if not clean:
        return ""
    xs = [x for points in clean.values() for x, _ in points]
    ys = [y for points in clean.values() for _, y in points]
    # A narrow chart has room for fewer labels on its x axis.
    x_ticks = nice_ticks(min(xs), max(xs), 5 if width > 400 else 3)
    y_ticks = nice_ticks(min(ys + [0.0]) if start_at_zero else min(ys), max(ys), 6)
    frame = _Frame(width, height, x_ticks[0], x_ticks[-1], y_ticks[0], y_ticks[-1])
    parts = [
        f'<figure class="chart"><figcaption>{escape(title)}{_legend(clean)}</figcaption>'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
    ]
    parts += _axes(frame, x_ticks, y_ticks, x_label)
    for (name, points), color in zip(clean.items(), _colors(clean)):
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
        label = f"<title>{escape(name)}</title>"
        parts.append(f'<polyline points="{path}" stroke="{color}" class="line">{label}</polyline>')
        # A dot per point when they are few (validation), at the end only when they are many.
        for x, y in points if len(points) <= 40 else points[-1:]:
            tip = f"<title>{escape(name)}: {y:.4g} at {x:g}</title>"
            position = f'cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}"'
            parts.append(f'<circle {position} r="3" fill="{color}">{tip}</circle>')
    parts.append("</svg></figure>")
    return "".join(parts)


class _Frame:
    """Mapping from data to drawing coordinates."""

    def __init__(self, width, height, x_low, x_high, y_low, y_high):
        self.left, self.right, self.top, self.bottom = 46, width - 14, 8, height - 36
        self.x_low, self.x_high, self.y_low, self.y_high = x_low, x_high, y_low, y_high

    def x(self, value: float) -> float:
        """Horizontal position of a value."""
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return self.left + share * (self.right - self.left)

    def y(self, value: float) -> float:
        """Vertical position of a value."""
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return self.bottom - share * (self.bottom - self.top)


def _axes(frame: _Frame, x_ticks: List[float], y_ticks: List[float], x_label: str) -> List[str]:
    """Grid lines and labels."""
    parts = []
    for tick in y_ticks:
        y = frame.y(tick)
        parts.append(
            f'<line x1="{frame.left}" x2="{frame.right}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
            f'<text x="{frame.left - 6}" y="{y + 4:.1f}" text-anchor="end">{format_tick(tick)}'
            "</text>"
        )
    for tick in x_ticks:
        x = frame.x(tick)
        parts.append(
            f'<text x="{x:.1f}" y="{frame.bottom + 16}" text-anchor="middle">'
            f"{format_tick(tick)}</text>"
        )
    middle = (frame.left + frame.right) / 2
    parts.append(
        f'<text x="{middle:.0f}" y="{frame.bottom + 32}" text-anchor="middle" class="axis">'
        f"{escape(x_label)}</text>"
    )
    return parts


def _legend(series: Dict[str, Series]) -> str:
    """Name and last value of every line."""
    items = []
    for (name, points), color in zip(series.items(), _colors(series)):
        value = f"<b>{points[-1][1]:.4g}</b>"
        if len(series) > 1:
            value = f'<i style="background:{color}"></i>{escape(name)} {value}'
        items.append(f'<span class="key">{value}</span>')
    return " ".join(items)


def _colors(series: Dict[str, Series]) -> List[str]:
    """A colour per series."""
    return [LINE_COLORS[i % len(LINE_COLORS)] for i in range(len(series))]


def _finite(value: object) -> bool:
    """True for a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)
