"""Geometry of line charts; ``templates/macros.html`` turns it into inline SVG."""

from typing import Any, Dict, Sequence, Tuple

import numpy as np
from matplotlib.ticker import MaxNLocator

Series = Sequence[Tuple[float, float]]

# Okabe and Ito's palette in an order that keeps neighbours apart; yellow is too pale for a line.
LINE_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# Above this number of points (training curves) only the last one gets a dot.
_MAX_DOTS = 40


def nice_ticks(low: float, high: float, count: int) -> np.ndarray:
    """About ``count`` round numbers that cover low to high; equal bounds are widened."""
    if not high > low:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    ticks = MaxNLocator(count, steps=[1, 2, 5, 10]).tick_values(low, high)
    return ticks.round(12) + 0.0  # no label 5.55e-17, none -0


def line_chart(
    title: str, series: Dict[str, Series], *, small: bool = False, start_at_zero: bool = False
) -> Dict[str, Any]:
    """One chart with a line per series.

    Args:
        title: heading above the chart.
        series: name -> [(x, y), ...] by ascending x; values that are not finite are left out.
        small: draw 300 x 170 instead of 520 x 260 CSS pixels; both scale with the page.
        start_at_zero: let the y axis contain 0.

    Returns:
        {} when there is nothing to draw, else title, width, height, the edges left, right and
        bottom of the axes, x_ticks and y_ticks [(position, label), ...], and lines, each with name,
        color, last (y value), path (of a polyline) and dots [(x position, y position, x, y), ...].
    """
    points = {name: np.array(line, dtype=float).reshape(-1, 2) for name, line in series.items()}
    points = {name: line[np.isfinite(line).all(axis=1)] for name, line in points.items()}
    points = {name: line for name, line in points.items() if len(line)}
    if not points:
        return {}
    width, height, x_count = (300, 170, 3) if small else (520, 260, 5)
    left, right, top, bottom = 46, width - 14, 8, height - 36
    low = np.min([line.min(axis=0) for line in points.values()], axis=0)
    high = np.max([line.max(axis=0) for line in points.values()], axis=0)
    x_ticks = nice_ticks(low[0], high[0], x_count)
    y_ticks = nice_ticks(min(low[1], 0) if start_at_zero else low[1], high[1], 6)

    def x_at(values):
        return np.interp(values, x_ticks[[0, -1]], (left, right)).round(1).tolist()

    def y_at(values):
        return np.interp(values, y_ticks[[0, -1]], (bottom, top)).round(1).tolist()

    lines = []
    for i, (name, line) in enumerate(points.items()):
        dots = list(zip(x_at(line[:, 0]), y_at(line[:, 1]), *line.T.tolist()))
        lines.append(
            {
                "name": name,
                "color": LINE_COLORS[i % len(LINE_COLORS)],
                "last": dots[-1][-1],
                "path": " ".join(f"{x},{y}" for x, y, *_ in dots),
                "dots": dots if len(dots) <= _MAX_DOTS else dots[-1:],
            }
        )
    return {
        "title": title,
        "width": width,
        "height": height,
        "left": left,
        "right": right,
        "bottom": bottom,
        "x_ticks": list(zip(x_at(x_ticks), map(_label, x_ticks))),
        "y_ticks": list(zip(y_at(y_ticks), map(_label, y_ticks))),
        "lines": lines,
    }


def _label(value: float) -> str:
    """12000 becomes 12k, 0.25 stays 0.25."""
    return f"{value / 1000:g}k" if abs(value) >= 10000 else f"{value:g}"
