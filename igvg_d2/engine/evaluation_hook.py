"""Side-effect-free, interruptible evaluation, repeated after a resume if it was missed."""

import logging
import os
import random
import time
from contextlib import contextmanager
from typing import Iterator, Optional

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import nn

from igvg_d2.io.json_stream import read_metrics

from .checkpointing import BestModelHook
from .stop_signals import EvaluationStopped, StopHook

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
    states = random.getstate(), np.random.get_state()
    has_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    gpus = [torch.cuda.current_device()] if has_gpu else []
    try:
        with torch.random.fork_rng(gpus), torch.set_grad_enabled(torch.is_grad_enabled()):
            yield
    finally:
        for module, training in modes:
            # The attribute: train() goes down to the children and may be overridden.
            module.training = training
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)
        random.setstate(states[0])
        np.random.set_state(states[1])


class EvaluationHook(HookBase):
    """Evaluates now and then and at the end; preserves the run and survives an interruption.

    An evaluation that was due after the iteration of a checkpoint, and whose results are not in
    ``metrics.json``, comes first when the run is resumed.
    """

    def __init__(
        self, period: int, output_dir: str, stop: StopHook, best: Optional[BestModelHook] = None
    ):
        """
        Args:
            period: iterations between two evaluations; 0 = only after the last.
            output_dir: folder of the run.
            stop: ends the run when the evaluation was stopped.
            best: is told the results.
        """
        self.period = period
        self.metrics_file = os.path.join(output_dir, "metrics.json")
        self.stop = stop
        self.best = best

    def evaluate(self) -> None:
        """Evaluate the model of the iteration that the event storage is at."""
        trainer = self.trainer
        iteration = min(trainer.storage.iter, trainer.max_iter - 1)
        start = time.perf_counter()
        try:
            with preserved_training_state(trainer.model):
                results = flatten_results_dict(trainer.evaluate() or {})
        except EvaluationStopped:
            self.stop.stop(iteration)
        trainer.storage.put_scalars(**results, smoothing_hint=False)
        # Processes that evaluated less do not run ahead into a collective of the next step.
        comm.synchronize()
        seconds = time.perf_counter() - start
        trainer.storage.put_scalar(EVALUATION_MARK, seconds, smoothing_hint=False)
        if self.best is not None:
            self.best.update(results, iteration, trainer.evaluated_model)

    def after_step(self):
        """Evaluate if it is time; after the last step :meth:`after_train` does."""
        done = self.trainer.iter + 1
        if self.period > 0 and done % self.period == 0 and done != self.trainer.max_iter:
            self.evaluate()

    def after_train(self):
        """Evaluate the final model."""
        self.evaluate()

    def before_train(self):
        """Make up for an evaluation that an interrupted run did not finish."""
        self.stop.activate()
        done, storage = self.trainer.start_iter, self.trainer.storage
        # The one after the last iteration comes anyway.
        if self.period <= 0 or done == 0 or done % self.period or done >= self.trainer.max_iter:
            return
        is_known = storage.latest().get(EVALUATION_MARK, (0, -1))[1] == done - 1
        if comm.is_main_process():
            is_known |= EVALUATION_MARK in read_metrics(self.metrics_file).get(done - 1, {})
        if comm.all_gather(is_known)[0]:
            return
        logger.info("The evaluation after iteration %d was interrupted: it is repeated.", done - 1)
        storage.iter = done - 1
        self.evaluate()
        storage.iter = done
