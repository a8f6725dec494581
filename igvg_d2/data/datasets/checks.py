"""Is a data set whole? Files, counts, images, boxes, masks and words."""

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

import pycocotools.mask as mask_util
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from igvg_d2.io.hub import file_sha256
from igvg_d2.io.image import missing_image, read_image, size_mismatch
from igvg_d2.io.processes import map_in_processes
from igvg_d2.io.rle import to_rle

from ..bad_samples import describe_sample
from ..tokenizer import is_mostly_unknown
from .box_checks import contradicting_boxes
from .registration import load_dataset

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
    "refcoco_m_val": (0, 5598, 0),
    "ref_l4_all": (0, 45341, 0),
}
# What papers say of whole data sets or splits where it differs from the public files.
PUBLISHED: Dict[str, str] = {
    "grefcoco_unc": "278,232 expressions in all: 32,202 no target, 80,022 several (paper); 259,859 "
    "and 258,836 were counted in public files",
    "refcoco_unc": "142,210 expressions of 50,000 objects on 19,994 images",
    "refcoco+_unc": "141,564 expressions of 49,856 objects on 19,992 images",
    "refcocog_umd": "95,010 expressions of 49,822 objects on 25,799 images",
    "refcocog_google": "95,010 expressions of 49,822 objects on 25,799 images",
    "refcoco_google_train": "40,000 objects on 19,213 images",
    "refcoco_google_val": "5,000 objects on 4,559 images",
    "refcoco_google_test": "5,000 objects on 4,527 images",
    "refzom_final_train": "58,356 objects on 43,749 images; both splits together 90,199 "
    "expressions: 11,937 no target, 56,972 one, 21,290 several",
    "refzom_final_test": "16,586 objects on 11,329 images; both splits together 90,199 "
    "expressions: 11,937 no target, 56,972 one, 21,290 several",
}
# SHA-256 of releases that others have pinned.
KNOWN_FILES = {
    "cc37c5ff95373c78a6a3f98b4c7bc67fde387ea8514752a1392db64223eb3366": "gRefCOCO's public release",
    "7f86adb7f4c39db19c7f02a3cc604d17f8016e4c4e8312652d0acc4eae3a2cbd": "gRefCOCO's public release",
}
# Annotated boxes may stick out by rounding.
_TOLERANCE_PIXELS = 1.0


@dataclass
class DatasetReport:
    """What was found in one data set.

    Attributes:
        name: registered name.
        hashes: file -> SHA-256.
        images: number of different ones.
        expressions: their number.
        counts: expressions with (no, one, two, more) targets.
        masks: targets with a mask, and with a box only.
        skipped: messages of malformed records that were left out.
        problems: kind -> descriptions; empty means the data set is whole.
    """

    name: str
    hashes: Dict[str, str] = field(default_factory=dict)
    images: int = 0
    expressions: int = 0
    counts: Tuple[int, int, int, int] = (0, 0, 0, 0)
    masks: Tuple[int, int] = (0, 0)
    skipped: List[str] = field(default_factory=list)
    problems: Dict[str, List[str]] = field(default_factory=dict)

    def add(self, kind: str, description: str) -> None:
        """Note a problem."""
        self.problems.setdefault(kind, []).append(description)


