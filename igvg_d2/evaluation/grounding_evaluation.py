"""The base evaluator: ground truth by sample id, small records, one order-free summary."""

import logging
import os
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode, Instances
from detectron2.utils import comm

from .metrics import count_by_cardinality, intersection_union
from .predictions import PredictionWriter
from .reporting import Record, format_report, merge_records, write_json

logger = logging.getLogger(__name__)

Results = Dict[str, Dict[str, float]]


@dataclass(frozen=True)
class GroundTruth:
    """Decoded annotations of one sample, in the original image frame.

    Attributes:
        sample: the data set dict (see the readers in `igvg_d2/data/datasets`).
        boxes: float64 (T, 4) XYXY pixels, as annotated (not clipped).
        masks: bool (T, height, width), in the order of the annotations.
        union: bool (height, width), OR over the targets; all False without a target.
    """

    sample: Dict[str, Any]
    boxes: np.ndarray
    masks: np.ndarray
    union: np.ndarray

    @property
    def num_targets(self) -> int:
        """T, the number of annotated instances; 0 means no target."""
        return len(self.boxes)

    @classmethod
    def from_sample(cls, sample: Dict[str, Any]) -> "GroundTruth":
        """Decode the annotations of a data set dict; raises ValueError on a wrong mask size."""
        size = (sample["height"], sample["width"])
        annotations = sample["annotations"]
        boxes = np.zeros((len(annotations), 4))
        for i, annotation in enumerate(annotations):
            # As an array: BoxMode.convert takes a list through float32, which moves x + w.
            box = np.asarray(annotation["bbox"], dtype=np.float64)[None]
            boxes[i] = BoxMode.convert(box, annotation["bbox_mode"], BoxMode.XYXY_ABS)[0]
        if not annotations:
            return cls(sample, boxes, np.zeros((0, *size), bool), np.zeros(size, bool))
        # decode() returns (height, width, T) in column-major order; a C copy once makes all the
        # logical operations below run on contiguous rows.
        decoded = mask_util.decode([a["segmentation"] for a in annotations])
        masks = np.ascontiguousarray(decoded.transpose(2, 0, 1)).view(bool)
        if masks.shape[1:] != size:
            raise ValueError(
                f"sample '{sample['sample_id']}': segmentation RLE has size {masks.shape[1:]}, "
                f"expected the (height, width) of the sample {size}"
            )
        return cls(sample, boxes, masks, masks.any(axis=0))


