"""Reader of refer-style data sets, and how each benchmark says what an expression refers to."""

import logging
from collections import Counter
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Union

from .annotation_files import iterate_refs, paused_garbage_collection
from .common import (
    RecordError,
    Sample,
    check_text,
    collect_samples,
    is_int,
    list_ids,
    log_counts,
    make_sample,
    note_or_raise,
    read_field,
    read_id,
    read_list,
    short,
)
from .instances import InstanceFile

logger = logging.getLogger(__name__)

TargetIds = Callable[[Dict[str, Any], Dict[str, Any]], Sequence[int]]

# What some copies call the splits.
_SPLIT_NAMES = {"training": "train", "validation": "val"}
_KNOWN_SPLITS = {"train", "val", "test", "testA", "testB"}
# Annotation id of gRefCOCO, and the "source" of Ref-ZOM, that mean no target.
_NO_TARGET_ID, _NO_TARGET_SOURCE = -1, "zero"


def target_set(ref: Dict[str, Any], sentence: Dict[str, Any]) -> List[int]:
    """gRefCOCO: any number of annotation ids, [-1] for no target (``no_target`` says the same)."""
    ids = list_ids(ref["ann_id"])
    targets = [i for i in ids if i != _NO_TARGET_ID]
    if targets and len(targets) != len(ids):
        raise RecordError(
            "ann_id", f"expected either targets or [{_NO_TARGET_ID}] (no target), found {ids}"
        )
    return targets


def single_target(ref: Dict[str, Any], sentence: Dict[str, Any]) -> List[int]:
    """RefCOCO, RefCOCO+, RefCOCOg: one annotation id; some copies have it in a list of one."""
    ids = list_ids(ref["ann_id"])
    if len(ids) != 1 or ids[0] < 0:
        raise RecordError(
            "ann_id",
            f"expected one annotation id, found {short(ref['ann_id'])}; target sets need the "
            "target_rule 'grefcoco'",
        )
    return ids


def target_if_true(ref: Dict[str, Any], sentence: Dict[str, Any]) -> List[int]:
    """R-RefCOCO: the record's object; nothing for a sentence whose ``exist`` is False.

    Without the key a sentence is true, as in the official loader. Metrics group the sentences by
    record, which is ``ref_id`` or, where several records share it, ``group_id``.
    """
    exist = sentence.get("exist", True)
    if exist not in (True, False):
        raise RecordError(
            "sentences",
            f"expected 'exist' of a sentence to be true or false, found {short(exist)}",
        )
    return single_target(ref, sentence) if exist else []


def targets_by_source(ref: Dict[str, Any], sentence: Dict[str, Any]) -> List[int]:
    """Ref-ZOM: ``source`` decides; a "zero" record may list ids, which its loader ignores, too."""
    if not isinstance(ref.get("source"), str):
        raise RecordError(
            "source",
            "the record has no 'source', which says whether there is a target; is this Ref-ZOM? "
            f"found {short(ref.get('source'))}",
        )
    if ref["source"] == _NO_TARGET_SOURCE:
        return []
    ids = list_ids(ref["ann_id"])
    if not ids or min(ids) < 0:
        raise RecordError(
            "ann_id",
            f"expected annotation ids because 'source' is {short(ref['source'])}, "
            f"found {short(ref['ann_id'])}",
        )
    return ids


TARGET_RULES: Dict[str, TargetIds] = {
    "grefcoco": target_set,
    "refcoco": single_target,
    "rrefcoco": target_if_true,
    "refzom": targets_by_source,
}


def load_referring(
    annotation_file: str,
    instances_file: str,
    image_root: str,
    split: str,
    target_rule: Union[str, TargetIds] = "grefcoco",
    *,
    skipped: Optional[List[str]] = None,
) -> List[Sample]:
    """Reads one split of a refer-style data set; each sentence of a record becomes a dataset dict.

    The image is found by ``image_id``: the ``file_name`` of a record may carry a suffix that no
    file has. Images are not opened, and ``image_root`` need not exist, so predictions can be scored
    without them. Targets that are crowds or stored as RLE are kept as masks, and records without a
    sentence are left out; the official loaders crash on them or drop them silently.

    Args:
        annotation_file: referring records as JSON or as the refer API's pickle:
            ``grefs(unc).json``, ``refs(unc).p``, ...
        instances_file: the ``instances.json`` beside it.
        image_root: folder of the images named in ``instances_file``.
        split: compared exactly with the ``split`` of the records (the refer API takes "test" for
            testA and testB together).
        target_rule: which annotations an expression refers to: a key of `TARGET_RULES`, named
            after the benchmark, or a function of a record and one of its sentences that returns
            annotation ids, ``[]`` for no target, and raises ValueError when they make no sense.
        skipped: see :mod:`igvg_d2.data.datasets.common`, also for what is returned and raised.
    """
    target_ids = TARGET_RULES[target_rule] if isinstance(target_rule, str) else target_rule
    with paused_garbage_collection():
        refs = _select_split(annotation_file, split, skipped)
        instances = InstanceFile(instances_file, image_root, _named_objects(refs.values()))
        reader = RefReader(instances, target_ids)
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

    Attributes:
        without_text: number of sentences, and of records without a sentence, that were left out.
    """

    def __init__(self, instances: InstanceFile, target_ids: TargetIds):
        self.instances = instances
        self.target_ids = target_ids
        self.without_text = 0
        self._records: Counter = Counter()

    def __call__(self, position: int, ref: Dict[str, Any]) -> List[Sample]:
        """Raises RecordError for a wrong field."""
        ref_id, image_id = read_id(ref, "ref_id"), read_id(ref, "image_id")
        read_field(ref, "ann_id")
        texts = [(sentence, _text(sentence)) for sentence in read_list(ref, "sentences")]
        self.without_text += sum(text is None for _, text in texts) or not texts
        if all(text is None for _, text in texts):
            return []
        image = self.instances.image(image_id)
        self._records[ref_id] += 1
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
            annotations = [self.instances.target(ann_id, image_id) for ann_id in ann_ids]
            sample = make_sample(image, ref_id, sent_id, expression, annotations)
            if self._records[ref_id] > 1:
                sample["group_id"] = f"{ref_id}#{self._records[ref_id]}"
            if "kind" in sentence:
                sample["kind"] = sentence["kind"]
            if not annotations:
                sample.update(self.instances.absent_kind(sentence, image_id, expression))
            samples.append(sample)
        return samples


def _text(sentence: Dict[str, Any]) -> Optional[str]:
    """``raw`` as typed by the annotator, else the cleaned ``sent``; None if both are blank."""
    if not isinstance(sentence, dict):
        raise RecordError("sentences", f"expected objects in it, found {short(sentence)}")
    texts = [sentence[key] for key in ("raw", "sent") if key in sentence]
    if not texts or not all(isinstance(text, str) for text in texts):
        found = short(texts) if texts else f"the keys {short(sorted(map(str, sentence)))}"
        raise RecordError("sentences", f"expected text as 'raw' or 'sent', found {found}")
    if not any(text.strip() for text in texts):
        return None
    # Of "?!" nothing is left in the cleaned text.
    chosen = next((text for text in texts if any(map(str.isalnum, text))), texts[0])
    return check_text(chosen, "sentences")
