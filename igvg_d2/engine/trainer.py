"""The trainer: Detectron2's ``DefaultTrainer`` with this project's builders, hooks and guards."""

import logging
import os
import sys
import weakref
from typing import Any, Dict, List

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model
from detectron2.engine.hooks import IterationTimer, LRScheduler
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from igvg_d2.checkpoint import GroundingCheckpointer
from igvg_d2.data import (
    GroundingTrainLoader,
    build_grounding_test_loader,
    build_grounding_train_loader,
)
from igvg_d2.data.datasets import fingerprint
from igvg_d2.evaluation import build_grounding_evaluator
from igvg_d2.modeling.meta_arch import optimize_for_inference
from igvg_d2.solver import build_lr_scheduler, build_optimizer

from .checkpointing import BestModelHook, CheckpointHook
from .config_checks import (
    check_config,
    check_vocabulary,
    record_reads,
    report_unread_keys,
    warn_of_random_encoder,
)
from .devices import with_usable_device
from .evaluation_hook import EvaluationHook
from .guards import BadSampleLog, LossGuard
from .hooks import AverageBatchNormHook, RunSummaryHook, StepSeedHook
from .monitoring import MonitorHook, TrainingLogHook, WriterHook, build_writers
from .run_record import RunRecord
from .setup import resolve_schedule
from .stop_signals import StopHook, StoppableLoader, TrainingStopped
from .train_step import WeightAverage, build_step_trainer

logger = logging.getLogger(__name__)


class GroundingTrainer(DefaultTrainer):
    """Trains and evaluates grounding models; configs that would silently hurt are refused.

    Attributes:
        ema: :class:`WeightAverage`, whose model is evaluated, or None (``SOLVER.EMA``).
        hooks: all that are registered.
        results: nested metrics of the last evaluation; {} in other processes than the first.
    """

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: a frozen config.

        Raises:
            ValueError: see :func:`igvg_d2.engine.config_checks.check_config`.
        """
        # As DefaultTrainer.__init__, which hands GPU ids to DDP also on the CPU.
        TrainerBase.__init__(self)
        cfg = record_reads(with_usable_device(cfg))
        check_config(cfg)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        data_loader = self.build_train_loader(cfg)
        cfg = resolve_schedule(cfg, data_loader)
        model = self.build_model(cfg)
        check_vocabulary(cfg, model)
        optimizer = self.build_optimizer(cfg, model)
        self.bad_sample_log = None
        if cfg.DATALOADER.SKIP_BAD_SAMPLES:
            periods = (20, cfg.SOLVER.CHECKPOINT_PERIOD)
            self.bad_sample_log = BadSampleLog(model, cfg.OUTPUT_DIR, periods=periods)
        guard = LossGuard(model, self.bad_sample_log)
        ema = cfg.SOLVER.EMA
        self.ema = WeightAverage(model, optimizer, ema.DECAY) if ema.ENABLED else None
        on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
        device_ids = [torch.cuda.current_device()] if on_gpu else None
        model = create_ddp_model(model, broadcast_buffers=False, device_ids=device_ids)
        self._trainer = build_step_trainer(cfg, model, data_loader, optimizer)
        if self.bad_sample_log is None:
            self._trainer.defer(guard)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        checkpointables = {"trainer": weakref.proxy(self), "run": RunRecord(cfg)}
        if self.ema is not None:
            checkpointables["ema"] = self.ema
        self.checkpointer = GroundingCheckpointer(model, cfg.OUTPUT_DIR, **checkpointables)
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.results: Dict[str, Any] = {}
        self.hooks = self.build_hooks()
        self.register_hooks(self.hooks)

    def resume_or_load(self, resume=True):
        """See ``DefaultTrainer.resume_or_load``; data go on where the checkpoint was written.

        The average of the weights continues, or begins with those that were loaded.
        """
        super().resume_or_load(resume)
        if self.start_iter == 0:
            warn_of_random_encoder(self.cfg)
        if self.ema is not None and self.ema.num_updates == 0:
            self.ema.restart()
        data_loader = self._trainer.data_loader
        if isinstance(data_loader, GroundingTrainLoader):
            data_loader.seek(self.start_iter * self.cfg.SOLVER.IMS_PER_BATCH)

    def build_hooks(self) -> List[HookBase]:
        """All hooks in their order; Detectron2's checkpoints, evaluation and writing made safe."""
        cfg, data_loader = self.cfg, self._trainer.data_loader
        log, *others = build_resumable_hooks(self)
        hooks = [
            log,
            MonitorHook(cfg.SOLVER.IMS_PER_BATCH, getattr(data_loader, "num_items", None)),
            self.bad_sample_log,
            RunSummaryHook(cfg.OUTPUT_DIR, cfg.SOLVER.IMS_PER_BATCH, cfg.SEED),
            AverageBatchNormHook(cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD),
            IterationTimer(),
            LRScheduler(),
            *others,
        ]
        if isinstance(data_loader, GroundingTrainLoader):
            hooks.insert(0, StepSeedHook(data_loader.seed))
        return [hook for hook in hooks if hook is not None]

    def train(self) -> Dict[str, Any]:
        """Train from ``start_iter`` on; returns :attr:`results`, checked against expected ones."""
        report_unread_keys(self.cfg)
        TrainerBase.train(self, self.start_iter, self.max_iter)
        verify_results(self.cfg, self.results)
        return self.results

    @property
    def evaluated_model(self) -> torch.nn.Module:
        """The average of the weights if there is one, else the model in training."""
        return self.model if self.ema is None else self.ema.model

    def evaluate(self) -> Dict[str, Any]:
        """Results of :attr:`evaluated_model`, see ``DefaultTrainer.test``."""
        is_first = not self.results
        self.results = self.test(self.cfg, self.evaluated_model)
        if is_first:
            report_unread_keys(self.cfg, evaluated=True)
        return self.results

    @classmethod
    def test(cls, cfg: CfgNode, model, evaluators=None):
        """See ``DefaultTrainer.test``; the model answers as in a predictor, to the last digit."""
        return super().test(cfg, optimize_for_inference(model), evaluators)

    def build_writers(self):
        """See :func:`igvg_d2.engine.monitoring.build_writers`."""
        return build_writers(self.cfg, self.max_iter, self.start_iter)

    def after_train(self):
        """Run the hooks, but after an error only those that must.

        Detectron2 runs all hooks also while an exception is on its way. Those that gather numbers
        or evaluate would then wait for processes that are still training.
        """
        error = sys.exc_info()[1]
        if error is not None:
            return self._end_after(error)
        # Detectron2 counts on when a finished run is resumed and no step was left.
        self.iter = min(self.iter, self.max_iter)
        try:
            return super().after_train()
        except TrainingStopped as stopped:
            self._end_after(stopped, has_summary=True)
            raise

    def _end_after(self, error: BaseException, has_summary: bool = False) -> None:
        """Write and close what is open, and leave the signals as is right.

        After a :class:`TrainingStopped` all processes get here together, and what the writers do
        not know yet is in the checkpoint.
        """
        self.storage.iter = self.iter
        is_stop = isinstance(error, TrainingStopped)
        for hook in self.hooks:
            if is_stop and isinstance(hook, RunSummaryHook) and not has_summary:
                self.iter = error.iteration + 1
                hook.after_train()
            elif isinstance(hook, WriterHook):
                hook.close() if is_stop else hook.after_train()
            elif isinstance(hook, StopHook) and not is_stop:
                # A stopped process keeps its handlers, to end well when it is told again.
                hook.after_train()

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model) -> torch.optim.Optimizer:
        """See :func:`igvg_d2.solver.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer):
        """See :func:`igvg_d2.solver.build_lr_scheduler`."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        """See :func:`build_grounding_train_loader`; no-target samples are kept."""
        return build_grounding_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        """Batched by ``TEST.BATCH_SIZE``: all inputs have one size."""
        return StoppableLoader(
            build_grounding_test_loader(cfg, dataset_name, batch_size=cfg.TEST.BATCH_SIZE)
        )

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder=None):
        """The evaluator of the dataset's kind, writing to ``OUTPUT_DIR/inference/<dataset>``."""
        if output_folder is None:
            output_folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        evaluator = build_grounding_evaluator(cfg, dataset_name, output_folder)
        # Evaluation does not import data, so the hash of the data set comes from here.
        evaluator.fingerprint = fingerprint
        return evaluator


