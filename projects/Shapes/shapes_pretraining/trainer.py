"""The library's trainer with this project's data, optimizer and schedule."""

import os

from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
)
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from igvg_d2.data import build_tokenizer
from igvg_d2.engine import GroundingTrainer

from .export import beit3_state
from .scenes import VISITS, PretrainingScenes

# What is written into OUTPUT_DIR at the end.
ENCODER_FILE = "beit3_encoder.safetensors"
# Shares of the run: warm-up, constant rate; then the rate falls to 0.
WARM_UP, CONSTANT = 0.01, 0.64


class PretrainingTrainer(GroundingTrainer):
    """``GroundingTrainer`` on an endless stream of scenes, without evaluation."""

    def resume_or_load(self, resume=True):
        """See ``DefaultTrainer.resume_or_load``; the stream goes on with scenes not drawn yet."""
        super().resume_or_load(resume)
        first = -(-self.start_iter * self.cfg.SOLVER.IMS_PER_BATCH // VISITS)
        self._trainer.data_loader.dataset.first_scene = first

    def train(self):
        """As ``DefaultTrainer.train``; at the end the encoder is written as a file of BEiT-3."""
        results = super().train()
        if comm.is_main_process():
            model = getattr(self.model, "module", self.model)
            facts = {
                "samples": self.max_iter * self.cfg.SOLVER.IMS_PER_BATCH,
                "seed": self.cfg.SEED,
            }
            save_file(
                beit3_state(model.backbone),
                os.path.join(self.cfg.OUTPUT_DIR, ENCODER_FILE),
                {key: str(value) for key, value in facts.items()},
            )
        return results

    @classmethod
    def build_train_loader(cls, cfg):
        """Lists of samples, this process's share of the batch."""
        scenes = PretrainingScenes(
            build_tokenizer(cfg),
            cfg.INPUT.IMAGE_SIZE,
            cfg.MODEL.BEIT3.PATCH_SIZE,
            max(cfg.SEED, 0),
            # The last row of the word table belongs to no word.
            mask_id=cfg.MODEL.BEIT3.VOCAB_SIZE - 1,
            task_shares=cfg.MODEL.PRETRAINING.TASK_SHARES,
            rank=comm.get_rank(),
            world_size=comm.get_world_size(),
        )
        return DataLoader(
            scenes,
            batch_size=cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(),
            num_workers=max(1, cfg.DATALOADER.NUM_WORKERS),
            collate_fn=list,
        )

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        """Warm-up, constant, linear to 0."""
        parts = [LinearParamScheduler(0.01, 1.0), ConstantParamScheduler(1.0)]
        schedule = CompositeParamScheduler(
            [*parts, LinearParamScheduler(1.0, 0.0)],
            [WARM_UP, CONSTANT, 1.0 - WARM_UP - CONSTANT],
            ["rescaled", "fixed", "rescaled"],
        )
        return LRMultiplier(optimizer, multiplier=schedule, max_iter=cfg.SOLVER.MAX_ITER)
