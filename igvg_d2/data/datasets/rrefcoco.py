"""Reader of R-RefCOCO, R-RefCOCO+ and R-RefCOCOg (one target or, for false sentences, none)."""

from typing import Any, Dict, List, Optional

from .common import load_referring
from .fields import RecordError, short
from .refcoco import single_target


def load_rrefcoco(
    annotation_file: str,
    instances_file: str,
    image_root: str,
    split: str,
    skipped: Optional[List[str]] = None,
) -> List[Dict[str, Any]]:
    """Reads one split of R-RefCOCO, R-RefCOCO+ or R-RefCOCOg.

    The format is RefCOCO's with one more key per sentence: ``exist`` False marks a sentence about
    something that is not in the picture. Without the key a sentence is true, as in the official
    loader.

    Args:
        annotation_file: ``refs(unc).p`` or ``refs(umd).p``.
        instances_file: the ``instances.json`` beside it.
        image_root: folder with the COCO train2014 images.
        split: "train" or "val".
        skipped: gets a message for each malformed record, which is left out; None makes it an
            error.

    Returns:
        Dataset dicts, one per sentence; see :mod:`igvg_d2.data.datasets.common`. The metrics group
        them by record, which is ``ref_id`` or, where several records share it, ``group_id``.
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
    """The record's object, or nothing for a false sentence."""
    exist = sentence.get("exist", True)
    if exist not in (True, False):
        raise RecordError(
            "sentences",
            f"expected 'exist' of a sentence to be true or false, found {short(exist)}",
        )
    return single_target(ref, sentence) if exist else []
