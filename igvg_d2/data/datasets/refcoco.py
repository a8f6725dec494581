"""Reader of RefCOCO, RefCOCO+ and RefCOCOg (classic referring expressions: exactly one target)."""

from typing import Any, Dict, List

from .common import load_referring


def load_refcoco(
    annotation_file: str, instances_file: str, image_root: str, split: str
) -> List[Dict[str, Any]]:
    """Reads one split of RefCOCO, RefCOCO+ or RefCOCOg.

    The files are pickles, which can carry code; they are read by an unpickler that accepts plain
    values only.

    Args:
        annotation_file: ``refs(unc).p``, ``refs(umd).p``, ``refs(google).p``, or JSON of the same
            content.
        instances_file: the ``instances.json`` beside it.
        image_root: folder with the COCO train2014 images.
        split: "train", "val", "testA", "testB" (unc) or "train", "val", "test" (umd). Compared
            exactly, whereas the refer API takes "test" for testA and testB together.

    Returns:
        Dataset dicts, one per sentence; see :mod:`igvg_d2.data.datasets.common`.
    """
    return load_referring(
        annotation_file, instances_file, image_root, split, target_ids=single_target
    )


def single_target(ref: Dict[str, Any], sentence: Dict[str, Any]) -> List[int]:
    """The one annotation id of a record, as a list."""
    ann_id = ref["ann_id"]
    if not isinstance(ann_id, int) or ann_id < 0:
        raise ValueError(
            f"expected one annotation id, found {ann_id!r}; for target sets use load_grefcoco"
        )
    return [ann_id]
