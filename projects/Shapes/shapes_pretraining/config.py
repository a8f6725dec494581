"""Options of the pretraining."""

from detectron2.config import CfgNode as CN


def add_pretraining_config(cfg: CN) -> None:
    """Add the keys of this project to a config that has the library's, in place."""
    cfg.MODEL.PRETRAINING = CN()
    # Cells along the side of a patch whose membership in the patch's object is predicted.
    cfg.MODEL.PRETRAINING.CELLS = 4
    # Weight of a patch of a hidden object, relative to other patches.
    cfg.MODEL.PRETRAINING.HIDDEN_WEIGHT = 3.0
    # Learning rate of weight matrices under SOLVER.OPTIMIZER "Muon"; BASE_LR is that of the rest.
    cfg.SOLVER.MUON_LR = 0.01
