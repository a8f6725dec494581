"""Drawing primitives: text, masks, boxes, points and heat maps.

Every function works on RGB uint8 arrays (H, W, 3) and, unless it says otherwise, draws in place.
Lines and letters grow by `scale`, so that they can be seen on large images.
OpenCV draws the geometry and Pillow the text, because a matplotlib figure per image (the way of
Detectron2's ``Visualizer``) costs about half a second, and a report shows forty of them.
"""

import os
from functools import lru_cache
from typing import List, Sequence, Tuple

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

Color = Tuple[int, int, int]

# Okabe and Ito's palette, distinguishable under the common kinds of colour blindness. Its black is
# left out (invisible on dark images); blue stands early because it differs most from orange.
_PALETTE = ("#e69f00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")
INK: Color = (31, 41, 55)
MUTED: Color = (107, 114, 128)
WHITE: Color = (255, 255, 255)
GOOD: Color = (0, 121, 88)
BAD: Color = (190, 72, 0)
NEUTRAL: Color = (71, 85, 105)


def instance_color(index: int) -> Color:
    """Colour of instance ``index``; the palette repeats after seven."""
    return ImageColor.getrgb(_PALETTE[index % len(_PALETTE)])


@lru_cache(maxsize=None)
def load_font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as shipped with matplotlib, so that images look alike on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def text_width(text: str, font: ImageFont.FreeTypeFont) -> int:
    """Width of one line of text in pixels."""
    return int(np.ceil(font.getlength(text)))


def wrap_text(text: str, font: ImageFont.FreeTypeFont, width: int, max_lines: int) -> List[str]:
    """Break ``text`` between words into lines of at most ``width`` pixels.

    A single word wider than ``width`` is cut between characters. The last of ``max_lines`` lines
    ends in an ellipsis when something was left out.
    """
    lines = [""]
    for word in text.split():
        candidate = f"{lines[-1]} {word}".strip()
        if text_width(candidate, font) <= width:
            lines[-1] = candidate
            continue
        lines.append("")
        for character in word:
            if lines[-1] and text_width(lines[-1] + character, font) > width:
                lines.append("")
            lines[-1] += character
    lines = [line for line in lines if line]
    if len(lines) > max_lines:
        last = lines[max_lines - 1]
        while last and text_width(last + "…", font) > width:
            last = last[:-1]
        lines = lines[: max_lines - 1] + [last.rstrip() + "…"]
    return lines


def draw_texts(
    image: np.ndarray,
    items: Sequence[Tuple[Tuple[int, int], str, ImageFont.FreeTypeFont, Color, str]],
) -> None:
    """Write several texts at once; each item is ((x, y), text, font, colour, Pillow anchor)."""
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    for position, text, font, color, anchor in items:
        # Pillow's layout has no line ends, and an id may hold one.
        text = " ".join(text.split())
        draw.text(position, text, font=font, fill=color, anchor=anchor)
    image[:] = np.asarray(canvas)


def contrast_color(background: Color) -> Color:
    """Black or white, whichever reads better on ``background`` (relative luminance)."""
    red, green, blue = background
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else WHITE


def resize_masks(masks: np.ndarray, size: Tuple[int, int]) -> np.ndarray:
    """Resize bool masks (n, h, w) to (n, height, width); outlines stay smooth when enlarged."""
    resized = np.zeros((len(masks), *size), dtype=bool)
    scale = size[0] / masks.shape[1]
    for source, target in zip(masks, resized):
        soft = cv2.resize(source.astype(np.float32), size[::-1])
        if scale > 1.5:
            # Bilinear interpolation alone keeps the staircase of a binary mask visible.
            soft = cv2.GaussianBlur(soft, (0, 0), 0.6 * scale)
        target[:] = soft > 0.5
    return resized


def fade(image: np.ndarray, strength: float = 0.55) -> np.ndarray:
    """New image, desaturated and lightened, as the quiet background of an overlay."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)[..., None]
    mixed = (1 - strength) * image.astype(np.float32) + strength * (0.6 * gray + 0.4 * 255)
    return np.clip(mixed, 0, 255).astype(np.uint8)


def draw_mask(
    image: np.ndarray, mask: np.ndarray, color: Color, source: np.ndarray, scale: float = 1.0
) -> None:
    """Show ``source`` (H, W, 3), tinted and outlined, where a bool mask (H, W) is set."""
    levels = 0.4 * np.arange(256, dtype=np.float32)[:, None] + 0.6 * np.array(color, np.float32)
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    box = np.s_[y : y + height, x : x + width]
    if width:
        tinted = cv2.LUT(np.ascontiguousarray(source[box]), levels.astype(np.uint8)[None])
        np.copyto(image[box], tinted, where=mask[box][..., None])
    draw_outline(image, mask, color, halo=False, scale=scale)


def draw_outline(
    image: np.ndarray, mask: np.ndarray, color: Color, halo: bool = True, scale: float = 1.0
) -> None:
    """Outline a bool mask (H, W); a thin dark halo keeps it visible on its own colour."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if halo:
        cv2.drawContours(image, contours, -1, INK, round(4 * scale), cv2.LINE_AA)
    cv2.drawContours(image, contours, -1, color, round(2 * scale), cv2.LINE_AA)


def draw_box(image: np.ndarray, box: np.ndarray, color: Color, scale: float = 1.0) -> None:
    """Draw a box (x0, y0, x1, y1) in pixels, clipped to the image."""
    height, width = image.shape[:2]
    x0, x1 = np.clip(np.round(box[[0, 2]]).astype(int), 1, width - 2).tolist()
    y0, y1 = np.clip(np.round(box[[1, 3]]).astype(int), 1, height - 2).tolist()
    cv2.rectangle(image, (x0, y0), (x1, y1), INK, round(4 * scale))
    cv2.rectangle(image, (x0, y0), (x1, y1), color, round(2 * scale))


