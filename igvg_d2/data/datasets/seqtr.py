"""Reader of ``seqtr_type``, the JSON in which the paper's released project distributes its data.

Every file is an object: name of a split -> list of samples. Three kinds of samples are told apart
by what they hold, not by the name of the file: one object (RefCOCO, RefCOCO+, RefCOCOg: ``bbox``,
``mask``, list ``expressions``), an object with a list ``annotations`` (gRefCOCO, Ref-ZOM), and a
list of such objects (R-RefCOCO: the true and false sentences of an object).
"""

import json
import os
from typing import Any, Dict, List, Optional

from detectron2.utils.file_io import PathManager

from .annotation_files import paused_garbage_collection, read_json
from .common import (
    RecordError,
    Sample,
    check_text,
    collect_samples,
    is_int,
    list_ids,
    log_counts,
    make_sample,
    read_field,
    read_id,
    read_int,
    read_list,
    read_size,
    read_text,
    short,
)
from .instances import to_annotation

# Pairs [start, end) of the samples of one object, for each split of R-RefCOCO's evaluation.
_INDEX_FILE = "instance_index.json"


def load_seqtr(
    annotation_file: str, image_root: str, split: str, skipped: Optional[List[str]] = None
) -> List[Sample]:
    """Reads one split of a file of the released project.

    Every expression becomes a dataset dict, whereas the released loaders draw one of a sample's
    expressions at random. As there, targets end at the first annotation without a box; unlike
    there, masks may be RLE.

    Ids: ``ref_id`` and ``sent_id`` of the file where it has them; else the position of the sample
    and that of the expression in it. Objects without an id are numbered.

    Args:
        annotation_file: such as ``grefs/instances.json``. If the samples of R-RefCOCO's val do not
            name their ``ref_id``, ``instance_index.json`` beside it says which belong together.
        image_root: folder with the COCO images.
        split: key of the file, such as "val" or "val_refcoco_unc".
        skipped: see :mod:`igvg_d2.data.datasets.common`, also for what is returned and raised.
    """
    with paused_garbage_collection():
        content = read_json(annotation_file)
        lists = content if isinstance(content, dict) else {}
        if not isinstance(lists.get(split), list):
            raise ValueError(
                f"{annotation_file}: expected a JSON object with a list '{split}', found "
                f"{short(sorted(map(str, lists))) if lists else type(content).__name__}"
            )
        items = dict(enumerate(lists[split]))
        reader = _SeqtrReader(image_root, _read_groups(annotation_file, split, items))
        del content, lists
        samples = collect_samples(
            items,
            reader,
            lambda position, item: f"sample {position} of '{split}'",
            annotation_file,
            skipped,
        )
        log_counts(samples, annotation_file, split)
        return samples


def _read_groups(path: str, split: str, items: Dict[int, Any]) -> Optional[List[int]]:
    """Number of the object each sample of R-RefCOCO's val is about; None if the samples say it."""
    is_grouped = bool(items) and all(
        isinstance(item, list) and len(item) == 1 for item in items.values()
    )
    if not is_grouped or all(_has_ref_id(item[0]) for item in items.values()):
        return None
    index_file = os.path.join(os.path.dirname(path), _INDEX_FILE)
    if not PathManager.isfile(index_file):
        raise ValueError(
            f"{path}: the samples of '{split}' have no 'ref_id', and '{index_file}', which says "
            "which of them are about the same object, is missing; it belongs to the same download"
        )
    index = read_json(index_file)
    pairs = index.get(split) if isinstance(index, dict) else None
    groups: List[int] = []
    for number, pair in enumerate(pairs if isinstance(pairs, list) else []):
        is_pair = isinstance(pair, list) and len(pair) == 2 and all(map(is_int, pair))
        if not is_pair or pair[0] != len(groups) or pair[1] <= pair[0] or pair[1] > len(items):
            raise ValueError(
                f"{index_file}: '{split}', pair {number}: expected [{len(groups)}, end], at most "
                f"{len(items)}, found {short(pair)}"
            )
        groups.extend([number] * (pair[1] - pair[0]))
    if len(groups) != len(items):
        raise ValueError(
            f"{index_file}: '{split}': expected pairs for {len(items)} samples, found "
            f"{len(groups)}; both files must come from the same release"
        )
    return groups


