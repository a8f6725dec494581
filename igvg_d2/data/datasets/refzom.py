"""Reader of Ref-ZOM (one target, several, or none)."""

from typing import Any, Dict, List, Optional

from .common import load_referring
from .fields import RecordError, list_ids, short

# The value of a record's "source" that means no target; all others mean one or several.
_ZERO_SOURCE = "zero"


def load_refzom(
    annotation_file: str,
    instances_file: str,
    image_root: str,
    split: str,
    skipped: Optional[List[str]] = None,
) -> List[Dict[str, Any]]:
    """Reads one split of Ref-ZOM.

    ``source`` decides whether there is a target: a "zero" record may still list annotations, which
    are ignored as in the official loader.

    Args:
        annotation_file: ``refs(final).p``, distributed as ``Ref-ZOM(final).p``.
        instances_file: the ``instances.json`` beside it.
        image_root: folder with the COCO train2014 and val2014 images together.
        split: "train" or "test".
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
        skipped=skipped,
    )


def _target_ids(ref: Dict[str, Any], sentence: Dict[str, Any]) -> List[int]:
    """Annotation ids of the target set."""
    if not isinstance(ref.get("source"), str):
        raise RecordError(
            "source",
            "the record has no 'source', which says whether there is a target; is this Ref-ZOM? "
            f"found {short(ref.get('source'))}",
        )
    if ref["source"] == _ZERO_SOURCE:
        return []
    ids = list_ids(ref["ann_id"])
    if not ids or min(ids) < 0:
        raise RecordError(
            "ann_id",
            f"expected annotation ids because 'source' is {short(ref['source'])}, "
            f"found {short(ref['ann_id'])}",
        )
    return ids
