"""Pictures of a model's answers on a registered data set, as files and an index for the report."""

import json
import logging
import os
import re
from itertools import compress
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from PIL import Image
from torch import nn

from igvg_d2.data import GroundingDatasetMapper
from igvg_d2.evaluation.metrics import cardinality_groups
from igvg_d2.io.image import read_image

from .grounding_items import items_from_annotations
from .visualizer import GroundingVisualizer

logger = logging.getLogger(__name__)

_BATCH_SIZE = 8


class Case(NamedTuple):
    """A sample chosen for a picture, why ("worst", "best" or "sample"), and its targets' number."""

    sample_id: str
    case: str
    cardinality: str


def select_cases(records: Sequence[Dict[str, Any]], num: int) -> List[Case]:
    """Choose the worst and the best samples of every cardinality, as evenly as there are any.

    Args:
        records: of an evaluator: sample_id, image_id, num_targets, iou, and optionally f1 and
            no_target_score, which decide between equal IoUs.
        num: at most this many in all.

    Returns:
        cases in the order of the report: by cardinality, worst before best, most extreme first.
        No sample is taken twice, and no image twice for the same cardinality and case.
    """
    queues = []
    groups = cardinality_groups([record["num_targets"] for record in records])
    for cardinality, chosen in groups.items():
        group = sorted(compress(records, chosen), key=lambda r: (*_quality(r), r["sample_id"]))
        # Halves, so that a small group does not show the same sample as best and as worst.
        middle = (len(group) + 1) // 2
        for case, part in (("worst", group[:middle]), ("best", group[middle:][::-1])):
            seen, queue = set(), []
            for record in part:
                if record["image_id"] not in seen:
                    seen.add(record["image_id"])
                    queue.append(Case(record["sample_id"], case, cardinality))
            queues.append(queue)
    lengths = [0] * len(queues)
    while sum(lengths) < num:
        open_queues = [i for i, queue in enumerate(queues) if lengths[i] < len(queue)]
        if not open_queues:
            break
        for i in open_queues[: num - sum(lengths)]:
            lengths[i] += 1
    return [case for queue, length in zip(queues, lengths) for case in queue[:length]]


def _quality(record: Dict[str, Any]) -> tuple:
    """Sort key of a record, worst first: mask IoU, then boxes, then confidence in the answer."""
    confidence = record.get("no_target_score") or 0.0
    if record["num_targets"]:
        confidence = 1.0 - confidence
    f1 = record.get("f1")
    return record["iou"], 0.0 if f1 is None else f1, confidence


def render_result_pictures(
    cfg: CfgNode,
    model: nn.Module,
    dataset_name: str,
    output_dir: str,
    num: int,
    records: Optional[Sequence[Dict[str, Any]]] = None,
) -> str:
    """Run a model on chosen samples of a data set and write a picture of each.

    Args:
        cfg: config of the model, for the mapper.
        model: any device and mode; the mode is restored afterwards.
        dataset_name: in ``DatasetCatalog``.
        output_dir: folder for the pictures and ``index.json``; pictures of an earlier call are
            overwritten or deleted. The report finds it below ``OUTPUT_DIR/pictures``.
        num: at most this many pictures.
        records: of the evaluator, to show the best and worst cases by number of targets; without
            them ``num`` samples spread evenly over the data set are shown.

    Returns:
        path of the index: {"dataset": name, "pictures": [{"file", "sample_id", "expression",
        "case", "cardinality", "num_targets", "iou", "correct"}]}.
    """
    samples = {d["sample_id"]: d for d in DatasetCatalog.get(dataset_name)}
    if records is None:
        # Evenly spread: neighbours in a data set are expressions of one image.
        chosen = list(samples.values())[:: max(1, len(samples) // max(1, num))][:num]
        groups = cardinality_groups([len(d["annotations"]) for d in chosen])
        cases = [
            Case(d["sample_id"], "sample", cardinality)
            for cardinality, is_member in groups.items()
            for d in compress(chosen, is_member)
        ]
    else:
        cases = select_cases(records, num)
    _clear(output_dir)
    mapper = GroundingDatasetMapper(cfg, is_train=False)
    entries = []
    for start in range(0, len(cases), _BATCH_SIZE):
        batch = cases[start : start + _BATCH_SIZE]
        dicts = [_sample(samples, case.sample_id, dataset_name) for case in batch]
        outputs = _infer(model, [mapper(d) for d in dicts])
        for case, sample, output in zip(batch, dicts, outputs):
            entries.append(_draw(len(entries), case, sample, output, output_dir))
    index_path = os.path.join(output_dir, "index.json")
    with open(index_path, "w", encoding="utf-8") as f:
        json.dump({"dataset": dataset_name, "pictures": entries}, f, indent=1)
    logger.info("Wrote %d pictures of %s to %s", len(entries), dataset_name, output_dir)
    return index_path


def _infer(model: nn.Module, inputs: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Outputs in evaluation mode; the model's mode is restored."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return model(inputs)
    finally:
        model.train(training)


def _sample(samples: Dict[str, Dict], sample_id: str, dataset_name: str) -> Dict[str, Any]:
    """The dataset dict of a record."""
    if sample_id not in samples:
        raise KeyError(
            f"records name the sample '{sample_id}', which data set '{dataset_name}' does not "
            "have; pass the records of the same data set."
        )
    return samples[sample_id]


def _draw(
    number: int, case: Case, sample: Dict[str, Any], output: Dict[str, Any], output_dir: str
) -> Dict[str, Any]:
    """Write one picture and return its entry of the index."""
    visualizer = GroundingVisualizer()
    image = read_image(sample["file_name"], "RGB")
    picture = visualizer.draw_prediction(
        image,
        sample["expression"],
        output,
        sample["annotations"],
        sample_id=sample["sample_id"],
    )
    truth = items_from_annotations(sample["annotations"], *image.shape[:2])
    verdict = visualizer.judge(output, truth)
    name = re.sub(r"[^\w.-]", "_", sample["sample_id"])
    file = f"{number:03d}_{case.cardinality}_{case.case}_{name}.jpg"
    # JPEG, because the noise of photographs makes a PNG of this size a megabyte; full chroma
    # resolution (subsampling 0) keeps thin coloured lines and small text sharp.
    Image.fromarray(picture).save(os.path.join(output_dir, file), quality=90, subsampling=0)
    return {
        "file": file,
        "sample_id": sample["sample_id"],
        "expression": sample["expression"],
        "case": case.case,
        "cardinality": case.cardinality,
        "num_targets": len(sample["annotations"]),
        "iou": round(verdict.iou, 4),
        "correct": verdict.correct,
    }


def _clear(output_dir: str) -> None:
    """Make the folder, and delete the pictures an earlier index lists."""
    os.makedirs(output_dir, exist_ok=True)
    index_path = os.path.join(output_dir, "index.json")
    if not os.path.isfile(index_path):
        return
    with open(index_path, encoding="utf-8") as f:
        pictures = json.load(f)["pictures"]
    for entry in pictures:
        path = os.path.join(output_dir, os.path.basename(entry["file"]))
        if os.path.isfile(path):
            os.remove(path)
