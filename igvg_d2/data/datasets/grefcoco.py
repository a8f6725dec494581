"""Reader of gRefCOCO (generalized referring expressions: no target, one or several)."""

from typing import Any, Dict, List

from .common import load_referring

NO_TARGET_ID = -1


def load_grefcoco(
    annotation_file: str, instances_file: str, image_root: str, split: str
) -> List[Dict[str, Any]]:
    """Reads one split of gRefCOCO, or of anything written in its format (Shapes).

    Deviations from the official loaders, which crash on them or drop them silently: targets that
    are crowds or stored as RLE are kept as masks; records without a sentence are skipped;
    ``no_target`` is ignored because ``ann_id`` says the same.

    Args:
        annotation_file: ``grefs(unc).json``, or the pickle of the same content.
        instances_file: the ``instances.json`` beside it.
        image_root: folder with the COCO train2014 images.
        split: "train", "val", "testA" or "testB".

    Returns:
        Dataset dicts, one per sentence; see :mod:`igvg_d2.data.datasets.common`.
    """
    return load_referring(
        annotation_file, instances_file, image_root, split, target_ids=_target_ids
    )


def _target_ids(ann_id: Any) -> List[int]:
    """Annotation ids of the target set; the official files use a list, some records a bare int."""
    ids = [ann_id] if isinstance(ann_id, int) else ann_id
    if not isinstance(ids, list) or not all(isinstance(i, int) for i in ids):
        raise ValueError(f"expected an int or a list of ints, found {ann_id!r}")
    targets = [i for i in ids if i != NO_TARGET_ID]
    if targets and len(targets) != len(ids):
        raise ValueError(f"expected either targets or [{NO_TARGET_ID}] (no target), found {ids}")
    return targets
