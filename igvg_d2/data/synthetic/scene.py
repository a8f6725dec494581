"""Scenes of coloured shapes: what is where, and which pixels of each object are visible."""

from dataclasses import dataclass, replace
from typing import FrozenSet, List, Optional, Sequence, Tuple

import numpy as np

from .render import EXTENTS, SHAPES, shape_mask

COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "gray")
SIZES = ("small", "medium", "large")

# Radius over the shorter image side. The gaps between the ranges keep the three words apart.
SIZE_RANGES = {"small": (0.070, 0.085), "medium": (0.105, 0.125), "large": (0.155, 0.185)}
IMAGE_SIDES = (112, 128, 144)
MIN_VISIBLE_FRACTION = 0.5
MIN_VISIBLE_PIXELS = 40

# One (colour, shape) pair per colour that only testB shows; every colour and every shape is still
# seen in training, so testB asks for composition and not for new words.
HELD_OUT_PAIRS: FrozenSet[Tuple[str, str]] = frozenset(
    (color, SHAPES[(5 * index + 2) % len(SHAPES)]) for index, color in enumerate(COLORS)
)


@dataclass(frozen=True)
class SceneObject:
    """One shape of a scene.

    Attributes:
        shape, color, size: words from ``SHAPES``, ``COLORS`` and ``SIZES``.
        radius: nominal radius in pixels.
        angle: rotation in radians.
        center: (x, y) of the shape's own center in pixels, also when part of it is hidden.
        box: tight box (x, y, w, h) of the visible pixels. Its center is the object's position in
            every expression, because the box is what a detector can see.
    """

    shape: str
    color: str
    size: str
    radius: float
    angle: float
    center: Tuple[float, float]
    box: Tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def position(self) -> Tuple[float, float]:
        """Center (x, y) of the visible box in pixels."""
        x, y, w, h = self.box
        return x + w / 2, y + h / 2


@dataclass(frozen=True)
class Scene:
    """A scene and its visible masks.

    Attributes:
        height, width: image size in pixels.
        objects: from the lowest to the topmost in the z-order.
        masks: bool (num_objects, height, width), visible pixels; no pixel belongs to two objects.
        visible_fractions: share of each object's pixels that no other object hides.
    """

    height: int
    width: int
    objects: Tuple[SceneObject, ...]
    masks: np.ndarray
    visible_fractions: Tuple[float, ...]


def pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    """As ``rng.choice``, which makes an array of the options first: five times as slow."""
    return options[rng.integers(len(options))]


def _sample_attributes(
    rng: np.random.Generator, num_objects: int, held_out_share: float
) -> List[Tuple[str, str, str]]:
    """Draw (colour, shape, size) per object from a small palette, so that attributes repeat."""
    colors = set(rng.choice(COLORS, size=rng.integers(2, 6), replace=False))
    shapes = set(rng.choice(SHAPES, size=rng.integers(2, 5), replace=False))
    sizes = rng.choice(SIZES, size=rng.integers(2, 4), replace=False).tolist()
    allowed = [(color, shape) for color in COLORS for shape in SHAPES]
    if held_out_share <= 0:
        allowed = [pair for pair in allowed if pair not in HELD_OUT_PAIRS]
    held_out = [pair for pair in allowed if pair in HELD_OUT_PAIRS]
    palette = [pair for pair in allowed if pair[0] in colors and pair[1] in shapes] or allowed
    if held_out:
        subset = rng.choice(len(held_out), size=rng.integers(2, 5), replace=False)
        held_out = [held_out[index] for index in subset]
    attributes: List[Tuple[str, str, str]] = []
    for _ in range(num_objects):
        draw = rng.random()
        size = pick(rng, sizes)
        if attributes and draw < 0.35:
            # Repeat an earlier object, in all or in part: plurals and counts need groups.
            color, shape, old_size = attributes[rng.integers(len(attributes))]
            attributes.append((color, shape, old_size if draw < 0.2 else size))
            continue
        pairs = held_out if rng.random() < held_out_share else palette
        color, shape = pairs[rng.integers(len(pairs))]
        attributes.append((color, shape, size))
    return attributes