def check_dataset(
    name: str,
    read_images: bool = True,
    num_workers: int = 1,
    progress: Callable[..., Iterable] = lambda items, total: items,
    skip_invalid: bool = False,
    tokenizer: Optional[Callable[[str], List[int]]] = None,
) -> DatasetReport:
    """Check one registered data set; missing or wrong files are problems in the report.

    Args:
        name: in DatasetCatalog.
        read_images: decode every image; otherwise only look whether the files are there.
        num_workers: processes that look at images.
        progress: wraps an iterable, for a progress bar; called with (items, total=...).
        skip_invalid: check the rest of a data set with malformed records; they are problems of
            kind "invalid records", and listed in ``skipped``.
        tokenizer: that of a model, to find expressions that it does not know.

    Raises:
        ChildProcessError: a process that looked at images was killed.
    """
    report = DatasetReport(name)
    try:
        samples, report.skipped = load_dataset(name, skip_invalid)
    except (FileNotFoundError, ValueError) as error:
        report.add("annotations", str(error))
        return report
    metadata = MetadataCatalog.get(name)
    for key in ("annotation_file", "instances_file", "reviewed_file"):
        path = metadata.get(key, None)
        if path is not None:
            report.hashes[path] = file_sha256(path)
    for message in report.skipped:
        report.add("invalid records", message)
    targets = Counter(min(len(sample["annotations"]), 3) for sample in samples)
    report.expressions = len(samples)
    report.counts = (targets[0], targets[1], targets[2], targets[3])
    _check_annotations(samples, report)
    if tokenizer is not None:
        _check_expressions(samples, tokenizer, report)
    sizes = {s["file_name"]: (s["height"], s["width"]) for s in samples}
    report.images = len(sizes)
    look = _read_image if read_images else _find_image
    found = map_in_processes(look, sorted(sizes.items()), num_workers)
    for problem in progress(found, total=len(sizes)):
        if problem is not None:
            report.add(*problem)
    return report


def _check_annotations(samples: List[Dict[str, Any]], report: DatasetReport) -> None:
    """Boxes within the image and about their masks, masks with pixels; every object once."""
    seen, whole, places, num_boxes = set(), [], [], 0
    for sample in samples:
        ids = [item["id"] for item in sample["annotations"] if "id" in item]
        if len(set(ids)) < len(ids):
            report.add("targets", f"{describe_sample(sample)}: one of them twice, ids {ids}")
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
            if "segmentation" not in annotation:
                num_boxes += 1
                continue
            try:
                rle = to_rle(annotation["segmentation"], sample["height"], sample["width"])
            except ValueError as error:
                report.add("masks", f"{where}: {error}")
                continue
            if not mask_util.area(rle):
                report.add("masks", f"{where}: a mask without pixels")
            whole.append({**annotation, "segmentation": rle})
            places.append(where)
    report.masks = (len(seen) - num_boxes, num_boxes)
    for index, text in contradicting_boxes(whole):
        report.add("boxes that contradict masks", f"{places[index]}: {text}")


def _check_expressions(
    samples: List[Dict[str, Any]], tokenizer: Callable[[str], List[int]], report: DatasetReport
) -> None:
    """Expressions of which a tokenizer makes no token, or knows half of the words or fewer."""
    for sample in samples:
        where = f"{describe_sample(sample)}, expression {sample['expression']!r}"
        try:
            if is_mostly_unknown(tokenizer, sample["expression"]):
                found = f"{type(tokenizer).__name__} knows half or less"
                report.add("unknown words", f"{where}: {found}")
        except ValueError as error:
            report.add("expressions", f"{where}: {error}")


def _find_image(item):
    """(kind, description) if the file is not there."""
    path, _ = item
    if os.path.isfile(path):
        return None
    if os.path.exists(path):
        return "unreadable images", f"{path}: it is not a regular file"
    return "missing images", missing_image(path)


def _read_image(item):
    """(kind, description) if the image cannot be used."""
    path, size = item
    try:
        found = read_image(path, "RGB").shape[:2]
    except FileNotFoundError as error:
        return "missing images", str(error)
    except ValueError as error:
        return "unreadable images", str(error)
    if found != size:
        return "sizes", f"{path}: {size_mismatch(path, found, size)}"
    return None


def published(name: str) -> str:
    """What papers say about a data set or, failing that, about the whole of which it is a split."""
    name = name.replace("refcocop_", "refcoco+_")
    return PUBLISHED.get(name, PUBLISHED.get(name.rsplit("_", 1)[0], ""))
