"""Evaluation during training: leaves no trace, can be stopped, and is made up for."""

import logging
import os
import random
import time
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, Optional

import numpy as np
import torch
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import nn

from .checkpointing import BestModelHook
from .stopping import EvaluationStopped, StopHook
from .training_log import read_metrics

logger = logging.getLogger(__name__)

# Logged with each evaluation; an iteration that has it in metrics.json was evaluated.
EVALUATION_MARK = "eval_seconds"


@contextmanager
def preserved_training_state(model: nn.Module) -> Iterator[None]:
    """Context after which a model trains on as if nothing had happened, also after an error.

    Restored are the mode of every module, which a plain ``model.train()`` would change for frozen
    parts, the gradient flags of the parameters, the global gradient mode and the random numbers of
    Python, numpy and PyTorch.

    Args:
        model: may be wrapped.
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    grad_mode = torch.is_grad_enabled()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    has_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    gpu_state = torch.cuda.get_rng_state() if has_gpu else None
    try:
        yield
    finally:
        for module, training in modes:
            # The attribute: train() goes down to the children and may be overridden.
            module.training = training
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)
        torch.set_grad_enabled(grad_mode)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if has_gpu:
            torch.cuda.set_rng_state(gpu_state)


class EvaluationHook(EvalHook):
    """Detectron2's ``EvalHook`` that preserves the training and survives an interruption.

    An evaluation that was due after the iteration of a checkpoint, and whose results are not in
    ``metrics.json``, comes first when the training is resumed.
    """

    def __init__(
        self,
        period: int,
        function: Callable[[], Dict[str, Any]],
        output_dir: str,
        best: Optional[BestModelHook] = None,
        stop: Optional[StopHook] = None,
    ):
        """
        Args:
            period: iterations between two evaluations; 0 = only after the training.
            function: returns nested results in the first process.
            output_dir: folder of the run.
            best: is told the results.
            stop: ends the training when the evaluation was stopped.
        """
        super().__init__(period, self._evaluate)
        self._function = function
        self._metrics_file = os.path.join(output_dir, "metrics.json")
        self._best = best
        self._stop = stop
        self._results: Dict[str, Any] = {}

    def _evaluate(self) -> Dict[str, Any]:
        """Evaluate and keep the results for :meth:`_do_eval`."""
        self._results = self._function() or {}
        return self._results

    def _do_eval(self):
        """Evaluate the model of the iteration that the event storage is at."""
        trainer = self.trainer
        iteration = min(trainer.storage.iter, trainer.max_iter - 1)
        start = time.perf_counter()
        try:
            with preserved_training_state(trainer.model):
                super()._do_eval()
        except EvaluationStopped:
            self._stop.stop(iteration)
        seconds = time.perf_counter() - start
        trainer.storage.put_scalar(EVALUATION_MARK, seconds, smoothing_hint=False)
        if self._best is not None:
            results = flatten_results_dict(self._results)
            self._best.update(results, iteration, trainer.evaluated_model)

    def before_train(self):
        """Make up for an evaluation that an interrupted run did not finish."""
        if self._stop is not None:
            self._stop.activate()
        done, storage = self.trainer.start_iter, self.trainer.storage
        # The one after the last iteration comes anyway.
        if self._period <= 0 or done == 0 or done % self._period or done >= self.trainer.max_iter:
            return
        is_known = storage.latest().get(EVALUATION_MARK, (0, -1))[1] == done - 1
        if comm.is_main_process():
            is_known |= EVALUATION_MARK in read_metrics(self._metrics_file).get(done - 1, {})
        if comm.all_gather(is_known)[0]:
            return
        logger.info("The evaluation after iteration %d was interrupted: it is repeated.", done - 1)
        storage.iter = done - 1
        self._do_eval()
        storage.iter = done
