"""Is a data set whole? Files, counts, pictures, boxes and masks."""

import hashlib
import multiprocessing
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterable, List, Tuple

import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

# Expressions of the public files by number of targets: (none, one, several).
# gRefCOCO exists in several versions under one name; other numbers are worth a look, not an error.
KNOWN_COUNTS: Dict[str, Tuple] = {
    "grefcoco_unc_train": (19140, 120624, 69580),
    "grefcoco_unc_val": (8905, 0, 5324),
    "grefcoco_unc_testA": (4448, 5917, 8835),
    "grefcoco_unc_testB": (4673, 5646, 5744),
    "refcoco_unc_train": (0, 120624, 0),
    "refcoco_unc_val": (0, 10834, 0),
    "refcoco_unc_testA": (0, 5657, 0),
    "refcoco_unc_testB": (0, 5095, 0),
    "refcoco+_unc_train": (0, 120191, 0),
    "refcoco+_unc_val": (0, 10758, 0),
    "refcoco+_unc_testA": (0, 5726, 0),
    "refcoco+_unc_testB": (0, 4889, 0),
    "refcocog_umd_train": (0, 80512, 0),
    "refcocog_umd_val": (0, 4896, 0),
    "refcocog_umd_test": (0, 9602, 0),
    "refcocog_google_train": (0, 85474, 0),
    "refcocog_google_val": (0, 9536, 0),
}
# Annotated boxes may stick out by rounding.
_TOLERANCE_PIXELS = 1.0


@dataclass
class DatasetReport:
    """What was found in one data set.

    Attributes:
        name: registered name.
        hashes: file -> SHA-256.
        images: number of different pictures.
        counts: expressions with (no, one, several) targets.
        problems: kind -> descriptions; empty means the data set is whole.
    """

    name: str
    hashes: Dict[str, str] = field(default_factory=dict)
    images: int = 0
    counts: Tuple[int, int, int] = (0, 0, 0)
    problems: Dict[str, List[str]] = field(default_factory=dict)

    def add(self, kind: str, description: str) -> None:
        """Note a problem."""
        self.problems.setdefault(kind, []).append(description)


def check_dataset(
    name: str,
    read_images: bool = True,
    num_workers: int = 1,
    progress: Callable[..., Iterable] = lambda items, total: items,
) -> DatasetReport:
    """Check one registered data set.

    Args:
        name: in DatasetCatalog.
        read_images: decode every picture; otherwise only look whether the files are there.
        num_workers: processes that look at pictures.
        progress: wraps an iterable, for a progress bar; called with (items, total=...).

    Returns:
        the report; files that are missing or wrong are problems in it, not exceptions.
    """
    report = DatasetReport(name)
    try:
        samples = DatasetCatalog.get(name)
    except (FileNotFoundError, ValueError) as error:
        report.add("annotations", str(error))
        return report
    metadata = MetadataCatalog.get(name)
    for key in ("annotation_file", "instances_file"):
        path = metadata.get(key, None)
        if path is not None:
            report.hashes[path] = _sha256(path)
    targets = Counter(min(len(sample["annotations"]), 2) for sample in samples)
    report.counts = (targets[0], targets[1], targets[2])
    _check_annotations(samples, report)
    sizes = {s["file_name"]: (s["height"], s["width"]) for s in samples}
    report.images = len(sizes)
    look = _read_image if read_images else _find_image
    with multiprocessing.Pool(num_workers) as pool:
        found = pool.imap_unordered(look, sorted(sizes.items()), chunksize=16)
        for problem in progress(found, total=len(sizes)):
            if problem is not None:
                report.add(*problem)
    return report


def _check_annotations(samples: List[Dict[str, Any]], report: DatasetReport) -> None:
    """Boxes within the picture, masks with pixels; every object once."""
    seen = set()
    for sample in samples:
        for annotation in sample["annotations"]:
            # Expressions about one object share its annotation.
            if id(annotation) in seen:
                continue
            seen.add(id(annotation))
            where = f"image {sample['image_id']}, sample {sample['sample_id']}"
            x0, y0, x1, y1 = BoxMode.convert(
                annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS
            )
            outside = max(-x0, -y0, x1 - sample["width"], y1 - sample["height"])
            if outside > _TOLERANCE_PIXELS or x1 <= x0 or y1 <= y0:
                report.add("boxes", f"{where}: box {[round(v, 1) for v in (x0, y0, x1, y1)]}")
            if not mask_util.area(annotation["segmentation"]):
                report.add("masks", f"{where}: a mask without pixels")


def _find_image(item):
    """(kind, description) if the file is not there."""
    path, _ = item
    return None if os.path.isfile(path) else ("missing images", path)


def _read_image(item):
    """(kind, description) if the picture cannot be used."""
    path, size = item
    try:
        with Image.open(path) as image:
            image.load()
            # After EXIF rotation, as the mapper reads it.
            rotated = image.getexif().get(274, 1) >= 5
            found = image.size if rotated else image.size[::-1]
    except FileNotFoundError:
        return "missing images", path
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and more
        return "unreadable images", f"{path}: {error!r}"
    if found != size:
        return "sizes", f"{path} is {found}, the annotations say {size} (height, width)"
    return None


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
