"""Prediction files through an evaluator, with everything that is wrong with them collected."""

import collections
import gc
import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Callable, Deque, Dict, List, Optional, Tuple

import torch

from .frames import GroundTruth
from .grounding_evaluation import GroundingEvaluator
from .predictions import prediction_to_output, read_predictions

# Predictions that a worker process gets at a time.
_BLOCK = 64
# The evaluator at work, for worker processes to inherit: they are forked, because no file can name
# the data sets that a script registers.
_evaluator: Optional[GroundingEvaluator] = None


def score_file(
    evaluator: GroundingEvaluator, path: str, num_workers: int = 0, progress: Callable = iter
) -> Tuple[Dict[str, List[Any]], bool]:
    """Feed the predictions of a file to an evaluator, in one process or several.

    Args:
        evaluator: after `reset`; gets one record per usable sample, the last where one is repeated.
        path: see `read_predictions`.
        num_workers: processes; below 2 the calling one does it all.
        progress: wraps the iteration over the predictions.

    Raises:
        ChildProcessError: a worker process was killed.

    Returns:
        problems {"unknown": [sample id], "repeated": [sample id], "unusable": [(sample id, why)]},
        and whether any prediction has boxes.
    """
    problems, with_boxes, seen = {"unknown": [], "repeated": [], "unusable": []}, False, {}
    global _evaluator
    _evaluator = evaluator
    # The data set stays; to look through it again and again would take a fifth of the time.
    gc.collect()
    gc.freeze()
    for name, has_boxes, record, error in progress(_judge_all(read_predictions(path), num_workers)):
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


def _judge_all(predictions, num_workers):
    """(sample id, has boxes, record or None, error or None) of every prediction, in order."""
    if num_workers < 2 or "fork" not in multiprocessing.get_all_start_methods():
        yield from map(_judge, predictions)
        return
    torch.set_num_threads(1)
    # Not multiprocessing's own pool, which waits for a killed process for ever.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        # In blocks: a pool would read the whole file ahead and keep it in memory. Some blocks
        # ahead, so that the workers judge while the file is being read.
        waiting: Deque[Any] = collections.deque()
        try:
            while block := list(itertools.islice(predictions, _BLOCK)):
                waiting.append(pool.submit(_judge_block, block))
                if len(waiting) > 2 * num_workers:
                    yield from waiting.popleft().result()
            for judged in waiting:
                yield from judged.result()
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a worker process was killed, perhaps because memory ran out; use --num-workers 0"
            ) from error


def _judge_block(predictions):
    """In a worker."""
    return list(map(_judge, predictions))


def _judge(prediction):
    """See `_judge_all`; in this process or a worker."""
    name = prediction["sample_id"]
    sample = _evaluator.samples.get(name)
    if sample is None:
        return name, False, None, None
    try:
        target = GroundTruth.from_sample(sample)
        record = _evaluator.make_record(target, prediction_to_output(prediction, sample))
    except ValueError as error:
        return name, False, None, str(error)
    return name, "boxes" in prediction, record, None
