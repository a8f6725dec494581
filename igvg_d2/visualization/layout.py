"""Arrangement of panels into a row and of rows into a grid."""

from dataclasses import dataclass
from typing import List, Sequence

import cv2
import numpy as np

from . import drawing
from .drawing import INK, MUTED, NEUTRAL, WHITE, Color, load_font

_MARGIN = 14
_TITLE_HEIGHT = 34
_MIN_CELL_WIDTH = 230


@dataclass
class Panel:
    """One picture of the row with its title (left) and a remark (right)."""

    title: str
    image: np.ndarray
    note: str = ""


def compose_row(
    panels: List[Panel],
    expression: str,
    remark: str,
    chip: str,
    chip_color: Color = NEUTRAL,
) -> np.ndarray:
    """Header above a row of panels on white.

    Args:
        panels: left to right; pictures may differ in size.
        expression: large text of the header, wrapped to at most four lines.
        remark: small grey line below it.
        chip: short verdict in the top right corner.
        chip_color: its background.

    Returns:
        RGB uint8 (rows, columns, 3).
    """
    cells = [max(_MIN_CELL_WIDTH, panel.image.shape[1]) for panel in panels]
    width = sum(cells) + _MARGIN * (len(panels) + 1)
    font, small = load_font(30, bold=True), load_font(19)
    chip_width = drawing.text_width(chip, load_font(22, bold=True)) + 24
    room = width - 3 * _MARGIN - chip_width
    lines = drawing.wrap_text(f"“{expression}”", font, room, max_lines=4)
    header = _MARGIN + 38 * len(lines) + 30
    panel_height = max(panel.image.shape[0] for panel in panels)
    height = header + _TITLE_HEIGHT + panel_height + _MARGIN
    canvas = np.full((height, width, 3), 255, dtype=np.uint8)
    texts: list = [
        ((_MARGIN, _MARGIN + 38 * i + 15), line, font, INK, "lm") for i, line in enumerate(lines)
    ]
    texts.append(((_MARGIN, header - 16), remark, small, MUTED, "lm"))
    left, top = _MARGIN, header + _TITLE_HEIGHT
    for panel, cell in zip(panels, cells):
        rows, columns = panel.image.shape[:2]
        start = left + (cell - columns) // 2
        canvas[top : top + rows, start : start + columns] = panel.image
        cv2.rectangle(canvas, (start, top), (start + columns - 1, top + rows - 1), (203, 213, 225))
        middle = header + _TITLE_HEIGHT // 2
        texts.append(((left, middle), panel.title, load_font(20, bold=True), INK, "lm"))
        used = drawing.text_width(panel.title, load_font(20, bold=True)) + 10
        if used + drawing.text_width(panel.note, load_font(18)) <= cell:
            texts.append(((left + cell, middle), panel.note, load_font(18), MUTED, "rm"))
        left += cell + _MARGIN
    drawing.draw_texts(canvas, texts)
    drawing.draw_chip(canvas, chip, chip_color, width - _MARGIN, _MARGIN - 2)
    return canvas


def render_grid(
    pictures: Sequence[np.ndarray], columns: int = 1, background: Color = WHITE
) -> np.ndarray:
    """Lay out RGB uint8 pictures of any sizes in ``columns`` columns, row by row."""
    if not pictures:
        raise ValueError("render_grid needs at least one picture, got none.")
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    widths = [max(row[j].shape[1] for row in rows if j < len(row)) for j in range(len(rows[0]))]
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    grid = np.full((sum(heights), sum(widths), 3), background, dtype=np.uint8)
    top = 0
    for row, row_height in zip(rows, heights):
        left = 0
        for picture, column_width in zip(row, widths):
            grid[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
            left += column_width
        top += row_height
    return grid
