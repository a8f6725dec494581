"""An answer drawn over its image, in the size of the image."""

from typing import Sequence

import numpy as np

from igvg_d2.visualization import drawing

from .masks import decode_mask

# Lines and letters of images with longer sides grow with the image.
_PLAIN_SIDE = 1000
LAYERS = ("attention", "masks", "mask", "boxes", "points")


def draw_result(result, image: np.ndarray, layers: Sequence[str]) -> np.ndarray:
    """See :meth:`igvg_d2.inference.GroundingResult.plot`."""
    unknown = [layer for layer in layers if layer not in LAYERS]
    if isinstance(layers, str) or unknown:
        raise ValueError(f"layers must be a list of some of {LAYERS}, got {layers!r}.")
    size, (height, width) = image.shape[:2], result.orig_shape
    # Both sides are rounded when an image is resized.
    if abs(size[0] * width - size[1] * height) > (height + width) / 2:
        raise ValueError(
            f"the image has height, width = {size}, the answer is about one of {height, width}."
        )
    if size != result.orig_shape:
        result = result.resized(size)
    source, scale = np.ascontiguousarray(image), max(1.0, max(size) / _PLAIN_SIDE)
    if "attention" in layers and result.attention_map is not None:
        source = drawing.draw_heat(source, result.attention_map)
    canvas = source.copy()
    if result.no_target:
        drawing.draw_banner(canvas, f"score {result.no_target_score:.2f}", scale)
        return canvas
    regions = result.regions()
    if "masks" in layers:
        for i, region in reversed(list(enumerate(regions))):
            if region.rle is not None:
                mask = decode_mask(region.rle)
                drawing.draw_mask(canvas, mask, drawing.instance_color(i), source, scale)
    if "mask" in layers:
        drawing.draw_mask(canvas, result.mask, drawing.instance_color(1), source, scale)
    if "boxes" in layers:
        for i, region in reversed(list(enumerate(regions))):
            drawing.draw_box(canvas, region.box, drawing.instance_color(i), scale)
        tags = [f"{i}  {region.score:.2f}" for i, region in enumerate(regions, start=1)]
        drawing.draw_tags(canvas, np.array([region.box for region in regions]), tags, scale)
    if "points" in layers:
        drawing.draw_points(canvas, result.points, len(result.points), scale)
    return canvas
