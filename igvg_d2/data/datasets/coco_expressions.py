"""The project's own format for custom data: one COCO file with expressions in it."""

from typing import Any, Dict, List, Optional

from .annotation_files import iterate_json, paused_garbage_collection
from .common import (
    RecordError,
    collect_samples,
    list_ids,
    log_counts,
    make_sample,
    read_field,
    read_id,
    read_text,
)
from .instances import InstanceFile
from .registration import register_grounding


def load_expressions(
    annotation_file: str, image_root: str, skipped: Optional[List[str]] = None
) -> List[Dict[str, Any]]:
    """Reads a COCO instances file that also says what its expressions refer to.

    ``{"images": [...], "annotations": [...], "categories": [...], "expressions": [{"id": 1,
    "image_id": 17, "text": "the two dogs", "annotation_ids": [3, 4]}, ...]}``. No annotation ids
    means no target. ``id`` may be left out; then the position counts. Exported benchmarks have
    ``ref_id`` and ``sent_id`` instead, and ``kind`` may name the type of the expression; without
    target ``absent_kind`` may say what :mod:`igvg_d2.data.datasets.absent_kinds` else concludes.

    Args:
        annotation_file: the JSON file.
        image_root: folder of the images it names.
        skipped: see :mod:`igvg_d2.data.datasets.common`, also for what is returned and raised.
    """
    with paused_garbage_collection():
        items = dict(enumerate(item for _, item in iterate_json(annotation_file, ("expressions",))))
        instances = InstanceFile(annotation_file, image_root)
        samples = collect_samples(
            items,
            lambda position, item: [_to_sample(position, item, instances)],
            lambda position, item: f"expression {position}",
            annotation_file,
            skipped,
        )
        log_counts(samples, annotation_file, "all")
        return samples


def register_expressions(name: str, annotation_file: str, image_root: str) -> None:
    """Registers a file of :func:`load_expressions` under a name for ``cfg.DATASETS``."""

    def load(skipped: Optional[List[str]] = None) -> List[Dict[str, Any]]:
        return load_expressions(annotation_file, image_root, skipped)

    metadata = {"annotation_file": annotation_file, "image_root": image_root}
    register_grounding(name, metadata, load)


def _to_sample(position: int, item: Any, instances: InstanceFile) -> Dict[str, Any]:
    """Dataset dict of an expression."""
    image_id, text = read_id(item, "image_id"), read_text(item, "text")
    ann_ids = list_ids(read_field(item, "annotation_ids"), "annotation_ids")
    id_field = next((key for key in ("ref_id", "id") if key in item), None)
    ref_id = position if id_field is None else read_id(item, id_field)
    sent_id = read_id(item, "sent_id") if "sent_id" in item else 0
    image = instances.image(image_id)
    try:
        annotations = [instances.target(ann_id, image_id) for ann_id in ann_ids]
    except RecordError as error:
        raise RecordError("annotation_ids", str(error)) from error
    sample = make_sample(image, ref_id, sent_id, text, annotations)
    for key in ("kind", "group_id"):
        if key in item:
            sample[key] = read_text(item, key)
    if not annotations:
        sample.update(instances.absent_kind(item, image_id, text))
    return sample