def _has_ref_id(sample: Any) -> bool:
    expressions = sample.get("expressions") if isinstance(sample, dict) else None
    return isinstance(expressions, dict) and "ref_id" in expressions


class _SeqtrReader:
    """Turns a sample of the file into dataset dicts."""

    def __init__(self, image_root: str, groups: Optional[List[int]]):
        self.image_root = image_root
        self.groups = groups
        self._converted: Dict[str, Dict[str, Any]] = {}
        self._free_id = -1

    def __call__(self, position: int, item: Any) -> List[Sample]:
        """Raises RecordError for a wrong field."""
        ref_id = position if self.groups is None else self.groups[position]
        parts = item if isinstance(item, list) else [item]
        if not parts:
            raise RecordError("expressions", "expected a sample, found an empty list")
        samples: List[Sample] = []
        for part in parts:
            # In a group sentences are counted through; alone in a group, by the sample.
            first = position if self.groups is not None else len(samples)
            samples.extend(self._expand(part, ref_id, first))
        return samples

    def _expand(self, sample: Any, ref_id: int, first: int) -> List[Sample]:
        """Dataset dicts of one object of the file, one per expression."""
        image_id, size = read_int(sample, "image_id"), read_size(sample)
        file_name = f"COCO_train2014_{image_id:012d}.jpg"
        if "file_name" in sample:
            file_name = read_text(sample, "file_name")
        path = os.path.join(self.image_root, file_name)
        image = {"image_id": image_id, "file_name": path, **size}
        expressions = read_field(sample, "expressions")
        ids = expressions if isinstance(expressions, dict) else {}
        texts = read_field(ids, "raw") if ids else expressions
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not texts:
            found = short(texts)
            raise RecordError("expressions", f"expected one text or a list of texts, found {found}")
        for text in texts:
            check_text(text, "expressions")
        annotations = self._targets(sample, image_id, **size)
        if "ref_id" in ids:
            ref_id = read_id(ids, "ref_id")
        if "sent_id" in ids and len(texts) == 1:
            sent_ids = [read_id(ids, "sent_id")]
        else:
            prefix = f"{read_id(ids, 'sent_id')}." if "sent_id" in ids else ""
            numbers = range(first, first + len(texts))
            sent_ids = [f"{prefix}{k}" if prefix else k for k in numbers]
        return [
            make_sample(image, ref_id, sent_id, text, annotations)
            for sent_id, text in zip(sent_ids, texts)
        ]

    def _targets(self, sample: Dict[str, Any], image_id: int, height: int, width: int) -> List:
        """Annotation dicts of the targets, shared between samples about the same object."""
        if "annotations" in sample:
            items = read_list(sample, "annotations")
        else:
            segmentation = read_field(sample, "mask")
            items = [{"bbox": read_field(sample, "bbox"), "segmentation": segmentation}]
            if "id" in sample:
                items[0]["id"] = sample["id"]
            if items[0]["bbox"] is None:
                raise RecordError("bbox", "expected the box of the one target, found None")
        targets = []
        for item in items:
            if not isinstance(item, dict) or "bbox" not in item:
                raise RecordError("annotations", f"expected objects with 'bbox': {short(item)}")
            if item["bbox"] is None:
                break
            key = json.dumps([image_id, height, width, item])
            if key not in self._converted:
                self._converted[key] = to_annotation(item, self._id(item), height, width)
            targets.append(self._converted[key])
        list_ids([target["id"] for target in targets], "annotations")
        return targets

    def _id(self, item: Dict[str, Any]) -> int:
        """Id of an object; negative numbers for objects without one."""
        if "id" in item:
            return read_int(item, "id")
        self._free_id -= 1
        return self._free_id
