"""Images and objects of a COCO-style instances.json, looked up by id."""

import os
from typing import Any, Container, Dict, Optional, Set, Union

import pycocotools.mask as mask_util
from detectron2.structures import BoxMode

from igvg_d2.io.rle import to_rle_and_polygons

from .absent_kinds import ClassNames, stated_kind
from .annotation_files import iterate_json
from .common import (
    RecordError,
    is_int,
    read_box,
    read_id,
    read_int,
    read_size,
    read_text,
    short,
)

ImageId = Union[int, str]


class InstanceFile:
    """Images and objects of a COCO-style ``instances.json``, looked up by id.

    What an expression names is checked and converted the first time and shared afterwards:
    gRefCOCO has 260,000 expressions about 60,000 of its 200,000 objects.

    Args:
        path: the ``instances.json`` that belongs to the annotation file.
        image_root: folder of the images it names.
        ann_ids: objects that will be asked for; others are not kept. None keeps all.

    Raises:
        ValueError: it is not such a file, or an id in it is missing or means two things.
    """

    def __init__(self, path: str, image_root: str, ann_ids: Optional[Container[int]] = None):
        self.path = path
        self.image_root = image_root
        self._tables: Dict[str, Dict[Any, Any]] = {"images": {}, "annotations": {}}
        self._sizes = {"images": 0, "annotations": 0}
        self._images: Dict[ImageId, Dict[str, Any]] = {}
        self._converted: Dict[int, Dict[str, Any]] = {}
        # Of all objects, also those that are not kept.
        self._classes: Dict[ImageId, Set[int]] = {}
        names: Dict[int, str] = {}
        kind = "a COCO detection file, a JSON object"
        for key, item in iterate_json(path, ("images", "annotations"), kind, ("categories",)):
            if key == "categories":
                name = item.get("name") if isinstance(item, dict) else None
                if isinstance(name, str) and is_int(item.get("id")):
                    names[item["id"]] = name
                continue
            number = self._read_id(key, self._sizes[key], item)
            self._sizes[key] += 1
            if key == "annotations":
                self._note_class(item)
            if key == "images" or ann_ids is None or number in ann_ids:
                self._add(key, number, item)
        self._class_names = ClassNames(names)

    def _note_class(self, item: Dict[str, Any]) -> None:
        """Which classes an image has objects of, crowds too."""
        image_id, class_id = item.get("image_id"), item.get("category_id")
        if (is_int(image_id) or isinstance(image_id, str)) and is_int(class_id):
            self._classes.setdefault(image_id, set()).add(class_id)

    def absent_kind(self, record: Any, image_id: ImageId, expression: str) -> Dict[str, str]:
        """``absent_kind`` of a dataset dict without target, as the record states it or by rule."""
        classes = self._classes.get(image_id, set())
        kind = stated_kind(record) or self._class_names.kind(expression, classes)
        return {"absent_kind": kind} if kind else {}

    def _read_id(self, key: str, position: int, item: Any) -> Any:
        """Id of an entry of one of the lists; those of images may be text."""
        try:
            return (read_id if key == "images" else read_int)(item, "id")
        except RecordError as error:
            where = f"{self.path}: {key}[{position}], field 'id'"
            raise ValueError(f"{where}: {error}") from error

    def _add(self, key: str, number: Any, item: Dict[str, Any]) -> None:
        """Keep an entry; the same twice is the same, anything else under its id is an error."""
        known = self._tables[key].setdefault(number, item)
        if known is not item and known != item:
            raise ValueError(
                f"{self.path}: id {number} stands for two different entries of '{key}'; ids must "
                "be unique"
            )

    def image(self, image_id: ImageId) -> Dict[str, Any]:
        """``image_id``, ``file_name`` with the folder, ``height`` and ``width`` of an image."""
        if image_id not in self._images:
            item = self._find("images", "image_id", image_id)
            try:
                file_name, size = read_text(item, "file_name"), read_size(item)
            except RecordError as error:
                where = f"'{error.field}' of image {image_id} of {self.path}"
                raise RecordError("image_id", f"{where}: {error}") from error
            path = os.path.join(self.image_root, file_name)
            self._images[image_id] = {"image_id": image_id, "file_name": path, **size}
        return self._images[image_id]

    def target(self, ann_id: int, image_id: ImageId) -> Dict[str, Any]:
        """Returns the annotation dict of an object (shared: do not modify).

        Crowds are targets like any other: the mapper trains on them, and evaluators apply the rule
        of their protocol to ``iscrowd`` (ReLA drops crowds, GREC keeps them).

        Args:
            ann_id: COCO annotation id.
            image_id: the image the expression is about; the object must be in it.
        """
        item = self._find("annotations", "ann_id", ann_id)
        if item.get("image_id") != image_id:
            raise RecordError(
                "ann_id",
                f"annotation {ann_id} belongs to image {short(item.get('image_id'))} in "
                f"{self.path}, not to image {short(image_id)} of this record",
            )
        if ann_id not in self._converted:
            image = self.image(image_id)
            try:
                self._converted[ann_id] = to_annotation(
                    item, ann_id, image["height"], image["width"]
                )
            except RecordError as error:
                where = f"'{error.field}' of annotation {ann_id} of {self.path}"
                raise RecordError("ann_id", f"{where}: {error}") from error
        return self._converted[ann_id]

    def _find(self, table: str, field: str, number: Any) -> Dict[str, Any]:
        """An entry as it stands in the file."""
        try:
            return self._tables[table][number]
        except (KeyError, TypeError):
            raise RecordError(
                field,
                f"{table[:-1]} {short(number)} is not among the {self._sizes[table]} {table} of "
                f"{self.path}; annotation and instances file must come from the same release",
            ) from None


def to_annotation(item: Dict[str, Any], ann_id: int, height: int, width: int) -> Dict[str, Any]:
    """A COCO annotation as a target of a dataset dict, see :mod:`igvg_d2.data.datasets.common`.

    Args:
        item: COCO annotation: ``segmentation`` or ``bbox`` or both, optionally ``iscrowd``. A box
            that is missing or all zero is replaced by that of the mask. Without segmentation (no
            key, null, or an empty list) the target has a box only.
        ann_id: its id in the result.
        height, width: of the original image.
    """
    rle, polygons, segmentation = None, [], item.get("segmentation")
    try:
        if segmentation not in (None, []):
            rle, polygons = to_rle_and_polygons(segmentation, height, width)
    except ValueError as error:
        raise RecordError("segmentation", str(error)) from error
    bbox = read_box(item, "bbox")
    # All zeros is how files say that there is no box. Another box without area is a mistake, which
    # is for the mapper to report.
    if bbox is None or not any(bbox):
        if rle is None:
            raise RecordError("segmentation", f"found neither a mask nor a box: {short(item)}")
        bbox = mask_util.toBbox(rle).tolist()
    iscrowd = item.get("iscrowd", 0)
    if iscrowd not in (0, 1, None):
        raise RecordError("iscrowd", f"expected 0 or 1, found {short(iscrowd)}")
    annotation = {
        "id": ann_id,
        "bbox": bbox,
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 0,
        "iscrowd": int(iscrowd or 0),
    }
    if rle is not None:
        annotation["segmentation"] = rle
    if polygons:
        annotation["polygons"] = polygons
    return annotation
