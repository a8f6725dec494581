"""Files of gRefCOCO from generated images: polygons, annotation records, statistics.

Needs numpy and PIL only. Polygons follow the pixel edges, so that pycocotools rasterises them back
to exactly the visible mask; contour tracers that run through pixel centers (cv2) would not.
"""

import hashlib
import json
import os
from collections import Counter
from functools import partial
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

import numpy as np
from PIL import Image

from igvg_d2.io.atomic import write_atomically
from igvg_d2.io.processes import map_in_processes

from .generator import GENERATOR_VERSION, SPLITS, SceneExpression, SplitConfig, generate_image
from .render import SHAPES
from .scene import Scene, visible_box

IMAGE_FOLDER = os.path.join("images", "train2014")
ANNOTATION_FOLDER = "grefcoco"
REFS_FILE = os.path.join(ANNOTATION_FOLDER, "grefs(unc).json")
INSTANCES_FILE = os.path.join(ANNOTATION_FOLDER, "instances.json")
STATISTICS_FILE = "statistics.json"
JPEG_QUALITY = 95

# Directions (dx, dy) of a walk along pixel edges, in the order of right turns (y points down).
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


def _boundary_edges(mask: np.ndarray) -> Dict[Tuple[int, int], List[int]]:
    """Directed pixel edges with the mask on their right: start corner (x, y) -> steps."""
    if not mask.any():
        return {}
    left, top, width, height = visible_box(mask)
    padded = np.pad(mask[top : top + height, left : left + width], 1)
    inside = padded[1:-1, 1:-1]
    sides = (
        (inside & ~padded[:-2, 1:-1], 0, 0, 0),  # top edge, walked to the right
        (inside & ~padded[1:-1, 2:], 1, 1, 0),  # right edge, walked down
        (inside & ~padded[2:, 1:-1], 2, 1, 1),  # bottom edge, walked to the left
        (inside & ~padded[1:-1, :-2], 3, 0, 1),  # left edge, walked up
    )
    edges: Dict[Tuple[int, int], List[int]] = {}
    for edge, step, dx, dy in sides:
        for y, x in np.argwhere(edge).tolist():
            edges.setdefault((x + dx + left, y + dy + top), []).append(step)
    return edges


def _trace_loops(mask: np.ndarray) -> List[List[Tuple[int, int]]]:
    """Corners of every boundary loop; outer loops run clockwise on screen, holes the other way."""
    edges = _boundary_edges(mask)
    loops = []
    while edges:
        start = next(iter(edges))
        corner, step, loop = start, None, []
        while corner in edges:
            steps = edges[corner]
            # Where two pixels touch at a corner only, a right turn stays on the same pixel, so
            # every loop belongs to one 4-connected piece.
            choice = steps[0] if step is None or len(steps) == 1 else (step + 1) % 4
            steps.remove(choice)
            if not steps:
                del edges[corner]
            if choice != step:
                loop.append(corner)
            step = choice
            corner = (corner[0] + _STEPS[step][0], corner[1] + _STEPS[step][1])
        loops.append(loop)
    return loops


def _signed_area(loop: List[Tuple[int, int]]) -> float:
    """Shoelace area; positive for outer loops."""
    following = loop[1:] + loop[:1]
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(loop, following)) / 2


def mask_to_polygons(mask: np.ndarray) -> List[List[int]]:
    """Polygons along the pixel edges whose union is exactly the mask.

    COCO polygons cannot have holes, so a mask with a hole is cut along a column through the hole.

    Args:
        mask: bool (height, width).

    Returns:
        one [x0, y0, x1, y1, ...] per piece, in pixel corners; [] when empty.
    """
    loops = _trace_loops(mask)
    holes = [loop for loop in loops if _signed_area(loop) < 0]
    if not holes:
        return [[value for corner in loop for value in corner] for loop in loops]
    columns = [x for x, _ in holes[0]]
    cut = (min(columns) + max(columns)) // 2
    if cut == min(columns):
        cut += 1  # a hole one pixel wide: cut along its right side
    halves = np.zeros((2, *mask.shape), dtype=bool)
    halves[0, :, :cut], halves[1, :, cut:] = mask[:, :cut], mask[:, cut:]
    return mask_to_polygons(halves[0]) + mask_to_polygons(halves[1])


def _instance_records(scene: Scene, image_id: int) -> List[Dict[str, Any]]:
    """COCO annotations of every object, referred to or not."""
    return [
        {
            "id": image_id * 10 + number,
            "image_id": image_id,
            "category_id": SHAPES.index(item.shape) + 1,
            "bbox": [float(value) for value in item.box],
            "area": float(mask.sum()),
            "iscrowd": 0,
            "segmentation": mask_to_polygons(mask),
            "attributes": {"color": item.color, "size": item.size},
            "visible_fraction": round(scene.visible_fractions[number], 4),
        }
        for number, (item, mask) in enumerate(zip(scene.objects, scene.masks))
    ]


