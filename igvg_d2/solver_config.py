"""The options of optimisation and of the training loop, added by ``add_igvg_config``."""

from detectron2.config import CfgNode as CN


def add_solver_config(cfg: CN) -> None:
    """Add the keys below ``SOLVER`` to a Detectron2 config, in place.

    Args:
        cfg: the result of ``detectron2.config.get_cfg()``, not frozen.
    """
    # "AdamW", "Adam", or "Muon": orthogonalised steps for weight matrices, AdamW for the rest.
    cfg.SOLVER.OPTIMIZER = "AdamW"
    # Learning rate of the weight matrices under "Muon", in the same schedule as BASE_LR.
    cfg.SOLVER.MUON_LR = 0.02
    cfg.SOLVER.BETAS = (0.9, 0.999)
    cfg.SOLVER.EPS = 1e-8
    cfg.SOLVER.AMSGRAD = False
    # Factor on the learning rate of the encoder.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    # Factor on the learning rate from each encoder layer to the one below (AdamW recipes of ViTs
    # use 0.7 to 0.9); 1.0 = none (paper).
    cfg.SOLVER.LAYER_DECAY = 1.0
    # Total norm over all parameters that gradients are clipped to; 0 switches clipping off.
    cfg.SOLVER.CLIP_TOTAL_NORM = 0.0
    # Length of the training in epochs, from which the trainer computes MAX_ITER, WARMUP_ITERS and
    # STEPS for the batch and data at hand; 0 = MAX_ITER counts.
    cfg.SOLVER.EPOCHS = 0
    # Epochs of warm-up. WARMUP_METHOD "staircase" (paper) goes with it: in epoch e (from 0) of w
    # the learning rate has the factor (e + 1) / (w + 1).
    cfg.SOLVER.WARMUP_EPOCHS = 0
    # Numbers of finished epochs after which the learning rate is multiplied by GAMMA.
    cfg.SOLVER.STEP_EPOCHS = ()
    # Epochs between two checkpoints; 0 = SOLVER.CHECKPOINT_PERIOD counts, in iterations.
    cfg.SOLVER.CHECKPOINT_EPOCHS = 0
    # Numbered checkpoints that are kept, the newest ones; 0 = all. The final one, the best model
    # and files of other runs in the folder stay.
    cfg.SOLVER.CHECKPOINT_KEEP = 0
    # CPU threads of the training process; 0 keeps PyTorch's choice.
    cfg.SOLVER.NUM_THREADS = 0

    # Micro-batches that a batch of IMS_PER_BATCH is computed in, one after the other: less memory,
    # the same gradient. Only BatchNorm sees their smaller batches.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # With SOLVER.AMP.ENABLED (Detectron2's): type of most products in the training, "fp16" with
    # scaled losses, or "bf16". Losses are computed in float32, and so are evaluations.
    cfg.SOLVER.AMP.PRECISION = "fp16"
    cfg.SOLVER.EMA = CN()
    # Evaluate, and give away, a moving average of the weights; the training itself is the same.
    cfg.SOLVER.EMA.ENABLED = False
    # Share that the average keeps of itself in each iteration; less in the first ones.
    cfg.SOLVER.EMA.DECAY = 0.999
