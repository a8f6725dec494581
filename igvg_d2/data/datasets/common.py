"""What all readers share: from referring records to dataset dicts, and registration.

A reader turns an annotation file into dataset dicts, one per *expression*, in the original frame:

* ``file_name`` str, ``height`` int, ``width`` int, ``image_id`` int;
* ``sample_id`` str ``"<ref_id>_<sent_id>"``, unique in the split; ``ref_id`` int, ``sent_id`` int;
* ``expression`` str, as annotated (neither lower-cased nor cleaned);
* ``annotations`` list of dicts ``id`` int, ``bbox`` [x, y, w, h], ``bbox_mode``, ``category_id``
  0, ``segmentation`` (compressed COCO RLE of size [height, width], parts joined by union),
  ``iscrowd`` 0 or 1 as in the file, and, if the file has polygons and not an RLE, ``polygons``,
  float64 arrays [x0, y0, x1, y1, ...]: official protocols rasterise them in their own way. The
  empty list means no target;
* ``scene`` only if asked for: all objects of the picture, dicts ``segmentation`` (RLE) and
  ``category_id`` (from 0);
* ``kind`` only if the sentence has this key (Shapes stores the type of the expression there).

Expressions about the same object share one annotation dict, so treat annotations as read-only.
"""

import logging
import os
from collections import Counter
from typing import Any, Callable, Dict, List, Optional, Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog

from .files import read_refs
from .instances import InstanceFile, RecordError

logger = logging.getLogger(__name__)


def load_referring(
    annotation_file: str,
    instances_file: str,
    image_root: str,
    split: str,
    *,
    target_ids: Callable[[Dict[str, Any], Dict[str, Any]], Sequence[int]],
    with_scene: bool = False,
) -> List[Dict[str, Any]]:
    """Reads one split of a refer-style data set; each sentence of a record becomes a dataset dict.

    The image is found by ``image_id``: the ``file_name`` of a record may carry a suffix that no
    file has. Images are not opened, and ``image_root`` need not exist, so predictions can be scored
    without them.

    Args:
        annotation_file: referring records, see :func:`read_refs`.
        instances_file: the ``instances.json`` beside it.
        image_root: folder of the images named in ``instances_file``.
        split: compared exactly with the ``split`` of the records.
        target_ids: maps a record and one of its sentences to the annotation ids of the targets,
            ``[]`` for no target; raises ValueError when they make no sense.
        with_scene: add ``scene``, all objects of the picture.

    Returns:
        Dataset dicts (see the module docstring) in the order of the file.
    """
    return records_from_refs(
        read_refs(annotation_file),
        InstanceFile(instances_file),
        image_root,
        split,
        target_ids=target_ids,
        source=annotation_file,
        with_scene=with_scene,
    )


def records_from_refs(
    refs: Sequence[Dict[str, Any]],
    instances: InstanceFile,
    image_root: str,
    split: str,
    *,
    target_ids: Callable[[Dict[str, Any], Dict[str, Any]], Sequence[int]],
    source: str,
    with_scene: bool = False,
) -> List[Dict[str, Any]]:
    """Dataset dicts of the referring records of one split.

    Args:
        refs: records as the refer API has them.
        instances: the objects they name.
        image_root, split, target_ids, with_scene: see :func:`load_referring`.
        source: where the records come from, for messages.
    """
    records: List[Dict[str, Any]] = []
    seen = set()
    skipped = 0
    for position, ref in enumerate(refs):
        if ref.get("split") != split:
            continue
        try:
            new = _expand(ref, instances, image_root, target_ids, with_scene)
            for record in new:
                if record["sample_id"] in seen:
                    raise RecordError("sent_id", f"sample {record['sample_id']} occurs twice")
                seen.add(record["sample_id"])
        except RecordError as error:
            raise ValueError(
                f"{source}: record {position} (ref_id {ref.get('ref_id')}), "
                f"field '{error.field}': {error}"
            ) from error
        skipped += len(ref["sentences"]) - len(new) if new else 1
        records.extend(new)
    if not records:
        found = sorted({str(ref.get("split")) for ref in refs})
        raise ValueError(f"{source}: no expression in split '{split}'; it has {found}")
    _log_counts(records, source, split, skipped)
    return records