def _propose_center(
    rng: np.random.Generator,
    height: int,
    width: int,
    reach: float,
    neighbour: Optional[SceneObject],
) -> Tuple[float, float]:
    """Random center inside the image; beside ``neighbour`` (touching or overlapping) when given."""
    low, high_x, high_y = reach + 1, width - reach - 1, height - reach - 1
    if neighbour is None:
        return rng.uniform(low, high_x), rng.uniform(low, high_y)
    distance = (neighbour.radius + reach) * rng.uniform(0.7, 1.0)
    direction = rng.uniform(0, 2 * np.pi)
    x = neighbour.center[0] + distance * np.cos(direction)
    y = neighbour.center[1] + distance * np.sin(direction)
    return float(np.clip(x, low, high_x)), float(np.clip(y, low, high_y))


def _enough_visible(full: np.ndarray, visible: np.ndarray) -> bool:
    """Whether every object keeps its minimum of visible pixels."""
    for all_pixels, pixels in zip(full, visible):
        total, seen = np.count_nonzero(all_pixels), np.count_nonzero(pixels)
        if seen < MIN_VISIBLE_FRACTION * total or seen < MIN_VISIBLE_PIXELS:
            return False
    return True


def _place(
    rng: np.random.Generator,
    height: int,
    width: int,
    placed: List[SceneObject],
    full: np.ndarray,
    visible: np.ndarray,
    attributes: Tuple[str, str, str],
) -> Optional[Tuple[SceneObject, np.ndarray, np.ndarray]]:
    """Find a place for one more object on top of the others, or None after 20 attempts."""
    color, shape, size = attributes
    radius = float(rng.uniform(*SIZE_RANGES[size]) * min(height, width))
    reach = radius * EXTENTS[shape]
    same_color = [item for item in placed if item.color == color]
    touch = bool(same_color) and rng.random() < 0.3
    overlap_allowed = touch or rng.random() < 0.35
    for _ in range(20):
        neighbour = same_color[rng.integers(len(same_color))] if touch else None
        center = _propose_center(rng, height, width, reach, neighbour)
        gaps = [
            np.hypot(center[0] - item.center[0], center[1] - item.center[1])
            - (reach + item.radius * EXTENTS[item.shape])
            for item in placed
        ]
        if not overlap_allowed and gaps and min(gaps) < -1:
            continue
        item = SceneObject(shape, color, size, radius, float(rng.uniform(0, 2 * np.pi)), center)
        mask = shape_mask(item, height, width)
        new_full = np.concatenate([full, mask[None]])
        new_visible = np.concatenate([visible & ~mask, mask[None]])
        if _enough_visible(new_full, new_visible):
            return item, new_full, new_visible
    return None


def visible_box(mask: np.ndarray) -> Tuple[int, int, int, int]:
    """Tight box (x, y, w, h) in whole pixels of a bool (height, width) mask with a True pixel."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(cols[0]), int(rows[0])
    return x, y, int(cols[-1]) + 1 - x, int(rows[-1]) + 1 - y


def sample_scene(
    rng: np.random.Generator, *, num_objects: Tuple[int, int] = (2, 9), held_out_share: float = 0.0
) -> Scene:
    """Draw a scene without painting it.

    Args:
        rng: the only source of randomness.
        num_objects: smallest and largest number of objects, both included. A crowded scene may end
            with fewer objects than drawn, but never with fewer than the smallest number.
        held_out_share: share of objects taken from ``HELD_OUT_PAIRS``; at 0 none of them appears.

    Returns:
        Scene with height and width in ``IMAGE_SIDES``; at least half of every object is visible.
    """
    while True:
        height, width = (int(side) for side in rng.choice(IMAGE_SIDES, size=2))
        count = int(rng.integers(num_objects[0], num_objects[1] + 1))
        placed: List[SceneObject] = []
        full = visible = np.zeros((0, height, width), dtype=bool)
        for attributes in _sample_attributes(rng, count, held_out_share):
            found = _place(rng, height, width, placed, full, visible, attributes)
            if found is not None:
                item, full, visible = found
                placed.append(item)
        if len(placed) >= num_objects[0]:
            break
    objects = tuple(replace(item, box=visible_box(m)) for item, m in zip(placed, visible))
    fractions = tuple(float(v.sum() / f.sum()) for v, f in zip(visible, full))
    return Scene(height, width, objects, visible, fractions)
