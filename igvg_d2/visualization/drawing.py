"""Drawing primitives for pictures of grounding: text, masks, boxes, points and heat maps.

Every function works on RGB uint8 arrays (H, W, 3) and, unless it says otherwise, draws in place.
OpenCV draws the geometry and Pillow the text, because a matplotlib figure per picture (the way of
Detectron2's ``Visualizer``) costs about half a second, and a report shows forty of them.
"""

import os
from functools import lru_cache
from typing import List, Optional, Sequence, Tuple

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = Tuple[int, int, int]

# Okabe and Ito's palette, distinguishable under the common kinds of colour blindness. Its black is
# left out (invisible on dark images); blue stands early because it differs most from orange.
INSTANCE_COLORS: Tuple[Color, ...] = (
    (230, 159, 0),
    (0, 114, 178),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
)
INK: Color = (31, 41, 55)
MUTED: Color = (107, 114, 128)
WHITE: Color = (255, 255, 255)
GOOD: Color = (0, 121, 88)
BAD: Color = (190, 72, 0)
NEUTRAL: Color = (71, 85, 105)


def instance_color(index: int) -> Color:
    """Colour of instance ``index``; the palette repeats after seven."""
    return INSTANCE_COLORS[index % len(INSTANCE_COLORS)]


@lru_cache(maxsize=None)
def load_font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as shipped with matplotlib, so that pictures look alike on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", name)
    return ImageFont.truetype(path, size)


def text_width(text: str, font: ImageFont.FreeTypeFont) -> int:
    """Width of one line of text in pixels."""
    return int(np.ceil(font.getlength(text)))


def wrap_text(
    text: str, font: ImageFont.FreeTypeFont, width: int, max_lines: Optional[int] = None
) -> List[str]:
    """Break ``text`` between words into lines of at most ``width`` pixels.

    A single word wider than ``width`` is cut between characters. With ``max_lines`` the last line
    ends in an ellipsis when something was left out.
    """
    lines: List[str] = []
    current = ""
    for word in text.split():
        candidate = f"{current} {word}" if current else word
        if text_width(candidate, font) <= width:
            current = candidate
            continue
        if current:
            lines.append(current)
        while len(word) > 1 and text_width(word, font) > width:
            cut = len(word) - 1
            while cut > 1 and text_width(word[:cut], font) > width:
                cut -= 1
            lines.append(word[:cut])
            word = word[cut:]
        current = word
    lines.append(current)
    if max_lines is not None and len(lines) > max_lines:
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
    if not items:
        return
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    for position, text, font, color, anchor in items:
        draw.text(position, text, font=font, fill=color, anchor=anchor)
    image[:] = np.asarray(canvas)


def contrast_color(background: Color) -> Color:
    """Black or white, whichever reads better on ``background`` (relative luminance)."""
    red, green, blue = background
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else WHITE


def resize_image(image: np.ndarray, size: Tuple[int, int]) -> np.ndarray:
    """Resize an image to ``size`` = (height, width); smooth in both directions."""
    height, width = size
    shrink = height < image.shape[0]
    method = cv2.INTER_AREA if shrink else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=method)


def resize_masks(masks: np.ndarray, size: Tuple[int, int]) -> np.ndarray:
    """Resize bool masks (n, h, w) to (n, height, width); outlines stay smooth when enlarged."""
    height, width = size
    resized = np.zeros((len(masks), height, width), dtype=bool)
    for source, target in zip(masks, resized):
        soft = cv2.resize(source.astype(np.float32), (width, height))
        scale = height / source.shape[0]
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
    image: np.ndarray,
    mask: np.ndarray,
    color: Color,
    *,
    alpha: float = 0.6,
    source: Optional[np.ndarray] = None,
    thickness: int = 2,
) -> None:
    """Tint the pixels of a bool mask (H, W) and outline them.

    Args:
        image: the picture, changed in place.
        mask: bool (H, W) of the picture's size.
        color: tint and outline.
        alpha: share of the tint, 0 draws the outline only.
        source: pixels to tint instead of those of ``image`` (the unfaded image shows what the mask
            covers).
        thickness: of the outline, in pixels.
    """
    if not mask.any():
        return
    if alpha > 0:
        base = (image if source is None else source)[mask].astype(np.float32)
        image[mask] = ((1 - alpha) * base + alpha * np.array(color, np.float32)).astype(np.uint8)
    draw_outline(image, mask, color, thickness=thickness, halo=False)


