"""Detectron2's hooks, exchanged for those that lose no work, and the end of a training by force."""

import weakref
from typing import List, Optional

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer, PeriodicWriter

from .checkpointing import BestModelHook, CheckpointHook
from .evaluation_hook import EvaluationHook
from .hooks import RunSummaryHook
from .stopping import StopHook, TrainingStopped
from .training_log import ResumedWriter, TrainingLogHook


def secure_hooks(
    trainer: DefaultTrainer, hooks: List[Optional[HookBase]], cfg: CfgNode
) -> List[HookBase]:
    """Exchange Detectron2's hooks for checkpoints, evaluation and writing.

    Args:
        trainer: has ``checkpointer`` and ``evaluate()``.
        hooks: of ``DefaultTrainer.build_hooks``; others among them stay where they are.
        cfg: ``SOLVER.CHECKPOINT_PERIOD``, ``SOLVER.CHECKPOINT_KEEP``, ``TEST.EVAL_PERIOD``,
            ``TEST.BEST_METRIC`` and ``OUTPUT_DIR``.

    Returns:
        hooks in the order log, others, checkpoint, best model, evaluation, stop, others, writer.
    """
    solver, test = cfg.SOLVER, cfg.TEST
    checkpoints = CheckpointHook(
        trainer.checkpointer, solver.CHECKPOINT_PERIOD, solver.CHECKPOINT_KEEP
    )
    best = BestModelHook(trainer.checkpointer, test.BEST_METRIC) if test.BEST_METRIC else None
    stop = StopHook(checkpoints)
    # The trainer owns its hooks, so that they must not own it.
    owner = weakref.proxy(trainer)
    evaluation = EvaluationHook(
        test.EVAL_PERIOD, lambda: owner.evaluate(), cfg.OUTPUT_DIR, best, stop
    )
    secured: List[Optional[HookBase]] = []
    writers = []
    for hook in hooks:
        if isinstance(hook, EvalHook):
            secured += [checkpoints, best, evaluation, stop]
        elif isinstance(hook, PeriodicWriter):
            writers = hook._writers
            secured.append(ResumedWriter(hook._writers, hook._period))
        elif not isinstance(hook, PeriodicCheckpointer):
            secured.append(hook)
    return [TrainingLogHook(writers), *(hook for hook in secured if hook is not None)]


def end_after_error(trainer: DefaultTrainer, hooks: List[HookBase], error: BaseException) -> None:
    """What is left to do when a training does not end by itself.

    Detectron2 runs all hooks also while an exception is on its way. Those that gather numbers or
    evaluate would then wait for processes that are still training.

    Args:
        trainer: that was training.
        hooks: of it.
        error: that is on its way. After a :class:`TrainingStopped` all processes get here together,
            and what the writers do not know yet is in the checkpoint.
    """
    trainer.storage.iter = trainer.iter
    is_stop = isinstance(error, TrainingStopped)
    for hook in hooks:
        if is_stop and isinstance(hook, RunSummaryHook):
            trainer.iter = error.iteration + 1
            hook.after_train()
        elif is_stop and isinstance(hook, ResumedWriter):
            hook.close()
        elif isinstance(hook, PeriodicWriter):
            hook.after_train()
        elif isinstance(hook, StopHook) and not is_stop:
            # A stopped process keeps its handlers, to end well when it is told again.
            hook.release()
