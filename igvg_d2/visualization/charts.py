"""Geometry of line charts; ``templates/macros.html`` turns it into inline SVG."""

import math
from itertools import cycle
from typing import Any, Dict, Sequence, Tuple

import numpy as np
from matplotlib.ticker import MaxNLocator

Series = Sequence[Tuple[float, float]]

# Okabe and Ito's palette in an order that keeps neighbours apart; yellow is too pale for a line.
LINE_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


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
    finite = {name: [(x, y) for x, y in line if math.isfinite(y)] for name, line in series.items()}
    points = {name: np.array(line, dtype=float) for name, line in finite.items() if line}
    if not points:
        return {}
    width, height, x_count = (300, 170, 3) if small else (520, 260, 5)
    left, right, top, bottom = 46, width - 14, 8, height - 36
    xs, ys = np.concatenate(list(points.values())).T
    x_ticks = nice_ticks(xs.min(), xs.max(), x_count)
    y_ticks = nice_ticks(min(ys.min(), 0) if start_at_zero else ys.min(), ys.max(), 6)

    def place(values, ticks, edges):
        return np.interp(values, ticks[[0, -1]], edges).round(1).tolist()

    lines = []
    for (name, line), color in zip(points.items(), cycle(LINE_COLORS)):
        xs, ys = place(line[:, 0], x_ticks, (left, right)), place(
            line[:, 1], y_ticks, (bottom, top)
        )
        dots = list(zip(xs, ys, *line.T.tolist()))
        path = " ".join(f"{x},{y}" for x, y in zip(xs, ys))
        # A dot per point when they are few (validation), at the end only when they are many.
        dots = dots if len(dots) <= 40 else dots[-1:]
        lines.append(
            {"name": name, "color": color, "last": line[-1, 1], "path": path, "dots": dots}
        )
    return {
        "title": title,
        "width": width,
        "height": height,
        "left": left,
        "right": right,
        "bottom": bottom,
        "x_ticks": list(zip(place(x_ticks, x_ticks, (left, right)), map(_label, x_ticks))),
        "y_ticks": list(zip(place(y_ticks, y_ticks, (bottom, top)), map(_label, y_ticks))),
        "lines": lines,
    }


def _label(value: float) -> str:
    """12000 becomes 12k, 0.25 stays 0.25."""
    return f"{value / 1000:g}k" if abs(value) >= 10000 else f"{value:g}"
