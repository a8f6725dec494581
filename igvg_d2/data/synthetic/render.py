"""Pixels of the shapes: masks from signed distances, and the painted image."""

from typing import TYPE_CHECKING, List, Tuple

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from .scene import Scene, SceneObject

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")

COLOR_VALUES = {
    "red": (214, 40, 40),
    "orange": (245, 140, 25),
    "yellow": (240, 222, 60),
    "green": (45, 155, 60),
    "cyan": (70, 210, 220),
    "blue": (40, 80, 215),
    "purple": (145, 60, 185),
    "gray": (140, 140, 140),
}
OUTLINE_WIDTH = 1.4  # pixels; keeps touching objects of one colour apart
RING_HOLE = 0.55  # inner over outer radius

# Circumscribed radius over the nominal radius, chosen so that shapes of one size look equally big.
EXTENTS = {"circle": 1.0, "ring": 1.0, "square": 1.2, "triangle": 1.25, "star": 1.25, "cross": 1.16}


def _regular_polygon(corners: int, radius: float) -> np.ndarray:
    """Vertices (corners, 2) of a regular polygon around the origin, the first one straight up."""
    angles = 2 * np.pi * np.arange(corners) / corners - np.pi / 2
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star() -> np.ndarray:
    """Five-pointed star, outer radius 1.25."""
    radii = np.where(np.arange(10) % 2 == 0, EXTENTS["star"], 0.46 * EXTENTS["star"])
    return _regular_polygon(10, 1.0) * radii[:, None]


def _cross(length: float = 1.1, half: float = 0.37) -> np.ndarray:
    """Plus-shaped polygon with arms of the given length and half width."""
    quarter = np.array([(half, -length), (half, -half), (length, -half)])
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])  # quarter turn, (x, y) -> (-y, x)
    corners = [quarter]
    for _ in range(3):
        corners.append(corners[-1] @ turn.T)
    return np.concatenate(corners)


_POLYGONS = {
    "square": _regular_polygon(4, EXTENTS["square"]).tolist(),
    "triangle": _regular_polygon(3, EXTENTS["triangle"]).tolist(),
    "star": _star().tolist(),
    "cross": _cross().tolist(),
}


