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
* ``scene`` only if asked for: all objects of the picture, dicts ``segmentation`` (RLE) and
  ``category_id`` (from 0);
* ``kind`` only if the sentence has this key (Shapes stores the type of the expression there);
* ``group_id`` str only where several records of a file share a ``ref_id``: the second and later
  ones are told apart by it (the metrics of R-RefCOCO are means over records).

Expressions about the same object share one annotation dict, so treat annotations as read-only.

Malformed records are errors. A reader that is given a list ``skipped`` leaves them out instead and
adds a message for each, so that they can be counted and listed.
"""

import logging
import os
from collections import Counter
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence

from .fields import RecordError, is_int, read_field, read_id, read_int, read_list, short
from .files import iterate_refs, paused_garbage_collection
from .instances import InstanceFile

logger = logging.getLogger(__name__)

Sample = Dict[str, Any]
TargetIds = Callable[[Dict[str, Any], Dict[str, Any]], Sequence[int]]

# What some copies call the splits.
_SPLIT_NAMES = {"training": "train", "validation": "val"}
_KNOWN_SPLITS = {"train", "val", "test", "testA", "testB"}


def load_referring(
    annotation_file: str,
    instances_file: str,
    image_root: str,
    split: str,
    *,
    target_ids: TargetIds,
    with_scene: bool = False,
    skipped: Optional[List[str]] = None,
) -> List[Sample]:
    """Reads one split of a refer-style data set; each sentence of a record becomes a dataset dict.

    The image is found by ``image_id``: the ``file_name`` of a record may carry a suffix that no
    file has. Images are not opened, and ``image_root`` need not exist, so predictions can be scored
    without them.

    Args:
        annotation_file: referring records, see :func:`igvg_d2.data.datasets.read_refs`.
        instances_file: the ``instances.json`` beside it.
        image_root: folder of the images named in ``instances_file``.
        split: compared exactly with the ``split`` of the records.
        target_ids: maps a record and one of its sentences to the annotation ids of the targets,
            ``[]`` for no target; raises ValueError when they make no sense.
        with_scene: add ``scene``, all objects of the picture.
        skipped: see the module docstring.

    Returns:
        Dataset dicts (see the module docstring) in the order of the file.

    Raises:
        ValueError: names file, record and field.
    """
    with paused_garbage_collection():
        refs = _select_split(annotation_file, split, skipped)
        ann_ids = None if with_scene else _named_objects(refs.values())
        reader = RefReader(InstanceFile(instances_file, ann_ids), image_root, target_ids)
        reader.with_scene = with_scene
        samples = collect_samples(
            refs,
            reader,
            lambda position, ref: f"record {position} (ref_id {short(ref.get('ref_id'))})",
            annotation_file,
            skipped,
        )
        log_counts(samples, annotation_file, split, reader.without_text)
        return samples


def _select_split(path: str, split: str, skipped: Optional[List[str]]) -> Dict[int, Any]:
    """Records of one split by their position in the file; every record must say its split."""
    selected, splits = {}, Counter()
    for position, ref in enumerate(iterate_refs(path)):
        found = ref.get("split") if isinstance(ref, dict) else None
        if not isinstance(found, str):
            note_or_raise(
                f"{path}: record {position}, field 'split': expected a record (dict) with the name "
                f"of a split, found {short(ref if not isinstance(ref, dict) else found)}",
                skipped,
            )
            continue
        splits[found] += 1
        if split in (found, _SPLIT_NAMES.get(found)):
            # Tokens are half of the memory and never read.
            selected[position] = {key: ref[key] for key in ref if key != "sent_ids"}
            sentences = ref.get("sentences")
            for sentence in sentences if isinstance(sentences, list) else ():
                if isinstance(sentence, dict):
                    sentence.pop("tokens", None)
    logger.info("%s: records by split: %s", path, dict(splits))
    unknown = sorted(set(splits) - _KNOWN_SPLITS - set(_SPLIT_NAMES) - {split})
    if unknown:
        logger.warning("%s: no data set reads the splits %s", path, unknown)
    if not selected:
        raise ValueError(f"{path}: no expression in split '{split}'; it has {sorted(splits)}")
    return selected


def _named_objects(refs: Iterable[Dict[str, Any]]) -> set:
    """Annotation ids that occur in the records."""
    named = set()
    for ref in refs:
        ids = ref.get("ann_id")
        for ann_id in ids if isinstance(ids, (list, tuple)) else (ids,):
            if is_int(ann_id):
                named.add(ann_id)
    return named


class RefReader:
    """Turns a record of the refer API into dataset dicts, one per sentence that has text.

    Args:
        instances: the objects the records name.
        image_root, target_ids: see :func:`load_referring`.

    Attributes:
        with_scene: add ``scene``.
        without_text: number of sentences, and of records without a sentence, that were left out.
    """

    def __init__(self, instances: InstanceFile, image_root: str, target_ids: TargetIds):
        self.instances = instances
        self.image_root = image_root
        self.target_ids = target_ids
        self.with_scene = False
        self.without_text = 0
        self._paths: Dict[int, str] = {}
        self._records: Counter = Counter()

    def __call__(self, ref: Dict[str, Any]) -> List[Sample]:
        """Raises RecordError for a wrong field."""
        ref_id, image_id = read_id(ref, "ref_id"), read_int(ref, "image_id")
        read_field(ref, "ann_id")
        texts = [(sentence, _text(sentence)) for sentence in read_list(ref, "sentences")]
        self.without_text += sum(text is None for _, text in texts) or not texts
        if all(text is None for _, text in texts):
            return []
        image = self.instances.image(image_id)
        if image_id not in self._paths:
            self._paths[image_id] = os.path.join(self.image_root, image["file_name"])
        shared = {
            "file_name": self._paths[image_id],
            "height": image["height"],
            "width": image["width"],
            "image_id": image_id,
            "ref_id": ref_id,
        }
        self._records[ref_id] += 1
        if self._records[ref_id] > 1:
            shared["group_id"] = f"{ref_id}#{self._records[ref_id]}"
        if self.with_scene:
            shared["scene"] = self.instances.scene(image_id)
        samples = []
        for sentence, expression in texts:
            if expression is None:
                continue
            sent_id = read_id(sentence, "sent_id")
            try:
                ann_ids = self.target_ids(ref, sentence)
            except RecordError:
                raise
            except ValueError as error:
                raise RecordError("ann_id", str(error)) from error
            sample = {
                **shared,
                "sample_id": f"{ref_id}_{sent_id}",
                "sent_id": sent_id,
                "expression": expression,
                "annotations": [self.instances.target(i, image_id) for i in ann_ids],
            }
            if "kind" in sentence:
                sample["kind"] = sentence["kind"]
            samples.append(sample)
        return samples


def collect_samples(
    items: Dict[int, Any],
    expand: Callable[[Any], List[Sample]],
    describe_item: Callable[[int, Any], str],
    source: str,
    skipped: Optional[List[str]] = None,
) -> List[Sample]:
    """Dataset dicts of the items of an annotation file.

    Args:
        items: by position in the file; emptied, so that memory is free for the result.
        expand: item -> its dataset dicts; raises RecordError for a wrong field.
        describe_item: position, item -> which one it is, for messages.
        source: where the items come from, for messages.
        skipped: see the module docstring.

    Raises:
        ValueError: names source, item and field; also for a sample id that occurs twice.
    """
    samples: List[Sample] = []
    seen = set()
    for position in list(items):
        item = items.pop(position)
        try:
            new = expand(item)
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


def _text(sentence: Dict[str, Any]) -> Optional[str]:
    """``raw`` as typed by the annotator, else the cleaned ``sent``; None if neither has a word."""
    if not isinstance(sentence, dict):
        raise RecordError("sentences", f"expected objects in it, found {short(sentence)}")
    texts = [sentence[key] for key in ("raw", "sent") if key in sentence]
    if not texts or not all(isinstance(text, str) for text in texts):
        found = short(texts) if texts else f"the keys {short(sorted(map(str, sentence)))}"
        raise RecordError("sentences", f"expected text as 'raw' or 'sent', found {found}")
    return next((text for text in texts if text.strip()), None)


def log_counts(samples: List[Sample], path: str, split: str, without_text: int = 0) -> None:
    """Releases differ in size under the same name, so every load says what it found."""
    counts = Counter(min(len(sample["annotations"]), 2) for sample in samples)
    logger.info(
        "%s, split %s: %d expressions (%d no target, %d one target, %d several) on %d images; "
        "%d records or sentences without text skipped",
        *(path, split, len(samples), counts[0], counts[1], counts[2]),
        *(len({sample["image_id"] for sample in samples}), without_text),
    )
