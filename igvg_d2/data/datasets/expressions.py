"""The project's own format for custom data: one COCO file with expressions in it."""

from typing import Any, Dict, List

from .common import list_ids, records_from_refs, register_grounding
from .files import describe, read_json
from .instances import InstanceFile

_FIELDS = {"image_id", "text", "annotation_ids"}


def load_expressions(annotation_file: str, image_root: str) -> List[Dict[str, Any]]:
    """Reads a COCO instances file that also says what its expressions refer to.

    ``{"images": [...], "annotations": [...], "categories": [...], "expressions": [{"id": 1,
    "image_id": 17, "text": "the two dogs", "annotation_ids": [3, 4]}, ...]}``. No annotation ids
    means no target. ``id`` may be left out; then the position counts.

    Args:
        annotation_file: the JSON file.
        image_root: folder of the images it names.

    Returns:
        Dataset dicts, one per expression; see :mod:`igvg_d2.data.datasets.common`.

    Raises:
        ValueError: names the file, the expression and the field.
    """
    content = read_json(annotation_file)
    expressions = content.get("expressions") if isinstance(content, dict) else None
    if not isinstance(expressions, list):
        raise ValueError(
            f"{annotation_file}: expected a JSON object with a list 'expressions', found "
            f"{describe(content)}"
        )
    refs = [_to_ref(item, i, annotation_file) for i, item in enumerate(expressions)]
    return records_from_refs(
        refs,
        InstanceFile(annotation_file),
        image_root,
        split="all",
        target_ids=lambda ref, sentence: list_ids(ref["ann_id"]),
        source=annotation_file,
    )


def register_expressions(name: str, annotation_file: str, image_root: str) -> None:
    """Registers a file of :func:`load_expressions` under a name for ``cfg.DATASETS``.

    Args:
        name: new name in Detectron2's catalogs.
        annotation_file, image_root: see :func:`load_expressions`; opened when the data are used.
    """
    metadata = {"annotation_file": annotation_file, "image_root": image_root}
    register_grounding(name, metadata, lambda: load_expressions(annotation_file, image_root))


def _to_ref(item: Any, position: int, path: str) -> Dict[str, Any]:
    """An expression as a record of the refer API with one sentence."""
    where = f"{path}: expression {position}"
    if not isinstance(item, dict) or not _FIELDS <= item.keys():
        raise ValueError(f"{where}: expected the keys {sorted(_FIELDS)}, found {describe(item)}")
    text = item["text"]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: 'text' must have a word, found {text!r}")
    return {
        "ref_id": item.get("id", position),
        "ann_id": item["annotation_ids"],
        "image_id": item["image_id"],
        "split": "all",
        "sentences": [{"sent_id": 0, "raw": text}],
    }
