"""Reader of gRefCOCO (generalized referring expressions: no target, one or several)."""

from typing import Any, Dict, List, Optional

from .common import load_referring
from .fields import RecordError, list_ids

NO_TARGET_ID = -1


def load_grefcoco(
    annotation_file: str,
    instances_file: str,
    image_root: str,
    split: str,
    with_scene: bool = False,
    skipped: Optional[List[str]] = None,
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
        with_scene: add all objects of the picture; ``INPUT.SCENE_CATEGORIES`` needs them.
        skipped: gets a message for each malformed record, which is left out; None makes it an
            error.

    Returns:
        Dataset dicts, one per sentence; see :mod:`igvg_d2.data.datasets.common`.
    """
    return load_referring(
        annotation_file,
        instances_file,
        image_root,
        split,
        target_ids=_target_ids,
        with_scene=with_scene,
        skipped=skipped,
    )


def _target_ids(ref: Dict[str, Any], sentence: Dict[str, Any]) -> List[int]:
    """Annotation ids of the target set."""
    ids = list_ids(ref["ann_id"])
    targets = [i for i in ids if i != NO_TARGET_ID]
    if targets and len(targets) != len(ids):
        raise RecordError(
            "ann_id", f"expected either targets or [{NO_TARGET_ID}] (no target), found {ids}"
        )
    return targets
