"""Reader of RefCOCO, RefCOCO+ and RefCOCOg (classic referring expressions: exactly one target)."""

from typing import Any, Dict, List, Optional

from .common import load_referring
from .fields import RecordError, list_ids, short


def load_refcoco(
    annotation_file: str,
    instances_file: str,
    image_root: str,
    split: str,
    skipped: Optional[List[str]] = None,
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
        target_ids=single_target,
        skipped=skipped,
    )


def single_target(ref: Dict[str, Any], sentence: Dict[str, Any]) -> List[int]:
    """The one annotation id of a record, as a list; some copies have it in a list of one."""
    ids = list_ids(ref["ann_id"])
    if len(ids) != 1 or ids[0] < 0:
        raise RecordError(
            "ann_id",
            f"expected one annotation id, found {short(ref['ann_id'])}; for target sets use "
            "load_grefcoco",
        )
    return ids