def verify_results(cfg: CfgNode, results: Dict[str, Any]) -> None:
    """End the process unless the results are ``TEST.EXPECTED_RESULTS``, as Detectron2's function.

    An entry is [task, metric, expected, tolerance], with several test sets the task is
    "<data set>/<task>". What was not measured, or is not a number, is not reached.

    Args:
        cfg: with the expected results.
        results: nested metrics of the evaluation, in the first process.

    Raises:
        SystemExit: with code 1, after what was expected and found is logged.
    """
    if not comm.is_main_process():
        return
    found, failed = flatten_results_dict(results), False
    for task, metric, expected, tolerance in cfg.TEST.EXPECTED_RESULTS:
        value = found.get(f"{task}/{metric}", float("nan"))
        is_reached = abs(value - expected) <= tolerance
        log = logger.info if is_reached else logger.error
        log("%s/%s: expected %g +- %g, found %.4g", task, metric, expected, tolerance, value)
        failed |= not is_reached
    if failed:
        logger.error("TEST.EXPECTED_RESULTS not reached; measured were: %s", ", ".join(found))
        sys.exit(1)


def build_resumable_hooks(trainer: GroundingTrainer) -> List[HookBase]:
    """Log (to be registered first), checkpoints, best model, evaluation, stop signals, writers.

    Args:
        trainer: has ``cfg``, ``checkpointer``, ``evaluate()`` and ``build_writers()``.
    """
    cfg = trainer.cfg
    log = TrainingLogHook()
    checkpoints = CheckpointHook(
        trainer.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.CHECKPOINT_KEEP
    )
    metric = cfg.TEST.BEST_METRIC
    best = BestModelHook(trainer.checkpointer, metric) if metric else None
    stop = StopHook(checkpoints)
    evaluation = EvaluationHook(cfg.TEST.EVAL_PERIOD, cfg.OUTPUT_DIR, stop, best)
    hooks = [log, checkpoints, best, evaluation, stop, WriterHook(log)]
    return [hook for hook in hooks if hook is not None]
