"""Drawings of a model's answers on a registered data set, as files and an index for the report."""

import json
import logging
import re
from glob import escape
from itertools import compress, zip_longest
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.evaluation import inference_context
from PIL import Image
from torch import nn

from igvg_d2.data import GroundingDatasetMapper
from igvg_d2.evaluation.metrics import cardinality_groups
from igvg_d2.io.atomic import write_atomically
from igvg_d2.io.image import read_image
from igvg_d2.io.json_stream import to_json_text

from .report import build_report
from .visualizer import GroundingVisualizer

logger = logging.getLogger(__name__)

_BATCH_SIZE = 8
# Characters of a sample id in the name of its image; the number before it tells samples apart.
_LONGEST_ID = 40


class Case(NamedTuple):
    """A sample chosen to be drawn, why ("worst", "best" or "sample"), and its targets' number."""

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
    for cardinality, is_member in groups.items():
        group = sorted(compress(records, is_member), key=_quality)
        # Halves, so that a small group does not show the same sample as best and as worst.
        middle = (len(group) + 1) // 2
        for case, part in (("worst", group[:middle]), ("best", group[middle:][::-1])):
            firsts: Dict[Any, Dict[str, Any]] = {}
            for record in part:
                firsts.setdefault(record["image_id"], record)
            queues.append([Case(r["sample_id"], case, cardinality) for r in firsts.values()])
    in_turn = [case for cases in zip_longest(*queues) for case in cases if case is not None]
    chosen = set(in_turn[:num])
    return [case for queue in queues for case in queue if case in chosen]


def _quality(record: Dict[str, Any]) -> tuple:
    """Sort key of a record, worst first: mask IoU, then boxes, then confidence in the answer."""
    confidence = record.get("no_target_score") or 0.0
    if record["num_targets"]:
        confidence = 1.0 - confidence
    return record["iou"] or 0.0, record.get("f1") or 0.0, confidence, record["sample_id"]


def load_records(output_dir: str, dataset_name: str) -> Optional[List[Dict[str, Any]]]:
    """Records that the evaluation of a data set left below a run's folder, None without any."""
    pattern = f"inference/**/{escape(dataset_name)}_records.json"
    paths = sorted(Path(output_dir).glob(pattern))
    if not paths:
        logger.info("No records of %s below %s: drawing samples evenly", dataset_name, output_dir)
        return None
    logger.info("Choosing worst and best cases by %s", paths[0])
    return json.loads(paths[0].read_text(encoding="utf-8"))


def render_result_images(
    cfg: CfgNode,
    model: nn.Module,
    dataset_name: str,
    output_dir: str,
    num: int,
    records: Optional[Sequence[Dict[str, Any]]] = None,
) -> str:
    """Run a model on chosen samples of a data set and draw each answer.

    Args:
        cfg: config of the model, for the mapper.
        model: any device and mode; the mode is restored afterwards.
        dataset_name: in ``DatasetCatalog``.
        output_dir: folder for the images and ``index.json``; images of an earlier call are
            overwritten or deleted. The report finds it below ``OUTPUT_DIR/images``.
        num: at most this many images.
        records: of the evaluator, to show the best and worst cases by number of targets; without
            them ``num`` samples spread evenly over the data set are shown.

    Returns:
        path of the index: {"dataset": name, "images": [{"file", "sample_id", "expression",
        "case", "cardinality"}]}.

    Raises:
        KeyError: the records are of another data set.
    """
    samples = {d["sample_id"]: d for d in DatasetCatalog.get(dataset_name)}
    if records is not None:
        cases = select_cases(records, num)
    else:
        # Evenly spread: neighbours in a data set are expressions of one image.
        spread = list(samples)[:: max(1, len(samples) // max(1, num))][:num]
        groups = cardinality_groups([len(samples[key]["annotations"]) for key in spread])
        cases = [
            Case(sample_id, "sample", cardinality)
            for cardinality, is_member in groups.items()
            for sample_id in compress(spread, is_member)
        ]
    for case in cases:
        if case.sample_id not in samples:
            raise KeyError(
                f"records name the sample '{case.sample_id}', which data set '{dataset_name}' does "
                "not have; pass the records of the same data set."
            )
    folder = Path(output_dir)
    index_path = folder / "index.json"
    folder.mkdir(parents=True, exist_ok=True)
    if index_path.is_file():
        earlier = json.loads(index_path.read_text(encoding="utf-8"))
        for entry in earlier.get("images", earlier.get("pictures", ())):  # of earlier versions
            (folder / Path(entry["file"]).name).unlink(missing_ok=True)
    mapper, visualizer = GroundingDatasetMapper(cfg, is_train=False), GroundingVisualizer()
    entries: List[Dict[str, Any]] = []
    for start in range(0, len(cases), _BATCH_SIZE):
        batch = cases[start : start + _BATCH_SIZE]
        with inference_context(model), torch.no_grad():
            outputs = model([mapper(samples[case.sample_id]) for case in batch])
        for case, output in zip(batch, outputs):
            sample = samples[case.sample_id]
            expression, annotations = sample["expression"], sample["annotations"]
            image = read_image(sample["file_name"], "RGB")
            drawn = visualizer.draw_prediction(
                image, expression, output, annotations, sample_id=case.sample_id
            )
            # An id may be longer than the name of a file.
            name = re.sub(r"[^\w.-]", "_", case.sample_id)[:_LONGEST_ID]
            file = f"{len(entries):03d}_{case.cardinality}_{case.case}_{name}.jpg"
            # JPEG, because the noise of photographs makes a PNG of this size a megabyte; full
            # chroma resolution (subsampling 0) keeps thin coloured lines and small text sharp.
            Image.fromarray(drawn).save(folder / file, quality=90, subsampling=0)
            entries.append({"file": file, "expression": expression, **case._asdict()})
    index = {"dataset": dataset_name, "images": entries}
    write_atomically(str(index_path), to_json_text(index, indent=1))
    logger.info("Wrote %d images of %s to %s", len(entries), dataset_name, output_dir)
    return str(index_path)


def write_report(cfg: CfgNode, model: nn.Module) -> str:
    """Draw ``TEST.VIS_SAMPLES`` cases of the first test set, then write the report of the run.

    Returns:
        path of the page in ``cfg.OUTPUT_DIR``.
    """
    name = cfg.DATASETS.TEST[0]
    folder = str(Path(cfg.OUTPUT_DIR, "images", name))
    records = load_records(cfg.OUTPUT_DIR, name)
    render_result_images(cfg, model, name, folder, cfg.TEST.VIS_SAMPLES, records)
    return build_report(cfg.OUTPUT_DIR)
