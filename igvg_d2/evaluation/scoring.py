"""Prediction files through an evaluator, with everything that is wrong with them collected."""

import gc
import logging
from functools import partial
from typing import Any, Callable, Dict, List, Tuple

import pycocotools.mask as mask_util
import torch

from igvg_d2.io.processes import map_in_processes

from .frames import GroundTruth
from .grounding_evaluation import GroundingEvaluator
from .predictions import prediction_to_output, read_predictions

logger = logging.getLogger(__name__)


def score_file(
    evaluator: GroundingEvaluator, path: str, num_workers: int = 0, progress: Callable = iter
) -> Tuple[Dict[str, List[Any]], bool]:
    """Feed the predictions of a file to an evaluator, in one process or several.

    Args:
        evaluator: after `reset`; gets one record per usable sample, the last where one is repeated.
        path: see `read_predictions`.
        num_workers: processes; below 2 the calling one does it all.
        progress: wraps the iteration over the predictions.

    Returns:
        problems {"unknown": [sample id], "repeated": [sample id], "unusable": [(sample id, why)]},
        and whether any prediction has boxes.

    Raises:
        ChildProcessError: see `map_in_processes`.
    """
    problems, with_boxes, seen = {"unknown": [], "repeated": [], "unusable": []}, False, {}
    warn_of_empty_targets(evaluator)
    # The data set stays; to look through it again and again would take a fifth of the time.
    gc.collect()
    gc.freeze()
    if num_workers > 1:
        torch.set_num_threads(1)
    judge = partial(_judge, evaluator, has_masks(evaluator))
    judged = map_in_processes(judge, read_predictions(path), num_workers)
    for name, has_boxes, record, error in progress(judged):
        if name in seen:
            problems["repeated"].append(name)
        if name not in evaluator.samples:
            problems["unknown"].append(name)
        elif error:
            problems["unusable"].append((name, error))
        elif name in seen:
            evaluator.records[seen[name]] = record
        else:
            seen[name] = len(evaluator.records)
            evaluator.records.append(record)
        with_boxes = with_boxes or has_boxes
    return problems, with_boxes


def has_masks(evaluator: GroundingEvaluator) -> bool:
    """Whether a target of the data set has a mask; True without any target."""
    targets = [a for sample in evaluator.samples.values() for a in sample["annotations"]]
    return not targets or any("segmentation" in a for a in targets)


def warn_of_empty_targets(evaluator: GroundingEvaluator) -> None:
    """Say which targets nobody can hit; training and our own evaluation stop at them."""
    names = [
        name
        for name, sample in evaluator.samples.items()
        for masks in [[a["segmentation"] for a in sample["annotations"] if "segmentation" in a]]
        if not all(map(mask_util.area, masks))
    ]
    if names:
        logger.warning(
            "data set '%s': %d samples have a target without area, which no prediction can hit; "
            "correct or remove the annotation. First %s",
            *(evaluator.dataset_name, len(names), names[:10]),
        )


def _judge(evaluator, needs_mask, prediction):
    """(sample id, has boxes, record or None, error or None), in this process or a worker."""
    name = prediction["sample_id"]
    sample = evaluator.samples.get(name)
    if sample is None:
        return name, False, None, None
    try:
        target = GroundTruth.from_sample(sample)
        output = prediction_to_output(prediction, sample, needs_mask)
        record = evaluator.make_record(target, output)
    except ValueError as error:
        return name, False, None, str(error)
    return name, "boxes" in prediction, record, None
