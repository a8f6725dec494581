"""The base evaluator: ground truth by sample id, small records, one order-free summary."""

import logging
import os
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence

from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from .bootstrap import bootstrap_intervals
from .calibration import Calibration, read_calibration
from .columns import has_masks, summarize_calibrated
from .frames import GroundTruth, output_field, predicted_mask, target_mask, to_mask
from .metrics import count_by_cardinality, count_pixels, mask_area, percent
from .predictions import PredictionWriter, output_to_host
from .protocols import Protocol, parse_protocols
from .reporting import Record, append_line, format_report, merge_records, write_json

logger = logging.getLogger(__name__)

Results = Dict[str, Dict[str, float]]

_PIXEL_KEYS = ("intersection", "union", "pred_area", "gt_area")


class GroundingEvaluator(DatasetEvaluator):
    """Compares outputs with the ground truth under one or more protocols, in one pass.

    Per sample a flat record of numbers is kept, no masks. A benchmark defines three hooks:
    `make_record` (one sample -> numbers, JSON-serialisable), `summarize_protocol` (all records ->
    results under one protocol) and `summarize_shared` (results that no protocol changes); without
    protocols, `summarize` alone. Groups (R-RefCOCO) are formed by the record's `group_id`, never by
    position, so results do not depend on order or sharding.
    """

    # How the benchmark's authors bring targets to their frame, see `frames.target_mask`.
    official_target = "nearest"
    # Whether their loader drops pixels that two polygon parts cover.
    official_single_cover = False

    @configurable
    def __init__(
        self,
        *,
        dataset_name: str,
        output_folder: Optional[str] = None,
        allow_missing: bool = False,
        save_predictions: bool = False,
        protocols: Sequence[str] = ("native",),
        metrics_file: Optional[str] = None,
        calibration: Optional[Calibration] = None,
    ):
        """
        Args:
            dataset_name: name in DatasetCatalog; its dicts hold the ground truth.
            output_folder: where `<dataset_name>_metrics.json` and `<dataset_name>_records.json`
                are written; None writes nothing.
            allow_missing: summarise the samples that are there, with a warning, instead of raising
                when some samples of the data set were not processed.
            save_predictions: write `<dataset_name>_predictions.jsonl` (see `predictions.py`) into
                `output_folder`.
            protocols: names, see `PROTOCOLS`.
            metrics_file: JSON lines, usually Detectron2's metrics.json, that get a line with the
                protocols of the report; None writes none.
            calibration: of the no-target score, for the extra task "calibrated" {the risk, alpha,
                N_acc, T_acc}, and gres_calibrated and grec_calibrated of GRES and GREC.
        """
        self._prediction_writer = None
        if save_predictions and output_folder is not None:
            self._prediction_writer = PredictionWriter(
                os.path.join(output_folder, f"{dataset_name}_predictions.jsonl")
            )
        self.dataset_name = dataset_name
        self.output_folder = output_folder
        self.allow_missing = allow_missing
        self.protocols = parse_protocols(tuple(protocols))
        self.metrics_file = metrics_file
        self.calibration = calibration
        # Hash of the data set for the report; the engine sets `igvg_d2.data.datasets.fingerprint`,
        # because evaluation does not import data.
        self.fingerprint: Optional[Callable[[Iterable[Dict[str, Any]]], str]] = None
        self._samples: Optional[Dict[str, Dict[str, Any]]] = None
        self.records: List[Record] = []  # of this process, so far

    @classmethod
    def from_config(
        cls, cfg: CfgNode, dataset_name: str, output_folder: Optional[str] = None
    ) -> Dict[str, Any]:
        """Other thresholds are class attributes with the official values."""
        return {
            "dataset_name": dataset_name,
            "output_folder": output_folder,
            "save_predictions": cfg.TEST.SAVE_PREDICTIONS,
            "protocols": cfg.TEST.PROTOCOLS,
            "metrics_file": os.path.join(cfg.OUTPUT_DIR, "metrics.json"),
            "calibration": read_calibration(cfg.TEST.CALIBRATION) if cfg.TEST.CALIBRATION else None,
        }

    @property
    def primary(self) -> Protocol:
        """The protocol whose numbers stand at the top of a record: native if asked for."""
        return next((p for p in self.protocols if p.name == "native"), self.protocols[0])

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

    def reset(self) -> None:
        """Forget all records.

        Raises:
            ValueError: the calibration or the model was fitted on this very data set.
        """
        self.records = []
        if self.calibration is not None and self.fingerprint is not None:
            own_hash = self.fingerprint(self.samples.values())
            self.calibration.refuse(self.dataset_name, own_hash)
        if self._prediction_writer is not None:
            self._prediction_writer.reset()

    def process(self, inputs: List[Dict[str, Any]], outputs: List[Dict[str, Any]]) -> None:
        """Add one record per sample.

        Args:
            inputs: model inputs; only `sample_id` is read, ground truth comes from the catalog.
            outputs: model outputs in the original frame, see `GRefCOCOEvaluator`.
        """
        for model_input, output in zip(inputs, map(output_to_host, outputs)):
            sample_id = model_input["sample_id"]
            if sample_id not in self.samples:
                raise KeyError(
                    f"sample_id '{sample_id}' is not in data set '{self.dataset_name}': evaluate "
                    "with the loader of the same data set"
                )
            target = GroundTruth.from_sample(self.samples[sample_id])
            self.records.append(self.make_record(target, output))
            if self._prediction_writer is not None:
                self._prediction_writer.write(output, target.sample)

    def make_record(self, target: GroundTruth, output: Dict[str, Any]) -> Record:
        """Identity and raw pixel counts of one sample; subclasses add to it.

        Args:
            target: ground truth.
            output: model output; read here are "mask" bool (height, width) or RLE and, if there,
                "resized_masks" {frame size: bool (size, size)}.

        Returns:
            dict with sample_id, image_id, group_id (R-RefCOCO's unit; the ref by default),
            num_targets; has_masks, False if a target has a box only; intersection, union, pred_area
            and gt_area in pixels under the primary protocol; pixels {protocol: these four} (see
            `ceiling`); no_target_score; and `kind` and `absent_kind` where known.
        """
        sample, score = target.sample, output.get("no_target_score")
        mask = to_mask(output_field(output, "mask", sample))
        resized = {k: to_mask(v) for k, v in output.get("resized_masks", {}).items()}
        pixels = {}
        for protocol in self.protocols:
            try:
                pred = predicted_mask(mask, resized, target, protocol)
            except ValueError as error:
                raise ValueError(f"sample '{sample['sample_id']}': {error}") from error
            if not target.has_masks:
                pixels[protocol.name] = [0, 0, mask_area(pred), 0]
                continue
            single = self.official_single_cover and protocol.rules == "official"
            gt = target_mask(target, protocol, self.official_target, single)
            pixels[protocol.name] = count_pixels(pred, gt)
            is_resized_here = all(pred is not found for found in (mask, *resized.values()))
            if is_resized_here and target.num_targets:
                perfect = predicted_mask(target.union, {}, target, protocol)
                pixels[protocol.name + "_ceiling"] = count_pixels(perfect, gt)
            if single:
                union_gt = target_mask(target, protocol, self.official_target)
                pixels[protocol.name + "_union_gt"] = count_pixels(pred, union_gt)
        record = {
            "sample_id": sample["sample_id"],
            "image_id": sample["image_id"],
            "group_id": sample.get("group_id", sample.get("ref_id")),
            "num_targets": target.num_targets,
            "has_masks": target.has_masks,
            **dict(zip(_PIXEL_KEYS, pixels[self.primary.name])),
            "pixels": pixels,
            "no_target_score": None if score is None else float(score),
        }
        return {**record, **{key: sample[key] for key in ("kind", "absent_kind") if key in sample}}

    def summarize(self, records: Sequence[Record]) -> Results:
        """Results of a set of records, {task: {metric: percent}}; pure, any order, any subset.

        Tasks under a protocol other than native end in its name: "gres", "gres_official".
        """
        results = {}
        for protocol in self.protocols:
            for task, metrics in self.summarize_protocol(records, protocol).items():
                results[task + protocol.suffix] = metrics
        results.update(self.summarize_shared(records))
        if self.calibration is not None:
            results["calibrated"] = summarize_calibrated(records, self.calibration)
        return results

    def summarize_protocol(self, records: Sequence[Record], protocol: Protocol) -> Results:
        """Results under one protocol, {task: {metric: percent}} without suffixes."""
        raise NotImplementedError(f"{type(self).__name__} must implement summarize_protocol()")

    def summarize_shared(self, records: Sequence[Record]) -> Results:
        """Results that do not depend on the protocol."""
        return {}

    def settings(self, protocol: Protocol) -> Dict[str, Any]:
        """Thresholds that define the numbers under a protocol; written beside them."""
        return {}

    def ratios(self, records: Sequence[Record], protocol: Protocol) -> Dict[str, Any]:
        """Main numbers as {name: (numerators (N,), denominators (N,))}, for the intervals."""
        return {}

    def ceiling(self, records: Sequence[Record], protocol: Protocol) -> Dict[str, float]:
        """IoU in percent that perfect masks reach if those of the original size are resized.

        {} where none was resized: models that resize their own logits have no ceiling.
        """
        key = protocol.name + "_ceiling"
        if not any(key in r["pixels"] for r in records):
            return {}
        perfect = []
        for record in records:
            pixels, targets = record["pixels"], record["num_targets"]
            flags = {"pred_no_target": not targets, "num_confident": targets}
            reached = {protocol.name: pixels.get(key) or pixels[protocol.name][3:] * 4}
            perfect.append({**record, **flags, "pixels": reached})
        ratios = self.ratios(perfect, protocol)
        return {name: percent(sum(n), sum(d)) for name, (n, d) in ratios.items() if "IoU" in name}

    def breakdown(self, records: Sequence[Record]) -> Dict[str, Dict[str, Dict[str, float]]]:
        """Extra tables {title: {row: {column: value}}} for log and file, not in the results."""
        tables = {}
        images = [r["image_id"] for r in records]
        for protocol in self.protocols if records else ():
            ratios = self.ratios(records, protocol)
            if ratios:
                title = f"95% interval{protocol.suffix.replace('_', ' ', 1)}"
                tables[title] = bootstrap_intervals(ratios, images)
        return tables

    def evaluate(self) -> Results:
        """Gather the records of all processes, summarise, write and log on the main process.

        Returns:
            {task: {metric: percent}}; {} on the other processes.

        Raises:
            RuntimeError: samples are missing and `allow_missing` is False.
        """
        comm.synchronize()
        shards = comm.gather(self.records, dst=0)
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
        """Results with all that is needed to read them.

        Returns:
            dict with dataset, dataset_hash, evaluator, num_samples, num_missing, counts (samples by
            number of targets), num_without_masks (not in mask metrics), calibration (its file, or
            None); protocol and settings of the primary protocol, results, breakdown; protocols
            {name: all before "protocol", and protocol, resolution, thresholds, ceiling (see
            `ceiling`), and results of it with plain task names}: each can be read alone.
        """
        facts = {
            "dataset": self.dataset_name,
            "dataset_hash": self.fingerprint(self.samples.values()) if self.fingerprint else None,
            "evaluator": type(self).__name__,
            "num_samples": len(records),
            "num_missing": len(self.samples) - len(records),
            "counts": count_by_cardinality([r["num_targets"] for r in records]),
            "num_without_masks": int((~has_masks(records)).sum()),
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
        }
        results = self.summarize(records)
        suffixes = [p.suffix for p in self.protocols if p.suffix]
        blocks = {}
        for p in self.protocols:
            # "gres_official_native" ends in the longer of two suffixes that are there.
            own = {
                task[: len(task) - len(p.suffix)]: metrics
                for task, metrics in results.items()
                if max((s for s in suffixes if task.endswith(s)), key=len, default="") == p.suffix
            }
            blocks[p.name] = {
                "protocol": p.description,
                "resolution": p.resolution,
                "thresholds": self.settings(p),
                "ceiling": self.ceiling(records, p),
                **facts,
                "results": own,
            }
        return {
            **facts,
            "protocol": self.primary.description,
            "settings": self.settings(self.primary),
            "protocols": blocks,
            "results": results,
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
        if self.metrics_file is not None:
            # A list: tools that read numbers by name from this file pass over it.
            append_line({"evaluation": list(report["protocols"].values())}, self.metrics_file)
