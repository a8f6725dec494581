"""Identity of a data set: one hash of what its samples say, whatever file or order they came in."""

import hashlib
import json
import os
from typing import Any, Dict, Iterable

from igvg_d2.io.rle import to_json


def fingerprint(samples: Iterable[Dict[str, Any]]) -> str:
    """SHA-256 over the content of dataset dicts.

    Two data sets have the same fingerprint if they ask the same questions with the same answers:
    sample ids, expressions, images (id, file name without folder, size) and targets (id, box,
    mask, crowd or not). The order of samples and of targets, folders, file formats and keys that
    are not listed do not matter.

    Args:
        samples: dataset dicts as described in :mod:`igvg_d2.data.datasets.common`.
    """
    # Expressions about one object share its annotation; the reference keeps the id() valid.
    targets: Dict[int, Any] = {}
    digests = []
    for sample in samples:
        answer = []
        for annotation in sample["annotations"]:
            key = id(annotation)
            if key not in targets:
                targets[key] = (annotation, _digest(_target_facts(annotation)))
            answer.append(targets[key][1])
        facts = [
            *(sample["sample_id"], sample["expression"], sample.get("image_id")),
            *(os.path.basename(sample["file_name"]), sample["height"], sample["width"]),
        ]
        digests.append(_digest([*facts, sorted(answer)]))
    return _digest(sorted(digests))


def _target_facts(annotation: Dict[str, Any]) -> list:
    """What makes a target, as values JSON can write."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        rle = to_json(segmentation)
        segmentation = [rle["size"], rle["counts"]]
    box = [float(value) for value in annotation["bbox"]]
    flags = [int(annotation["bbox_mode"]), int(annotation.get("iscrowd", 0))]
    return [annotation.get("id"), box, *flags, segmentation]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode("ascii")).hexdigest()
