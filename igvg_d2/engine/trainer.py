"""The trainer: Detectron2's ``DefaultTrainer`` with this project's builders and guards."""

import os
import sys
import weakref

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, TrainerBase, create_ddp_model
from detectron2.utils import comm

from igvg_d2.checkpoint import GroundingCheckpointer
from igvg_d2.data import (
    GroundingTrainLoader,
    build_grounding_test_loader,
    build_grounding_train_loader,
)
from igvg_d2.data.datasets import fingerprint
from igvg_d2.evaluation import build_grounding_evaluator
from igvg_d2.solver import build_lr_scheduler, build_optimizer

from .bad_sample_log import watch_batches
from .config_checks import check_config
from .ema import build_weight_average
from .hooks import AverageBatchNormHook, RunSummaryHook, StepSeedHook
from .monitoring import MonitorHook, build_writers
from .safety import end_after_error, secure_hooks
from .schedule import resolve_schedule
from .stopping import StoppableLoader, TrainingStopped
from .train_step import build_step_trainer


class GroundingTrainer(DefaultTrainer):
    """Trains and evaluates grounding models; configs that would silently hurt are refused.

    Attributes:
        ema: :class:`WeightAverage`, whose model is evaluated, or None (``SOLVER.EMA``).
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
        check_config(cfg)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        data_loader = self.build_train_loader(cfg)
        cfg = resolve_schedule(cfg, data_loader)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        bad_sample_log = watch_batches(cfg, model)
        self.ema = build_weight_average(cfg, model, optimizer)
        # A task that sees only its own GPU sees it as number 0, whatever its local rank.
        on_cpu = cfg.MODEL.DEVICE == "cpu"
        ddp_options = {"device_ids": None if on_cpu else [torch.cuda.current_device()]}
        model = create_ddp_model(model, broadcast_buffers=False, **ddp_options)
        self._trainer = build_step_trainer(cfg, model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        checkpointables = {"trainer": weakref.proxy(self)}
        if self.ema is not None:
            checkpointables["ema"] = self.ema
        self.checkpointer = GroundingCheckpointer(model, cfg.OUTPUT_DIR, **checkpointables)
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        monitor = MonitorHook(cfg.SOLVER.IMS_PER_BATCH, getattr(data_loader, "num_items", None))
        hooks = [monitor, bad_sample_log, *self.build_hooks()]
        if isinstance(data_loader, GroundingTrainLoader):
            hooks.insert(0, StepSeedHook(data_loader.seed))
        self.register_hooks(hooks)

    def resume_or_load(self, resume=True):
        """See ``DefaultTrainer.resume_or_load``; data go on where the checkpoint was written.

        The average of the weights continues, or begins with those that were loaded.
        """
        super().resume_or_load(resume)
        if self.ema is not None and self.ema.num_updates == 0:
            self.ema.restart()
        data_loader = self._trainer.data_loader
        if isinstance(data_loader, GroundingTrainLoader):
            data_loader.seek(self.start_iter * self.cfg.SOLVER.IMS_PER_BATCH)

    def build_hooks(self):
        """Detectron2's hooks, made safe; before them the run summary and BatchNorm statistics."""
        cfg = self.cfg
        return [
            RunSummaryHook(cfg.OUTPUT_DIR, cfg.SOLVER.IMS_PER_BATCH, cfg.SEED),
            AverageBatchNormHook(cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD),
            *secure_hooks(self, super().build_hooks(), cfg),
        ]

    @property
    def evaluated_model(self) -> torch.nn.Module:
        """The average of the weights if there is one, else the model in training."""
        return self.model if self.ema is None else self.ema.model

    def evaluate(self):
        """Results of :attr:`evaluated_model`, see ``DefaultTrainer.test``."""
        self._last_eval_results = self.test(self.cfg, self.evaluated_model)
        return self._last_eval_results

    def build_writers(self):
        """See :func:`igvg_d2.engine.monitoring.build_writers`."""
        return build_writers(self.cfg, self.max_iter)

    def after_train(self):
        """Run the hooks, but after an error only those that must; see :func:`end_after_error`."""
        error = sys.exc_info()[1]
        if error is not None:
            return end_after_error(self, self._hooks, error)
        # Detectron2 counts on when a finished training is resumed and no step was left.
        self.iter = min(self.iter, self.max_iter)
        try:
            return super().after_train()
        except TrainingStopped as stopped:
            # The run summary is written.
            hooks = [hook for hook in self._hooks if not isinstance(hook, RunSummaryHook)]
            end_after_error(self, hooks, stopped)
            raise

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
