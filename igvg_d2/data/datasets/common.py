"""What all readers share: from referring records to dataset dicts.

A reader turns an annotation file into dataset dicts, one per *expression*, in the original frame:

* ``file_name`` str, ``height`` int, ``width`` int, ``image_id`` int;
* ``sample_id`` str ``"<ref_id>_<sent_id>"``, unique in the split; ``ref_id`` int, ``sent_id`` int;
* ``expression`` str, as annotated (neither lower-cased nor cleaned);
* ``annotations`` list of dicts ``id`` int, ``bbox`` [x, y, w, h], ``bbox_mode``, ``category_id``
  0, ``segmentation`` (compressed COCO RLE of size [height, width], parts joined by union),
  ``iscrowd`` 0 or 1 as in the file, and, if the file has polygons and not an RLE, ``polygons``,
  float64 arrays [x0, y0, x1, y1, ...]: official protocols rasterise them in their own way. The
  empty list means no target;
* ``kind`` only if the sentence has this key (Shapes stores the type of the expression there);
* ``group_id`` str only where several records of a file share a ``ref_id``: the second and later
  ones are told apart by it (the metrics of R-RefCOCO are means over records).

Expressions about the same object share one annotation dict, so treat annotations as read-only.

The dicts come in the order of the file. A malformed record is a ValueError that names file, record
and field. A reader that is given a list ``skipped`` leaves such records out instead and adds a
message for each.
"""

import logging
from collections import Counter
from typing import Any, Callable, Dict, List, Optional

from .fields import RecordError

logger = logging.getLogger(__name__)

Sample = Dict[str, Any]


def make_sample(
    image: Dict[str, Any], ref_id: Any, sent_id: Any, expression: str, annotations: List[Any]
) -> Sample:
    """The dataset dict of an expression; ``image`` has file_name, height, width and image_id."""
    return {
        **image,
        "sample_id": f"{ref_id}_{sent_id}",
        "ref_id": ref_id,
        "sent_id": sent_id,
        "expression": expression,
        "annotations": annotations,
    }


def collect_samples(
    items: Dict[int, Any],
    expand: Callable[[int, Any], List[Sample]],
    describe_item: Callable[[int, Any], str],
    source: str,
    skipped: Optional[List[str]] = None,
) -> List[Sample]:
    """Dataset dicts of the items of an annotation file.

    Args:
        items: by position in the file; emptied, so that memory is free for the result.
        expand: position, item -> its dataset dicts; raises RecordError for a wrong field.
        describe_item: position, item -> which one it is, for messages.
        source: where the items come from, for messages.
        skipped: see the module docstring; a sample id that occurs twice is malformed, too.
    """
    samples: List[Sample] = []
    seen = set()
    for position in list(items):
        item = items.pop(position)
        try:
            new = expand(position, item)
            ids = [sample["sample_id"] for sample in new]
            twice = next((i for k, i in enumerate(ids) if i in seen or i in ids[:k]), None)
            if twice is not None:
                raise RecordError("sent_id", f"sample {twice} occurs twice")
        except RecordError as error:
            where = f"{source}: {describe_item(position, item)}, field '{error.field}'"
            note_or_raise(f"{where}: {error}", skipped, error)
            continue
        seen.update(ids)
        samples.extend(new)
    if not samples:
        raise ValueError(f"{source}: no valid expression in it")
    return samples


def note_or_raise(
    message: str, skipped: Optional[List[str]], cause: Optional[Exception] = None
) -> None:
    """A malformed record: an error, unless records may be skipped; then it is noted."""
    if skipped is None:
        raise ValueError(message) from cause
    skipped.append(message)


def log_counts(samples: List[Sample], path: str, split: str, without_text: int = 0) -> None:
    """Releases differ in size under the same name, so every load says what it found."""
    counts = Counter(min(len(sample["annotations"]), 2) for sample in samples)
    logger.info(
        "%s, split %s: %d expressions (%d no target, %d one target, %d several) on %d images; "
        "%d records or sentences without text skipped",
        *(path, split, len(samples), counts[0], counts[1], counts[2]),
        *(len({sample["image_id"] for sample in samples}), without_text),
    )