def _expand(
    ref: Dict[str, Any],
    instances: InstanceFile,
    image_root: str,
    target_ids: Callable[[Dict[str, Any], Dict[str, Any]], Sequence[int]],
    with_scene: bool,
) -> List[Dict[str, Any]]:
    """Dataset dicts of one record, one per sentence that has text."""
    for field in ("ref_id", "image_id", "ann_id", "sentences"):
        if field not in ref:
            raise RecordError(field, f"missing; the record has {sorted(ref)}")
    texts = [(sentence, _text(sentence)) for sentence in ref["sentences"]]
    if not any(text for _, text in texts):
        return []
    image = instances.image(ref["image_id"])
    scene = {"scene": instances.scene(ref["image_id"])} if with_scene else {}
    records = []
    for sentence, expression in texts:
        if expression is None:
            continue
        if "sent_id" not in sentence:
            raise RecordError("sentences", f"no 'sent_id' in {sentence}")
        try:
            ann_ids = target_ids(ref, sentence)
        except ValueError as error:
            raise RecordError("ann_id", str(error)) from error
        annotations = [instances.target(ann_id, ref["image_id"]) for ann_id in ann_ids]
        record = {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": ref["image_id"],
            "sample_id": f"{ref['ref_id']}_{sentence['sent_id']}",
            "ref_id": ref["ref_id"],
            "sent_id": sentence["sent_id"],
            "expression": expression,
            "annotations": annotations,
            **scene,
        }
        if "kind" in sentence:
            record["kind"] = sentence["kind"]
        records.append(record)
    return records


def list_ids(ann_id: Any) -> List[int]:
    """``ann_id`` of a record as a list; official files have lists, some records a bare int.

    Raises:
        ValueError: neither.
    """
    ids = [ann_id] if isinstance(ann_id, int) else ann_id
    if not isinstance(ids, list) or not all(isinstance(i, int) for i in ids):
        raise ValueError(f"expected an int or a list of ints, found {ann_id!r}")
    return ids


def _text(sentence: Dict[str, Any]) -> Optional[str]:
    """``raw`` as typed by the annotator, else the cleaned ``sent``; None if neither has a word."""
    for key in ("raw", "sent"):
        text = sentence.get(key)
        if isinstance(text, str) and text.strip():
            return text
    return None


def _log_counts(records: List[Dict[str, Any]], path: str, split: str, skipped: int) -> None:
    """Releases differ in size under the same name, so every load says what it found."""
    counts = Counter(min(len(record["annotations"]), 2) for record in records)
    logger.info(
        "%s, split %s: %d expressions (%d no target, %d one target, %d several) on %d images; "
        "%d records or sentences without text skipped",
        *(path, split, len(records), counts[0], counts[1], counts[2]),
        *(len({record["image_id"] for record in records}), skipped),
    )


def register_grounding(
    name: str, metadata: Dict[str, Any], loader: Callable[[], List[Dict[str, Any]]]
) -> None:
    """Registers a data set in Detectron2's catalogs; ``loader`` runs when the data are asked for.

    Args:
        name: new name, to be used in ``cfg.DATASETS.TRAIN`` or ``cfg.DATASETS.TEST``.
        metadata: entries of its metadata, over the defaults ``evaluator_type`` "grefcoco" and
            ``thing_classes`` ["target"].
        loader: without arguments; returns dataset dicts as described in the module docstring, the
            same at every call. Own readers can be built on :func:`load_referring`.
    """
    DatasetCatalog.register(name, loader)
    defaults = {"evaluator_type": "grefcoco", "thing_classes": ["target"]}
    MetadataCatalog.get(name).set(**{**defaults, **metadata})
