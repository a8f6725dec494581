"""Classic RES and REC: exactly one target per expression."""

from itertools import compress
from typing import Any, Dict, Sequence

import numpy as np

from .boxes import check_candidates, top_box_overlaps
from .build import GROUNDING_EVALUATOR_REGISTRY
from .columns import has_masks, pixel_columns
from .frames import GroundTruth, output_field, to_numpy
from .grounding_evaluation import GroundingEvaluator, Results
from .metrics import PRECISION_THRESHOLDS, iou_ratio, mask_results, precision_at
from .protocols import Protocol
from .reporting import Record

_MDETR_GIOU_THRESHOLD = 0.5


@GROUNDING_EVALUATOR_REGISTRY.register()
class RefCOCOEvaluator(GroundingEvaluator):
    """Mask and top-1 box accuracy of RefCOCO, RefCOCO+ and RefCOCOg.

    Read from a model output: "mask" bool (height, width), never cleared by a no-target flag, and
    "candidates" Instances with scores and pred_boxes; the one with the highest score answers (the
    first of equals, no candidate is a miss).

    Results: "res" {mIoU, oIoU, Pr@0.5 ... Pr@0.9} and "rec" {Acc@0.5}, in percent, over sentences.
    The mask ground truth is the union of all polygon parts (MAttNet); the box overlap is plain IoU
    in continuous coordinates.

    Without a mask in the data a sentence is in "rec" only, and not in "res".

    Official rules: "res" is LAVT's, whose loader drops pixels covered by two polygon parts, and
    "res_union_gt" has unions of parts; "rec" has MAttNet's Acc@0.5, which counts overlaps of at
    most one pixel as none, and MDETR's P@1, P@5, P@10, the share of sentences with a generalized
    IoU of at least 0.5 among that many best boxes (NaN if samples are missing: MDETR stops there).
    Released rules: "rec" has Acc@0.5 ... Acc@0.9 with target boxes clipped to width - 1, height - 1
    in the frame of 320 pixels.
    """

    official_single_cover = True

    # Smallest IoU of a correct box.
    iou_threshold = 0.5

    def settings(self, protocol: Protocol) -> Dict[str, Any]:
        """See `GroundingEvaluator.settings`."""
        settings = {"rec_iou_threshold": self.iou_threshold}
        if protocol.rules == "official":
            settings["mdetr_generalized_iou_threshold"] = _MDETR_GIOU_THRESHOLD
        return settings

    def make_record(self, target: GroundTruth, output: Dict[str, Any]) -> Record:
        """See `GroundingEvaluator.make_record`; adds rec {protocol: overlaps}, iou,
        box_iou and box_score.

        Raises:
            ValueError: the sample has not exactly one target.
        """
        if target.num_targets != 1:
            raise ValueError(
                f"sample '{target.sample['sample_id']}': RES and REC need exactly 1 target, found "
                f"{target.num_targets}; register '{self.dataset_name}' with "
                "evaluator_type='grefcoco'"
            )
        record = super().make_record(target, output)
        candidates = output_field(output, "candidates", target.sample)
        scores = to_numpy(candidates.scores)
        check_candidates(candidates, scores.max(initial=0.0), target.sample)
        overlaps = {p.name: top_box_overlaps(candidates, target, p) for p in self.protocols}
        iou = float(iou_ratio([record["intersection"]], [record["union"]])[0])
        record.update(
            iou=iou if target.has_masks else None,
            rec=overlaps,
            box_iou=overlaps[self.primary.name]["iou"],
            box_score=float(scores.max()) if len(scores) else None,
        )
        return record

    def summarize_protocol(self, records: Sequence[Record], protocol: Protocol) -> Results:
        """See the class for the keys."""
        whole = list(compress(records, has_masks(records)))
        results = {"res": mask_results(*pixel_columns(whole, protocol.name)[:2])}
        if protocol.rules == "official":
            unions_of_parts = pixel_columns(whole, protocol.name + "_union_gt")
            results["res_union_gt"] = mask_results(*unions_of_parts[:2])
        return {**results, "rec": self._summarize_boxes(records, protocol)}

    def _summarize_boxes(self, records: Sequence[Record], protocol: Protocol) -> Dict[str, float]:
        """REC by the rules of a protocol."""
        ious = [r["rec"][protocol.name]["iou"] for r in records]
        thresholds = [self.iou_threshold]
        if protocol.rules == "released":
            thresholds += [t for t in PRECISION_THRESHOLDS if t > self.iou_threshold]
        results = {f"Acc@{t}": precision_at(ious, t) for t in thresholds}
        if protocol.rules == "official":
            complete = len(records) == len(self.samples)
            for rank in records[0]["rec"][protocol.name]["giou"] if records else ():
                overlaps = [r["rec"][protocol.name]["giou"][rank] for r in records]
                value = precision_at(overlaps, _MDETR_GIOU_THRESHOLD)
                results[f"P@{rank}"] = value if complete else float("nan")
        return results

    def ratios(self, records: Sequence[Record], protocol: Protocol) -> Dict[str, Any]:
        """mIoU, oIoU and box accuracy."""
        intersections, unions, _, _ = pixel_columns(records, protocol.name)
        ones = np.ones(len(records))
        hits = [r["rec"][protocol.name]["iou"] >= self.iou_threshold for r in records]
        return {
            "mIoU": (iou_ratio(intersections, unions), has_masks(records)),
            "oIoU": (intersections, unions),
            f"Acc@{self.iou_threshold}": (hits, ones),
        }