def _inside_polygon(x: np.ndarray, y: np.ndarray, vertices: List[List[float]]) -> np.ndarray:
    """Even-odd rule: whether a ray from (x, y) to the right crosses an odd number of edges."""
    inside = np.zeros(x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(vertices, vertices[1:] + vertices[:1]):
        if ay != by:
            inside ^= ((y >= ay) != (y >= by)) & (x - ax < (bx - ax) / (by - ay) * (y - ay))
    return inside


def _polygon_distance(x: np.ndarray, y: np.ndarray, vertices: List[List[float]]) -> np.ndarray:
    """Signed distance of the points (x, y) to a polygon: negative inside, same shape as ``x``."""
    squared = np.full(x.shape, np.inf)
    for (ax, ay), (bx, by) in zip(vertices, vertices[1:] + vertices[:1]):
        ex, ey = bx - ax, by - ay
        px, py = x - ax, y - ay
        along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
        squared = np.minimum(squared, (px - along * ex) ** 2 + (py - along * ey) ** 2)
    return np.where(_inside_polygon(x, y, vertices), -1.0, 1.0) * np.sqrt(squared)


def _window(item: "SceneObject", height: int, width: int) -> Tuple[int, int, int, int]:
    """Pixel window (x0, y0, x1, y1) that holds the object and one pixel around it."""
    reach = item.radius * EXTENTS[item.shape] + 2
    x, y = item.center
    x0, y0 = max(int(x - reach), 0), max(int(y - reach), 0)
    return x0, y0, min(int(x + reach) + 2, width), min(int(y + reach) + 2, height)


def _local_coordinates(
    item: "SceneObject", window: Tuple[int, int, int, int]
) -> Tuple[np.ndarray, np.ndarray]:
    """Pixel centers of ``window`` in the object's own frame, in nominal radii."""
    x0, y0, x1, y1 = window
    dx = (np.arange(x0, x1) + 0.5 - item.center[0])[None, :] / item.radius
    dy = (np.arange(y0, y1) + 0.5 - item.center[1])[:, None] / item.radius
    cos, sin = np.cos(item.angle), np.sin(item.angle)
    return dx * cos + dy * sin, dy * cos - dx * sin


def _signed_distance(item: "SceneObject", window: Tuple[int, int, int, int]) -> np.ndarray:
    """Distance in pixels from each pixel center of ``window`` to the outline, negative inside."""
    x, y = _local_coordinates(item, window)
    if item.shape in _POLYGONS:
        return _polygon_distance(x, y, _POLYGONS[item.shape]) * item.radius
    distance = np.hypot(x, y) - 1.0
    if item.shape == "ring":
        half = (1.0 - RING_HOLE) / 2
        distance = np.abs(distance + half) - half
    return distance * item.radius


def shape_mask(item: "SceneObject", height: int, width: int) -> np.ndarray:
    """Pixels whose center lies inside the object, hidden or not: bool (height, width)."""
    mask = np.zeros((height, width), dtype=bool)
    x0, y0, x1, y1 = window = _window(item, height, width)
    if item.shape in _POLYGONS:
        inside = _inside_polygon(*_local_coordinates(item, window), _POLYGONS[item.shape])
    else:
        inside = _signed_distance(item, window) < 0
    mask[y0:y1, x0:x1] = inside
    return mask


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Float (height, width, 3) background: flat, gradient or cloudy; light or dark."""
    # Either clearly lighter or clearly darker than the gray objects.
    bright = rng.uniform(198, 240) if rng.random() < 0.5 else rng.uniform(18, 70)
    base = bright + rng.uniform(-14, 14, size=3)
    style = rng.integers(3)
    shade = np.zeros((height, width))
    if style == 1:
        angle = rng.uniform(0, 2 * np.pi)
        x, y = np.linspace(-1, 1, width)[None, :], np.linspace(-1, 1, height)[:, None]
        shade = (x * np.cos(angle) + y * np.sin(angle)) * rng.uniform(8, 24)
    elif style == 2:
        cells = int(rng.integers(4, 13))
        noise = Image.fromarray(rng.normal(0, 1, size=(cells, cells)).astype(np.float32))
        shade = np.asarray(noise.resize((width, height), Image.BICUBIC)) * rng.uniform(5, 14)
    return base + shade[..., None] * rng.uniform(0.7, 1.0, size=3)


def render_scene(scene: "Scene", rng: np.random.Generator) -> np.ndarray:
    """Paint a scene.

    Edges are anti-aliased by the signed distance to the outline. Every object has a slightly
    shifted colour, a gentle shading and a darker outline; the whole image has its own brightness
    and pixel noise.

    Args:
        scene: what to paint.
        rng: the only source of randomness.

    Returns:
        uint8 (height, width, 3) RGB.
    """
    image = _background(rng, scene.height, scene.width)
    for item in scene.objects:
        x0, y0, x1, y1 = window = _window(item, scene.height, scene.width)
        distance = _signed_distance(item, window)
        color = np.array(COLOR_VALUES[item.color]) + rng.uniform(-9, 9, size=3)
        slope = rng.uniform(-0.08, 0.08)
        shading = 1 + slope * ((np.arange(y0, y1) + 0.5 - item.center[1]) / item.radius)
        fill = np.clip(0.5 - distance - OUTLINE_WIDTH, 0, 1)[..., None]
        paint = color * shading[:, None, None] * (0.5 + 0.5 * fill)
        alpha = np.clip(0.5 - distance, 0, 1)[..., None]
        image[y0:y1, x0:x1] += alpha * (paint - image[y0:y1, x0:x1])
    image *= rng.uniform(0.82, 1.14)
    image += rng.normal(0, rng.uniform(2, 7), size=image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
