"""Objects of a COCO-style instances.json, as RLE masks in the original image frame."""

from typing import Any, Dict, List

import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures import BoxMode

from .files import describe, read_json

_MIN_POLYGON_COORDINATES = 6


class RecordError(ValueError):
    """A wrong field of one record; the reader adds which file and which record it was.

    Args:
        field: name of the field that is wrong.
        message: what was expected and what was found.
    """

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


class InstanceFile:
    """Images and objects of a COCO-style ``instances.json``, looked up by id.

    An object is converted to an annotation dict the first time an expression names it and is shared
    afterwards: gRefCOCO has 260,000 expressions about 60,000 of its objects.

    Args:
        path: the ``instances.json`` that belongs to the annotation file.
    """

    def __init__(self, path: str):
        self.path = path
        content = read_json(path)
        if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
            raise ValueError(
                f"{path}: expected a COCO detection file, a JSON object with 'images' and "
                f"'annotations', found {describe(content)}"
            )
        self._images = {image["id"]: image for image in content["images"]}
        self._objects = {item["id"]: item for item in content["annotations"]}
        self._converted: Dict[int, Dict[str, Any]] = {}
        categories = sorted(item["id"] for item in content.get("categories", []))
        self._categories = {category: index for index, category in enumerate(categories)}
        self._scenes: Dict[int, List[int]] = {}

    def image(self, image_id: int) -> Dict[str, Any]:
        """Returns the COCO image entry (``file_name``, ``height``, ``width``) of ``image_id``."""
        try:
            return self._images[image_id]
        except (KeyError, TypeError):
            raise RecordError(
                "image_id",
                f"image {image_id!r} is not among the {len(self._images)} images of {self.path}; "
                "annotation and instances file must come from the same release",
            ) from None

    def target(self, ann_id: int, image_id: int) -> Dict[str, Any]:
        """Returns the annotation dict of an object (shared: do not modify).

        Crowd objects are targets like any other, and ``iscrowd`` says that they are crowds: the
        expression names the group, the mapper trains on it, and evaluators apply the rule of their
        protocol (ReLA drops crowds, GREC keeps them).

        Args:
            ann_id: COCO annotation id.
            image_id: the image the expression is about; the object must be in it.
        """
        if ann_id not in self._converted:
            self._converted[ann_id] = self._convert(ann_id)
        if self._objects[ann_id]["image_id"] != image_id:
            raise RecordError(
                "ann_id",
                f"annotation {ann_id} belongs to image {self._objects[ann_id]['image_id']} in "
                f"{self.path}, not to image {image_id} of this record",
            )
        return self._converted[ann_id]

    def scene(self, image_id: int) -> List[Dict[str, Any]]:
        """All objects of an image, in the order of the file (shared: do not modify).

        Returns:
            dicts with ``segmentation`` (RLE) and ``category_id``, from 0 in the order of the
            file's category ids.
        """
        if not self._scenes:
            for ann_id, item in self._objects.items():
                self._scenes.setdefault(item["image_id"], []).append(ann_id)
        objects = []
        for ann_id in self._scenes.get(image_id, ()):
            category = self._objects[ann_id].get("category_id")
            if category not in self._categories:
                raise RecordError(
                    "ann_id",
                    f"annotation {ann_id} of {self.path} has category_id {category!r}, the file's "
                    f"'categories' have {sorted(self._categories)}",
                )
            segmentation = self.target(ann_id, image_id)["segmentation"]
            objects.append(
                {"segmentation": segmentation, "category_id": self._categories[category]}
            )
        return objects

    def _convert(self, ann_id: int) -> Dict[str, Any]:
        """Annotation dict of one object, box and mask in the original image frame."""
        if ann_id not in self._objects:
            raise RecordError(
                "ann_id",
                f"annotation {ann_id} is not among the {len(self._objects)} annotations of "
                f"{self.path}; annotation and instances file must come from the same release",
            )
        item = self._objects[ann_id]
        image = self.image(item["image_id"])
        try:
            rle = to_rle(item.get("segmentation"), image["height"], image["width"])
        except ValueError as error:
            raise RecordError("ann_id", f"annotation {ann_id} of {self.path}: {error}") from error
        bbox = [float(value) for value in item.get("bbox") or (0, 0, 0, 0)]
        # All zeros is how files say that there is no box. Another box without area is a mistake,
        # which is for the mapper to report.
        if not any(bbox):
            bbox = mask_util.toBbox(rle).tolist()
        annotation = {
            "id": ann_id,
            "bbox": bbox,
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": 0,
            "segmentation": rle,
            "iscrowd": int(bool(item.get("iscrowd", 0))),
        }
        polygons = valid_polygons(item["segmentation"])
        if polygons:
            annotation["polygons"] = [np.asarray(polygon, np.float64) for polygon in polygons]
        return annotation


def to_rle(segmentation: Any, height: int, width: int) -> Dict[str, Any]:
    """Converts any COCO segmentation to one compressed RLE, parts joined by union.

    Rasterisation is pycocotools' own, which is what the benchmarks' masks are defined by.

    Args:
        segmentation: list of polygons [x0, y0, x1, y1, ...] in pixels, an RLE dict (counts
            compressed or a list of run lengths), or a list of RLE dicts (RefClef).
        height, width: of the original image.

    Returns:
        ``{"size": [height, width], "counts": bytes or str}``.

    Raises:
        ValueError: nothing to rasterise, or an RLE of another size.
    """
    if isinstance(segmentation, dict):
        return _check_rle(segmentation, height, width)
    if not isinstance(segmentation, (list, tuple)) or not segmentation:
        raise ValueError(f"expected polygons or RLE as segmentation, found {segmentation!r}")
    if isinstance(segmentation[0], dict):
        return mask_util.merge([_check_rle(part, height, width) for part in segmentation])
    polygons = valid_polygons(segmentation)
    if not polygons:
        raise ValueError(f"expected a polygon with at least three corners, found {segmentation!r}")
    parts = mask_util.frPyObjects(polygons, height, width)
    return parts[0] if len(parts) == 1 else mask_util.merge(parts)


def valid_polygons(segmentation: Any) -> List[List[float]]:
    """The polygons of a COCO segmentation that have at least three corners; ``[]`` for an RLE.

    Fewer corners have no area, and pycocotools would read four numbers as a box.
    """
    if not isinstance(segmentation, (list, tuple)):
        return []
    return [
        part
        for part in segmentation
        if not isinstance(part, dict)
        and len(part) >= _MIN_POLYGON_COORDINATES
        and len(part) % 2 == 0
    ]


def _check_rle(rle: Dict[str, Any], height: int, width: int) -> Dict[str, Any]:
    """One RLE dict, compressed, after a check of its size."""
    if "counts" not in rle or list(rle.get("size", ())) != [height, width]:
        raise ValueError(
            f"expected an RLE dict with 'counts' and size [{height}, {width}] of the image, "
            f"found keys {sorted(rle)} and size {rle.get('size')}"
        )
    if isinstance(rle["counts"], list):
        return mask_util.frPyObjects(rle, height, width)
    return rle
