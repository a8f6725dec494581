"""What a run was started with, kept in its checkpoints and compared when it is resumed."""

import logging
import os
from typing import Dict

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from igvg_d2.io.hub import file_sha256

from .config_checks import flatten

logger = logging.getLogger(__name__)

# Options that decide what is learned; StepSeedHook speaks of the seed.
_PREFIXES = ("MODEL.", "INPUT.", "SOLVER.", "DATASETS.TRAIN", "DATALOADER.SAMPLE_UNIT")
# Where and how fast it is learned, and where weights came from that the checkpoint replaces.
_UNRELATED = ("MODEL.DEVICE", "MODEL.WEIGHTS", "SOLVER.NUM_THREADS", "MODEL.BEIT3.CHECKPOINTING")
# Stored with the optimizer's parameter groups, which a resumed run takes from the checkpoint.
_IN_OPTIMIZER = (
    "BASE_LR WEIGHT_DECAY WEIGHT_DECAY_NORM WEIGHT_DECAY_BIAS BIAS_LR_FACTOR BACKBONE_MULTIPLIER "
    "LAYER_DECAY BETAS EPS AMSGRAD MOMENTUM NESTEROV"
).split()


class RunRecord:
    """Options and hashes of the training data of a run, as part of its checkpoints."""

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: of the run, resolved.
        """
        self.options = {
            # Lists and tuples say the same.
            key: str(list(value) if isinstance(value, (list, tuple)) else value)
            for key, value in flatten(cfg)
            if key.startswith(_PREFIXES) and key not in _UNRELATED
        }
        self.data: Dict[str, str] = {}
        # The first process writes checkpoints, and says what differs.
        for name in cfg.DATASETS.TRAIN if comm.is_main_process() else ():
            metadata = MetadataCatalog.get(name)
            for key in ("annotation_file", "instances_file"):
                path = metadata.get(key, None)
                if path is not None and os.path.isfile(path):
                    self.data[f"{name}, {key}"] = file_sha256(path)

    def state_dict(self) -> Dict[str, Dict[str, str]]:
        """Text by option, and SHA-256 by data set and file."""
        return {"options": dict(self.options), "data": dict(self.data)}

    def load_state_dict(self, state: Dict[str, Dict[str, str]]) -> None:
        """Log what differs from the run that is resumed, and which value counts."""
        if not comm.is_main_process():
            return
        for key, old in state["options"].items():
            new = self.options.get(key, old)
            if new != old:
                stays = key.partition(".")[2] in _IN_OPTIMIZER
                logger.warning(
                    "--resume: %s was %s in this run and is %s now; %s.",
                    *(key, old, new),
                    (
                        "the optimizer goes on with the old value"
                        if stays
                        else "the new value is used"
                    ),
                )
        for key, old in state["data"].items():
            new = self.data.get(key, old)
            if new != old:
                logger.warning(
                    "--resume: the training data are others than in this run: %s has SHA-256 %s, "
                    "and had %s.",
                    *(key, new, old),
                )