def draw_outline(
    image: np.ndarray, mask: np.ndarray, color: Color, *, thickness: int = 2, halo: bool = True
) -> None:
    """Outline a bool mask (H, W); a thin dark halo keeps it visible on its own colour."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if halo:
        cv2.drawContours(image, contours, -1, INK, thickness + 2, cv2.LINE_AA)
    cv2.drawContours(image, contours, -1, color, thickness, cv2.LINE_AA)


def draw_box(image: np.ndarray, box: np.ndarray, color: Color, *, thickness: int = 2) -> None:
    """Draw a box (x0, y0, x1, y1) in pixels of the picture, clipped to it."""
    height, width = image.shape[:2]
    x0, x1 = np.clip(np.round(box[[0, 2]]).astype(int), 1, width - 2)
    y0, y1 = np.clip(np.round(box[[1, 3]]).astype(int), 1, height - 2)
    corners = (int(x0), int(y0)), (int(x1), int(y1))
    cv2.rectangle(image, *corners, INK, thickness + 2)
    cv2.rectangle(image, *corners, color, thickness)


def draw_tags(
    image: np.ndarray, boxes: np.ndarray, texts: Sequence[str], colors: Sequence[Color]
) -> None:
    """Label boxes (n, 4): above the box, else below, else inside; never over an earlier label."""
    font = load_font(17, bold=True)
    height, width = image.shape[:2]
    tag_height = 22
    placed: List[Tuple[int, int, int, int]] = []
    items = []
    for box, text, color in zip(boxes, texts, colors):
        tag_width = text_width(text, font) + 10
        x = int(np.clip(round(box[0]) - 2, 0, max(0, width - tag_width)))
        top, bottom = int(round(box[1])), int(round(box[3]))
        choices = (top - tag_height - 1, bottom + 2, top + 2, bottom - tag_height - 2)
        y = _free_row(choices, x, tag_width, tag_height, height, placed)
        placed.append((x, y, x + tag_width, y + tag_height))
        cv2.rectangle(image, (x, y), (x + tag_width - 1, y + tag_height - 1), color, -1)
        middle = (x + tag_width // 2, y + tag_height // 2)
        items.append((middle, text, font, contrast_color(color), "mm"))
    draw_texts(image, items)


def _free_row(choices, x, tag_width, tag_height, height, placed) -> int:
    """First choice of y inside the picture that meets no placed tag, else the first that fits."""
    fitting = [y for y in choices if 0 <= y <= height - tag_height] or [0]
    for y in fitting:
        overlaps = any(
            x < right and left < x + tag_width and y < bottom and top < y + tag_height
            for left, top, right, bottom in placed
        )
        if not overlaps:
            return y
    return fitting[0]


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


def draw_points(
    image: np.ndarray, points: np.ndarray, labels: Sequence[str], colors: Sequence[Color]
) -> None:
    """Draw numbered discs at points (n, 2) given as (x, y); earlier points end up on top.

    Discs at the border are moved inwards until they are whole.
    """
    height, width = image.shape[:2]
    font = load_font(13, bold=True)
    for point, label, color in reversed(list(zip(points, labels, colors))):
        x = int(np.clip(round(float(point[0])), 11, max(11, width - 12)))
        y = int(np.clip(round(float(point[1])), 11, max(11, height - 12)))
        cv2.circle(image, (x, y), 11, WHITE, -1, cv2.LINE_AA)
        cv2.circle(image, (x, y), 9, color, -1, cv2.LINE_AA)
        draw_texts(image, [((x, y), label, font, contrast_color(color), "mm")])


def draw_banner(image: np.ndarray, text: str, color: Color, note: str = "") -> None:
    """Draw a full-width band with large text across the middle, and a smaller note inside it."""
    height, width = image.shape[:2]
    size = 36
    while size > 14 and text_width(text, load_font(size, bold=True)) > width - 16:
        size -= 2
    half = size if note else int(0.85 * size)
    top, bottom = max(0, height // 2 - half), min(height, height // 2 + half)
    band = image[top:bottom].astype(np.float32)
    image[top:bottom] = (0.1 * band + 0.9 * np.array(color, np.float32)).astype(np.uint8)
    cv2.line(image, (0, top), (width, top), WHITE, 2)
    cv2.line(image, (0, bottom - 1), (width, bottom - 1), WHITE, 2)
    shift = int(0.36 * size) if note else 0
    items = [((width // 2, height // 2 - shift), text, load_font(size, bold=True), WHITE, "mm")]
    if note:
        below = (width // 2, height // 2 + int(0.56 * size))
        items.append((below, note, load_font(max(13, size // 2)), WHITE, "mm"))
    draw_texts(image, items)


def draw_chip(image: np.ndarray, text: str, color: Color, right: int, top: int) -> int:
    """Draw a filled label whose right edge is at ``right``; returns the x of its left edge."""
    font = load_font(22, bold=True)
    left = right - text_width(text, font) - 24
    bottom = top + 36
    for x in (left + 8, right - 9):
        cv2.circle(image, (x, top + 8), 8, color, -1, cv2.LINE_AA)
        cv2.circle(image, (x, bottom - 9), 8, color, -1, cv2.LINE_AA)
    cv2.rectangle(image, (left + 8, top), (right - 9, bottom - 1), color, -1)
    cv2.rectangle(image, (left, top + 8), (right - 1, bottom - 9), color, -1)
    middle = ((left + right) // 2, (top + bottom) // 2)
    draw_texts(image, [(middle, text, font, contrast_color(color), "mm")])
    return left
