"""Ref-L4: the best box of every expression, by IoU and by the size of the target."""

from typing import Any, Dict, Sequence

import numpy as np

from .boxes import top_box_overlaps
from .build import GROUNDING_EVALUATOR_REGISTRY
from .frames import GroundTruth
from .grounding_evaluation import Results
from .metrics import mean_percent
from .protocols import PROTOCOLS, Protocol
from .refcoco_evaluation import RefCOCOEvaluator
from .reporting import Record


@GROUNDING_EVALUATOR_REGISTRY.register()
class RefL4Evaluator(RefCOCOEvaluator):
    """Top-1 box accuracy of Ref-L4 by the rules of its authors, whatever the protocol.

    Results: "ref_l4" {Acc@0.5, Acc@0.75, Acc@0.9, mAcc (mean over 0.50, 0.55 ... 0.95), and Acc@0.5
    and mAcc of small, medium and large targets}, in percent. A hit is an IoU above the threshold,
    not at it. The means over classes, for which the authors merge those of COCO and Objects365, are
    not computed.
    """

    # Of sqrt(width * height) in pixels; medium is from the one to the other.
    small_side, large_side = 128.0, 256.0

    def settings(self, protocol: Protocol) -> Dict[str, Any]:
        """See `GroundingEvaluator.settings`."""
        return {"ref_l4_hit": "IoU > threshold", "ref_l4_sides": [self.small_side, self.large_side]}

    def make_record(self, target: GroundTruth, output: Dict[str, Any]) -> Record:
        """See `RefCOCOEvaluator.make_record`; box_iou is of "native" rules; adds target_side."""
        record = super().make_record(target, output)
        overlap = top_box_overlaps(output["candidates"], target, PROTOCOLS["native"])["iou"]
        sides = target.boxes[0, 2:] - target.boxes[0, :2]
        return {**record, "box_iou": overlap, "target_side": float(np.sqrt(sides.prod()))}

    def summarize_protocol(self, records: Sequence[Record], protocol: Protocol) -> Results:
        """No protocol changes them."""
        return {}

    def summarize_shared(self, records: Sequence[Record]) -> Results:
        """See the class for the keys."""
        ious, sides = (np.array([r[key] for r in records]) for key in ("box_iou", "target_side"))
        hits = ious[:, None] > np.arange(50, 100, 5) / 100
        results = {f"Acc@{t}": mean_percent(ious > t) for t in (0.5, 0.75, 0.9)}
        results["mAcc"] = mean_percent(hits)
        small, large = sides < self.small_side, sides > self.large_side
        for name, group in (("small", small), ("medium", ~small & ~large), ("large", large)):
            results[f"{name}_Acc@0.5"] = mean_percent(ious[group] > 0.5)
            results[f"{name}_mAcc"] = mean_percent(hits[group])
        return {"ref_l4": results}

    def ratios(self, records: Sequence[Record], protocol: Protocol) -> Dict[str, Any]:
        """Accuracy at 0.5."""
        return {"Acc@0.5": ([r["box_iou"] > 0.5 for r in records], np.ones(len(records)))}