def draw_tags(
    image: np.ndarray, boxes: np.ndarray, texts: Sequence[str], scale: float = 1.0
) -> None:
    """Label boxes (n, 4): above the box, else below, else inside; never over an earlier label."""
    font = load_font(round(17 * scale), bold=True)
    height, width = image.shape[:2]
    tag_height = round(22 * scale)
    placed: List[Tuple[int, int, int]] = []  # left, right, top
    items = []
    for i, (box, text) in enumerate(zip(boxes, texts)):
        tag_width = text_width(text, font) + round(10 * scale)
        x = int(np.clip(round(box[0]) - 2, 0, max(0, width - tag_width)))
        top, bottom = int(round(box[1])), int(round(box[3]))
        choices = (top - tag_height - 1, bottom + 2, top + 2, bottom - tag_height - 2)
        fitting = [y for y in choices if 0 <= y <= height - tag_height] or [0]
        beside = [t for left, right, t in placed if x < right and left < x + tag_width]
        free = [y for y in fitting if all(abs(y - t) >= tag_height for t in beside)]
        y = (free or fitting)[0]
        placed.append((x, x + tag_width, y))
        color = instance_color(i)
        cv2.rectangle(image, (x, y), (x + tag_width - 1, y + tag_height - 1), color, -1)
        middle = (x + tag_width // 2, y + tag_height // 2)
        items.append((middle, text, font, contrast_color(color), "mm"))
    draw_texts(image, items)


def draw_heat(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """New image: a non-negative map (h, w) over a greyed image, bright where it is large.

    Brightness is the square root of the map above its minimum, because attention is peaky and its
    flanks would vanish in black. Full brightness is at the peak, but at least at twice the mean, so
    that an even map (the usual answer to "no target") stays dim instead of being stretched.
    """
    height, width = image.shape[:2]
    heat = np.nan_to_num(heat.astype(np.float32))
    full = max(float(heat.max() - heat.min()), 2 * float(heat.mean()))
    heat = np.sqrt((heat - heat.min()) / full) if full > 0 else np.zeros_like(heat)
    heat = cv2.resize(heat, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    colors = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)[..., None]
    alpha = 0.35 + 0.45 * heat[..., None]
    return ((1 - alpha) * gray + alpha * colors).astype(np.uint8)


def draw_points(image: np.ndarray, points: np.ndarray, num_kept: int, scale: float = 1.0) -> None:
    """Draw numbered discs at points (n, 2) given as (x, y); earlier points end up on top.

    Discs at the border are moved inwards until they are whole. Those of the first ``num_kept``
    points have the colours of instances.
    """
    height, width = image.shape[:2]
    font, radius = load_font(round(13 * scale), bold=True), round(11 * scale)
    for i in reversed(range(len(points))):
        color = instance_color(i) if i < num_kept else INK
        x = int(np.clip(round(float(points[i, 0])), radius, max(radius, width - radius - 1)))
        y = int(np.clip(round(float(points[i, 1])), radius, max(radius, height - radius - 1)))
        cv2.circle(image, (x, y), radius, WHITE, -1, cv2.LINE_AA)
        cv2.circle(image, (x, y), round(9 * scale), color, -1, cv2.LINE_AA)
        draw_texts(image, [((x, y), str(i + 1), font, contrast_color(color), "mm")])


def draw_banner(image: np.ndarray, note: str = "", scale: float = 1.0) -> None:
    """Draw a full-width band that says NO TARGET across the middle, and a smaller note inside."""
    height, width = image.shape[:2]
    text, size = "NO TARGET", round(36 * scale)
    while size > 14 and text_width(text, load_font(size, bold=True)) > width - 16:
        size -= 2
    half = size if note else int(0.85 * size)
    x, y = width // 2, height // 2
    top, bottom = max(0, y - half), min(height, y + half)
    band = 0.1 * image[top:bottom].astype(np.float32) + 0.9 * np.array(NEUTRAL, np.float32)
    image[top:bottom] = band.astype(np.uint8)
    cv2.line(image, (0, top), (width, top), WHITE, 2)
    cv2.line(image, (0, bottom - 1), (width, bottom - 1), WHITE, 2)
    shift = int(0.36 * size) if note else 0
    title = ((x, y - shift), text, load_font(size, bold=True), WHITE, "mm")
    subtitle = ((x, y + int(0.56 * size)), note, load_font(max(13, size // 2)), WHITE, "mm")
    draw_texts(image, [title, subtitle])


def draw_chip(image: np.ndarray, text: str, color: Color, right: int, top: int) -> None:
    """Draw a filled label with round corners whose right edge is at ``right``."""
    font = load_font(22, bold=True)
    left, bottom = right - text_width(text, font) - 24, top + 36
    for x in (left + 8, right - 9):
        cv2.circle(image, (x, top + 8), 8, color, -1, cv2.LINE_AA)
        cv2.circle(image, (x, bottom - 9), 8, color, -1, cv2.LINE_AA)
    cv2.rectangle(image, (left + 8, top), (right - 9, bottom - 1), color, -1)
    cv2.rectangle(image, (left, top + 8), (right - 1, bottom - 9), color, -1)
    middle = ((left + right) // 2, (top + bottom) // 2)
    draw_texts(image, [(middle, text, font, contrast_color(color), "mm")])
