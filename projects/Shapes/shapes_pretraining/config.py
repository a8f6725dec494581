"""Options of the pretraining."""

from detectron2.config import CfgNode as CN


def add_pretraining_config(cfg: CN) -> None:
    """Add the keys of this project to a config that has the library's, in place."""
    cfg.MODEL.PRETRAINING = CN()
    # Cells along the side of a patch whose membership in the patch's object is predicted.
    cfg.MODEL.PRETRAINING.CELLS = 4
    # Weight of a patch of a hidden object, relative to other patches.
    cfg.MODEL.PRETRAINING.HIDDEN_WEIGHT = 3.0
    # Shares of samples with hidden objects, with masked words of an expression and of a caption.
    cfg.MODEL.PRETRAINING.TASK_SHARES = (0.55, 0.3, 0.0)
    # Weights of the losses of masked words, of what the end token tells of the objects that are
    # meant, of their number, and of the patches that the expression refers to (0: no such loss).
    cfg.MODEL.PRETRAINING.WORDS_WEIGHT = 0.5
    cfg.MODEL.PRETRAINING.TARGETS_WEIGHT = 0.5
    cfg.MODEL.PRETRAINING.COUNT_WEIGHT = 0.5
    cfg.MODEL.PRETRAINING.REFERRED_WEIGHT = 0.0
    # Weight of what patches tell of the neighbors of their object.
    cfg.MODEL.PRETRAINING.NEIGHBORS_WEIGHT = 0.0
    # Weight of the end token's pointing to these patches in the two layers before the last.
    cfg.MODEL.PRETRAINING.POINTER_WEIGHT = 0.0
    # Last layers that begin as identities with flat attention; see initialize_locally.
    cfg.MODEL.PRETRAINING.LISTENING_LAYERS = 0
    # Learning rate of weight matrices under SOLVER.OPTIMIZER "Muon"; BASE_LR is that of the rest.
    cfg.SOLVER.MATRIX_LR = 0.01