class GroundingEvaluator(DatasetEvaluator):
    """Compares outputs with the ground truth at the original resolution, one record per sample.

    Subclasses define what is measured by two hooks: `make_record` (one sample -> a flat dict of
    numbers, JSON-serialisable, no masks) and `summarize` (all records -> results). Everything in
    between is here: look-up by `sample_id`, gathering over processes, removal of the duplicates a
    padded sampler makes, completeness, a fixed order, result files and the log. Groups (R-RefCOCO)
    are formed in `summarize` by the record's `group_id`, never by position, so results do not
    depend on order or sharding.
    """

    protocol = "native: original resolution"

    @configurable
    def __init__(
        self,
        *,
        dataset_name: str,
        output_folder: Optional[str] = None,
        allow_missing: bool = False,
        save_predictions: bool = False,
    ):
        """
        Args:
            dataset_name: name in DatasetCatalog; its dicts hold the ground truth.
            output_folder: where `<dataset_name>_metrics.json` and `<dataset_name>_records.json`
                are written; None writes nothing.
            allow_missing: summarise the samples that are there, with a warning, instead of raising
                when some samples of the data set were not processed.
            save_predictions: write `<dataset_name>_predictions.jsonl` (see
                `igvg_d2.evaluation.predictions`) into `output_folder`.
        """
        self._prediction_writer = None
        if save_predictions and output_folder is not None:
            self._prediction_writer = PredictionWriter(
                os.path.join(output_folder, f"{dataset_name}_predictions.jsonl")
            )
        self.dataset_name = dataset_name
        self.output_folder = output_folder
        self.allow_missing = allow_missing
        self._samples: Optional[Dict[str, Dict[str, Any]]] = None
        self._records: List[Record] = []

    @classmethod
    def from_config(
        cls, cfg: CfgNode, dataset_name: str, output_folder: Optional[str] = None
    ) -> Dict[str, Any]:
        """Thresholds are constructor arguments and keep their official defaults."""
        return {
            "dataset_name": dataset_name,
            "output_folder": output_folder,
            "save_predictions": cfg.TEST.SAVE_PREDICTIONS,
        }

    @property
    def samples(self) -> Dict[str, Dict[str, Any]]:
        """Data set dicts by sample id, loaded on first use."""
        if self._samples is None:
            dicts = DatasetCatalog.get(self.dataset_name)
            self._samples = {d["sample_id"]: d for d in dicts}
            if len(self._samples) != len(dicts):
                raise ValueError(
                    f"data set '{self.dataset_name}': sample_id must be unique, found "
                    f"{len(dicts)} dicts with {len(self._samples)} different ids"
                )
        return self._samples

    @property
    def records(self) -> List[Record]:
        """The records made by this process so far."""
        return self._records

    def reset(self) -> None:
        """Forget all records."""
        self._records = []
        if self._prediction_writer is not None:
            self._prediction_writer.reset()

    def process(self, inputs: List[Dict[str, Any]], outputs: List[Dict[str, Any]]) -> None:
        """Add one record per sample.

        Args:
            inputs: model inputs; only `sample_id` is read, ground truth comes from the catalog.
            outputs: model outputs in the original frame, see `GRefCOCOEvaluator`.
        """
        for model_input, output in zip(inputs, outputs):
            sample_id = model_input["sample_id"]
            if sample_id not in self.samples:
                raise KeyError(
                    f"sample_id '{sample_id}' is not in data set '{self.dataset_name}': evaluate "
                    "with the loader of the same data set"
                )
            target = GroundTruth.from_sample(self.samples[sample_id])
            self._records.append(self.make_record(target, output))
            if self._prediction_writer is not None:
                self._prediction_writer.write(output, target.sample)

    def make_record(self, target: GroundTruth, output: Dict[str, Any]) -> Record:
        """Identity and raw pixel counts of one sample; subclasses add to it.

        Args:
            target: ground truth.
            output: model output; "mask" bool (height, width) is read here.

        Returns:
            dict with sample_id, image_id, group_id (R-RefCOCO's unit; the ref by default),
            num_targets, intersection and union of predicted mask and target union, pred_area,
            gt_area; and `kind` where the data set says what sort of expression it is.
        """
        sample = target.sample
        mask = to_numpy(output_field(output, "mask", sample)).astype(bool, copy=False)
        try:
            intersection, union = intersection_union(mask, target.union)
        except ValueError as error:
            raise ValueError(f"sample '{sample['sample_id']}': {error}") from error
        gt_area = int(np.count_nonzero(target.union))
        record = {
            "sample_id": sample["sample_id"],
            "image_id": sample["image_id"],
            "group_id": sample.get("group_id", sample.get("ref_id")),
            "num_targets": target.num_targets,
            "intersection": intersection,
            "union": union,
            "pred_area": union + intersection - gt_area,
            "gt_area": gt_area,
        }
        if "kind" in sample:
            record["kind"] = sample["kind"]
        return record

    def summarize(self, records: Sequence[Record]) -> Results:
        """Results of a set of records, {task: {metric: percent}}; pure, any order, any subset."""
        raise NotImplementedError(f"{type(self).__name__} must implement summarize(records)")

    def settings(self) -> Dict[str, float]:
        """Thresholds that define the numbers; written beside them."""
        return {}

    def breakdown(self, records: Sequence[Record]) -> Dict[str, Dict[str, Dict[str, float]]]:
        """Extra tables {title: {row: {column: value}}} for log and file, not in the results."""
        return {}

    def evaluate(self) -> Results:
        """Gather the records of all processes, summarise, write and log on the main process.

        Returns:
            {task: {metric: percent}}; {} on the other processes.

        Raises:
            RuntimeError: samples are missing and `allow_missing` is False.
        """
        comm.synchronize()
        shards = comm.gather(self._records, dst=0)
        if self._prediction_writer is not None:
            self._prediction_writer.close()
        if not comm.is_main_process():
            return {}
        records = merge_records(shards)
        self._check_complete(records)
        report = self.report(records)
        self._write(report, records)
        logger.info(format_report(report))
        return report["results"]

    def report(self, records: Sequence[Record]) -> Dict[str, Any]:
        """Results with all that is needed to read them: protocol, thresholds, counts."""
        return {
            "dataset": self.dataset_name,
            "evaluator": type(self).__name__,
            "protocol": self.protocol,
            "settings": self.settings(),
            "num_samples": len(records),
            "num_missing": len(self.samples) - len(records),
            "counts": count_by_cardinality([r["num_targets"] for r in records]),
            "results": self.summarize(records),
            "breakdown": self.breakdown(records),
        }

    def _check_complete(self, records: Sequence[Record]) -> None:
        """Every sample of the data set must have a record."""
        missing = sorted(self.samples.keys() - {r["sample_id"] for r in records})
        if not missing:
            return
        message = (
            f"data set '{self.dataset_name}': {len(missing)} of {len(self.samples)} samples were "
            f"not processed, first {missing[:10]}"
        )
        if not self.allow_missing:
            raise RuntimeError(message + "; run the whole data set, or pass allow_missing=True")
        logger.warning(message + "; the results are those of the processed samples")

    def _write(self, report: Dict[str, Any], records: Sequence[Record]) -> None:
        """Write report and records."""
        if self.output_folder is None:
            return
        prefix = os.path.join(self.output_folder, self.dataset_name)
        write_json(report, prefix + "_metrics.json", indent=2)
        write_json(records, prefix + "_records.json")
        logger.info("Wrote %s_metrics.json and %s_records.json", prefix, prefix)


def output_field(output: Dict[str, Any], key: str, sample: Dict[str, Any]) -> Any:
    """`output[key]`, or an error that names the sample and what the model returned instead."""
    if key not in output:
        raise KeyError(
            f"sample '{sample['sample_id']}': the model output needs '{key}', got {sorted(output)}"
        )
    return output[key]


def to_numpy(value: Any) -> np.ndarray:
    """A tensor from any device, or anything array-like, as numpy without copy where possible."""
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def check_candidates(candidates: Instances, score_threshold: float, sample: Dict[str, Any]) -> None:
    """Refuse numbers that would be counted silently wrong.

    A NaN overlap passes for a match in COCOeval and in the official GREC loop. An inverted box has
    no meaning, but below the threshold nobody looks at it (as upstream).

    Args:
        candidates: with scores (Q,) and pred_boxes XYXY.
        score_threshold: inverted boxes are accepted below it.
        sample: data set dict, for the message.

    Raises:
        ValueError: a score or coordinate is not finite, or a box at the threshold is inverted.
    """
    boxes, scores = to_numpy(candidates.pred_boxes.tensor), to_numpy(candidates.scores)
    inverted = (boxes[:, 2:] < boxes[:, :2]).any(1) & (scores >= score_threshold)
    bad = inverted | ~np.isfinite(boxes).all(1) | ~np.isfinite(scores)
    if bad.any():
        index = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"sample '{sample['sample_id']}': candidate {index} has box {boxes[index].tolist()} "
            f"and score {float(scores[index])}; expected finite numbers and XYXY order"
        )
