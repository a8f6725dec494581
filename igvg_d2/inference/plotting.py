"""An answer drawn over its image, in the size of the image."""

from typing import Sequence

import numpy as np

from igvg_d2.visualization import drawing

from .masks import decode_mask

LAYERS = ("attention", "masks", "mask", "boxes", "points")


def draw_result(result, image: np.ndarray, layers: Sequence[str]) -> np.ndarray:
    """See :meth:`igvg_d2.inference.GroundingResult.plot`."""
    unknown = [layer for layer in layers if layer not in LAYERS]
    if isinstance(layers, str) or unknown:
        raise ValueError(f"layers must be a list of some of {LAYERS}, got {layers!r}.")
    if image.shape[:2] != result.orig_shape:
        raise ValueError(
            f"the image has height, width = {image.shape[:2]}, the answer is about one of "
            f"{result.orig_shape}."
        )
    canvas = np.ascontiguousarray(image).copy()
    if "attention" in layers and result.attention_map is not None:
        canvas = drawing.draw_heat(canvas, result.attention_map)
    if result.no_target:
        drawing.draw_banner(canvas, f"score {result.no_target_score:.2f}")
        return canvas
    source = canvas.copy()
    regions = result.regions()
    if "masks" in layers:
        for i, region in reversed(list(enumerate(regions))):
            if region.rle is not None:
                mask = decode_mask(region.rle)
                drawing.draw_mask(canvas, mask, drawing.instance_color(i), source)
    if "mask" in layers:
        drawing.draw_mask(canvas, result.mask, drawing.instance_color(1), source)
    if "boxes" in layers:
        for i, region in reversed(list(enumerate(regions))):
            drawing.draw_box(canvas, region.box, drawing.instance_color(i))
        tags = [f"{i}  {region.score:.2f}" for i, region in enumerate(regions, start=1)]
        drawing.draw_tags(canvas, np.array([region.box for region in regions]), tags)
    if "points" in layers:
        drawing.draw_points(canvas, result.points, len(result.points))
    return canvas