def _ref_records(
    expressions: List[SceneExpression], split: SplitConfig, image: Dict[str, Any], scene: Scene
) -> List[Dict[str, Any]]:
    """Refs of one image in the official schema, with the extra keys kind and no_target_kind."""
    records = []
    for number, expression in enumerate(expressions):
        ref_id = image["id"] * 10 + number
        sentences = []
        for index, raw in enumerate(expression.sentences):
            sent = raw.replace(",", "")
            sentences.append(
                {
                    "sent_id": ref_id * 10 + index,
                    "sent": sent,
                    "raw": raw,
                    "tokens": sent.split(),
                    "kind": expression.meaning.kind,
                    "no_target_kind": expression.plan.no_target_kind,
                }
            )
        targets = expression.targets
        shapes = [SHAPES.index(scene.objects[target].shape) + 1 for target in targets]
        records.append(
            {
                "ref_id": ref_id,
                "ann_id": [image["id"] * 10 + target for target in targets] or [-1],
                "category_id": shapes or [-1],
                "image_id": image["id"],
                "split": split.name,
                "sentences": sentences,
                "sent_ids": [sentence["sent_id"] for sentence in sentences],
                "file_name": image["file_name"],
                "no_target": not targets,
            }
        )
    return records


def _write_image(job: Tuple[int, int], *, output: str, seed: int) -> Dict[str, Any]:
    """Generate one image, write its JPEG and return its records (runs in a worker process)."""
    split, index = SPLITS[job[0]], job[1]
    scene, pixels, expressions = generate_image(seed, split, index)
    # Unique over the splits and independent of the size of the data set.
    image_id = split.index * 100_000 + index
    image = {
        "id": image_id,
        "file_name": f"COCO_train2014_{image_id:012d}.jpg",
        "height": scene.height,
        "width": scene.width,
    }
    path = os.path.join(output, IMAGE_FOLDER, image["file_name"])
    Image.fromarray(pixels).save(path, quality=JPEG_QUALITY, subsampling=0)
    return {
        "image": image,
        "annotations": _instance_records(scene, image_id),
        "refs": _ref_records(expressions, split, image, scene),
    }


def _write_json(path: str, content: Any, indent: Optional[int] = None) -> str:
    """Write JSON atomically and return the SHA-256 of the file."""
    separators = (",", ": ") if indent else (",", ":")
    data = json.dumps(content, indent=indent, separators=separators).encode("ascii")
    write_atomically(path, data)
    return hashlib.sha256(data).hexdigest()


def count_expressions(refs: Iterable[Dict[str, Any]]) -> Dict[str, Dict[str, Any]]:
    """Count the expressions of ``grefs(unc).json`` per split.

    Returns:
        split -> {"images": int, "expressions": int, "cardinality": {"0", "1", "2", "3+": int},
        "kind": {kind: int}, "no_target_kind": {absent, swap, false: int}}.
    """
    images: Dict[str, set] = {}
    counters: Dict[str, Dict[str, Counter]] = {}
    for ref in refs:
        number = 0 if ref["ann_id"] == [-1] else len(ref["ann_id"])
        images.setdefault(ref["split"], set()).add(ref["image_id"])
        names = ("cardinality", "kind", "no_target_kind")
        counts = counters.setdefault(ref["split"], {name: Counter() for name in names})
        for sentence in ref["sentences"]:
            counts["cardinality"]["3+" if number >= 3 else str(number)] += 1
            counts["kind"][sentence["kind"]] += 1
            if number == 0:
                counts["no_target_kind"][sentence["no_target_kind"]] += 1
    return {
        split: {
            "images": len(images[split]),
            "expressions": sum(counts["kind"].values()),
            **{name: dict(sorted(counter.items())) for name, counter in counts.items()},
        }
        for split, counts in counters.items()
    }


def write_shapes(
    output: str,
    seed: int,
    *,
    scale: float = 1.0,
    num_workers: int = 0,
    progress: Optional[Callable[[int, int], None]] = None,
) -> Dict[str, Any]:
    """Write the data set: images, ``grefs(unc).json``, ``instances.json`` and statistics.

    Same seed and scale, same bytes, whatever ``num_workers`` is. ``statistics.json`` is written
    last, so its presence means that the data set is complete.

    Args:
        output: folder of the data set; created when missing.
        seed: any integer >= 0.
        scale: factor on the number of images of every split (at least one image each). A smaller
            data set of the same seed holds the first images of the larger one.
        num_workers: processes; 0 and 1 generate in this process.
        progress: called as ``progress(done, total)`` after each image.

    Returns:
        content of ``statistics.json``: generator_version, seed, scale, sha256 {file: hex digest},
        splits (see `count_expressions`).
    """
    for folder in (IMAGE_FOLDER, ANNOTATION_FOLDER):
        os.makedirs(os.path.join(output, folder), exist_ok=True)
    if os.path.isfile(os.path.join(output, STATISTICS_FILE)):
        os.remove(os.path.join(output, STATISTICS_FILE))  # not complete until the end
    jobs = [
        (position, index)
        for position, split in enumerate(SPLITS)
        for index in range(max(round(split.num_images * scale), 1))
    ]
    images, annotations, refs = [], [], []
    work = partial(_write_image, output=output, seed=seed)
    for done, record in enumerate(map_in_processes(work, jobs, num_workers), start=1):
        images.append(record["image"])
        annotations.extend(record["annotations"])
        refs.extend(record["refs"])
        if progress is not None:
            progress(done, len(jobs))
    categories = [
        {"id": number, "name": shape, "supercategory": "shape"}
        for number, shape in enumerate(SHAPES, start=1)
    ]
    instances = {"images": images, "annotations": annotations, "categories": categories}
    statistics = {
        "generator_version": GENERATOR_VERSION,
        "seed": seed,
        "scale": scale,
        "sha256": {
            REFS_FILE: _write_json(os.path.join(output, REFS_FILE), refs),
            INSTANCES_FILE: _write_json(os.path.join(output, INSTANCES_FILE), instances),
        },
        "splits": count_expressions(refs),
    }
    _write_json(os.path.join(output, STATISTICS_FILE), statistics, indent=1)
    return statistics
