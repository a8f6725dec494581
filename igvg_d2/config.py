"""Every option of the project. Only new keys; overrides of Detectron2's own live in the YAML files.

Where the paper and the released model differ the default is the paper's choice and the comment
names the released one; ``configs/Released-IGVG.yaml`` selects all released choices together.
"""

from detectron2.config import CfgNode as CN

# Evaluation protocol -> side in pixels of the square frame in which it compares masks; None is the
# original frame. The mapper asks the model for masks there, evaluators compare there.
PROTOCOL_SIZES = {
    "native": None,
    "official": 480,
    "released": 320,
    "official_native": None,
    "released_native": None,
}

# Keys of earlier versions. They are ignored with a warning, so that the config.yaml of an old run
# can still be read.
REMOVED_KEYS = """
DATALOADER.MAX_BAD_BATCHES DATALOADER.MAX_BAD_RATIO INPUT.SCENE_CATEGORIES
MODEL.BEIT3.EMBED_STD MODEL.BEIT3.INIT_STD MODEL.BEIT3.STEM_BLOCKS MODEL.BEIT3.STEM_CHANNELS
MODEL.BEIT3.STEM_OBJECTS MODEL.BEIT3.STEM_ROLES MODEL.BEIT3.STEM_TEXT_STAGE
MODEL.BEIT3.TEXT_EMBEDDING MODEL.BEIT3.TEXT_LAYERS
MODEL.GLOBAL_HEAD.DICE_WEIGHT MODEL.GLOBAL_HEAD.MASK_WEIGHT
MODEL.GROUNDING_HEAD.DEEP_SUPERVISION MODEL.GROUNDING_HEAD.DICE_WEIGHT
MODEL.GROUNDING_HEAD.GIOU_WEIGHT MODEL.GROUNDING_HEAD.INSTANCE_WEIGHT
MODEL.GROUNDING_HEAD.L1_WEIGHT MODEL.GROUNDING_HEAD.MASK_WEIGHT MODEL.GROUNDING_HEAD.NUM_POINTS
MODEL.GROUNDING_HEAD.MATCHER.CLASS_WEIGHT MODEL.GROUNDING_HEAD.MATCHER.GIOU_WEIGHT
MODEL.GROUNDING_HEAD.MATCHER.L1_WEIGHT
MODEL.IGVG.TEST.WEIGHT_SCORES MODEL.NECK.STEM_FEATURES MODEL.QUERY_GENERATOR.DIM_FEEDFORWARD
MODEL.SCENE_HEAD MODEL.SYNC_BN SOLVER.MUON_LR TEST.NO_TARGET_THRESHOLD WANDB.NAME WANDB.PROJECT
""".split()


def add_igvg_config(cfg: CN) -> None:
    """Add the keys of IGVG to a Detectron2 config, in place.

    Args:
        cfg: the result of ``detectron2.config.get_cfg()``, not frozen.
    """
    _add_input(cfg)
    _add_backbone(cfg)
    _add_dense_parts(cfg)
    _add_query_generator(cfg)
    _add_grounding_head(cfg)
    _add_solver(cfg)
    _add_test(cfg)
    _add_engine(cfg)
    for key in REMOVED_KEYS:
        cfg.register_deprecated_key(key)


def _add_input(cfg: CN) -> None:
    # Data sets of your own, [name, JSON file, image folder] each, registered when the config is
    # read; the file format stands in datasets/README.md.
    cfg.DATASETS.EXPRESSION_FILES = []
    # Leave out malformed records of DATASETS.TRAIN and TEST, counted and listed in the log, instead
    # of stopping at the first one.
    cfg.DATASETS.SKIP_INVALID = False
    # What an epoch visits once: each "expression", or each "object" (ref_id) with one of its
    # expressions drawn anew at every visit (released: RefCOCO, and R-RefCOCO with its false ones).
    cfg.DATALOADER.SAMPLE_UNIT = "expression"
    # Replace unusable training samples, listed in bad_samples.jsonl, and pass over batches with a
    # non-finite loss; False stops at the first.
    cfg.DATALOADER.SKIP_BAD_SAMPLES = False
    # Network input as (height, width), multiples of the patch size; see RESIZE_MODE.
    cfg.INPUT.IMAGE_SIZE = (320, 320)
    # "pil": antialiased resize (better masks); "fast": nearly the same, and a JPEG may be decoded
    # smaller; "cv2": OpenCV bilinear without antialiasing, released.
    cfg.INPUT.RESIZE = "pil"
    # "squash" (paper), or "letterbox": keep the aspect ratio and pad at the right or bottom.
    cfg.INPUT.RESIZE_MODE = "squash"
    cfg.INPUT.FLIP = CN()
    # Probability of a horizontal flip with left/right words swapped in the expression.
    cfg.INPUT.FLIP.HORIZONTAL_PROB = 0.0
    # Probability of a vertical flip with top/bottom words swapped in the expression.
    cfg.INPUT.FLIP.VERTICAL_PROB = 0.0
    # Brightness and contrast are scaled by 1 +- this much in training; 0 switches jitter off.
    cfg.INPUT.COLOR_JITTER = 0.0
    cfg.INPUT.TOKENIZER = CN()
    # Key of TOKENIZER_REGISTRY: "BEiT3Tokenizer" or "ShapesTokenizer".
    cfg.INPUT.TOKENIZER.NAME = "BEiT3Tokenizer"
    # SentencePiece file of the BEiT-3 tokenizer (beit3.spm), a path or an address (hf://).
    cfg.INPUT.TOKENIZER.FILE = ""
    # Longest token sequence, the begin and end tokens included.
    cfg.INPUT.TOKENIZER.MAX_TOKENS = 50
    # The release's text cleaning: lower case, punctuation dropped, "-" and "/" to spaces.
    cfg.INPUT.TOKENIZER.CLEAN_TEXT = False


def _add_backbone(cfg: CN) -> None:
    cfg.MODEL.BEIT3 = CN()
    # Width C' of the encoder (base 768, large 1024).
    cfg.MODEL.BEIT3.EMBED_DIM = 768
    # Encoder layers (base 12, large 24).
    cfg.MODEL.BEIT3.DEPTH = 12
    # Attention heads (base 12, large 16).
    cfg.MODEL.BEIT3.NUM_HEADS = 12
    # Width of the feed-forward layers (base 3072, large 4096).
    cfg.MODEL.BEIT3.FFN_DIM = 3072
    # Side of a square image patch in pixels.
    cfg.MODEL.BEIT3.PATCH_SIZE = 16
    # (height, width) in pixels that the stored position table covers; other sizes interpolate it.
    cfg.MODEL.BEIT3.PRETRAIN_IMAGE_SIZE = (320, 320)
    # Rows of the token embedding; at least the size of the tokenizer's vocabulary.
    cfg.MODEL.BEIT3.VOCAB_SIZE = 64010
    # Rows of the text position table.
    cfg.MODEL.BEIT3.MAX_TEXT_POSITIONS = 1022
    # Stochastic depth at the last layer, growing linearly from 0 at the first.
    cfg.MODEL.BEIT3.DROP_PATH = 0.1
    # Recompute activations in the backward pass: less memory, about a third more time.
    cfg.MODEL.BEIT3.CHECKPOINTING = False


def _add_dense_parts(cfg: CN) -> None:
    # Beginnings of names of parameters that are not trained, for example ["backbone.encoder."];
    # BatchNorm below them keeps its statistics too. Each must match something.
    cfg.MODEL.FREEZE = []

    cfg.MODEL.IGVG = CN()
    # C: width of the projected image and text features and of the queries.
    cfg.MODEL.IGVG.HIDDEN_DIM = 256
    # Bilinear mode of mask and UNet up-sampling; the release uses True.
    cfg.MODEL.IGVG.ALIGN_CORNERS = False
    # Masks are supervised at "image" resolution (released), at "feature" resolution (cheaper), or
    # at random "points" where they are uncertain: others in each micro-batch and process.
    cfg.MODEL.IGVG.MASK_LOSS_RESOLUTION = "image"
    cfg.MODEL.IGVG.TEST = CN()
    # A query is kept, and counts as a detected target, from this score on.
    cfg.MODEL.IGVG.TEST.SCORE_THRESH_TEST = 0.7
    # Pixels are foreground from this probability on.
    cfg.MODEL.IGVG.TEST.MASK_THRESH_TEST = 0.5
    # Union mask: "merge" (global or any kept instance), "instance" or "global".
    cfg.MODEL.IGVG.TEST.OUTPUT_MASK = "merge"
    # Of two boxes with a larger IoU only the better one keeps its score; 1.0 = no suppression
    # (paper). The release has it as an option that is off.
    cfg.MODEL.IGVG.TEST.NMS_THRESH = 1.0
    # Masks in the original frame: "logits" are resized, then thresholded; "binary" masks are
    # resized by nearest neighbour (released).
    cfg.MODEL.IGVG.TEST.MASK_RESIZE = "logits"

    cfg.MODEL.NECK = CN()
    # Key of NECK_REGISTRY.
    cfg.MODEL.NECK.NAME = "SimFPN"
    # Channels of p2, p3, p4, p5; the head's levels must have HIDDEN_DIM.
    cfg.MODEL.NECK.OUT_CHANNELS = [256, 256, 256, 256]

    cfg.MODEL.PIXEL_DECODER = CN()
    # Key of PIXEL_DECODER_REGISTRY.
    cfg.MODEL.PIXEL_DECODER.NAME = "UNetPixelDecoder"
    # Width of the stages at 1/16, 1/8 and 1/4; the last one is the width of the mask features.
    cfg.MODEL.PIXEL_DECODER.CONV_DIMS = [256, 256, 256]
    # Normalisation of the stages, any name Detectron2's get_norm knows; "SyncBN" uses the batches
    # of all processes, on GPUs and on the CPU, "BN" (paper) each process's own.
    cfg.MODEL.PIXEL_DECODER.NORM = "BN"

    cfg.MODEL.GLOBAL_HEAD = CN()
    # Global segmentation S_global; off for the rows without global supervision (Table 8).
    cfg.MODEL.GLOBAL_HEAD.MASK_ON = True
    # lambda_global of Eq. 5.
    cfg.MODEL.GLOBAL_HEAD.LOSS_WEIGHT = 1.0
    # lambda_exist of Eq. 5.
    cfg.MODEL.GLOBAL_HEAD.NO_TARGET_WEIGHT = 0.2
    # Class weights of the no-target loss as (target, no target). The paper's BCE is (1, 1) because
    # a two-way softmax equals a sigmoid of the difference; the release uses (0.9, 1.1).
    cfg.MODEL.GLOBAL_HEAD.NO_TARGET_CLASS_WEIGHTS = (1.0, 1.0)
    # Target-present probability at test: "softmax" of both logits, or "sigmoid0" of the first
    # one alone (released).
    cfg.MODEL.GLOBAL_HEAD.NO_TARGET_TEST = "softmax"
    # The no-target branch reads "pixels" (paper, released) or "pixels+pooled" (also the CLS token).
    cfg.MODEL.GLOBAL_HEAD.NO_TARGET_INPUT = "pixels"


def _add_query_generator(cfg: CN) -> None:
    cfg.MODEL.QUERY_GENERATOR = CN()
    # Key of QUERY_GENERATOR_REGISTRY: PointGuidedQueryGenerator, TextGuidedQueryGenerator,
    # LearnedQueryGenerator; empty for a model with the global branch only.
    cfg.MODEL.QUERY_GENERATOR.NAME = "PointGuidedQueryGenerator"
    # N_q: queries per image (10; 1 for RefCOCO).
    cfg.MODEL.QUERY_GENERATOR.NUM_OBJECT_QUERIES = 10
    # Score Text Selector: "topk" tokens by score, "off" = all tokens, "channel" = the release's
    # channel-wise top-k of its switched-off branch.
    cfg.MODEL.QUERY_GENERATOR.TEXT_SELECTION = "topk"
    # Token score: "l2" norm (paper) or signed channel "mean" (released).
    cfg.MODEL.QUERY_GENERATOR.TEXT_SCORE = "l2"
    # Text-to-image attention: plain "cross" attention (Eq. 1) or a "decoder_layer" (released).
    cfg.MODEL.QUERY_GENERATOR.ATTENTION = "cross"
    # The score map pools softmax "weights" (Eq. 1, released) or the scaled dot-product "logits".
    cfg.MODEL.QUERY_GENERATOR.MAP = "weights"
    # Pooling of the maps over the text queries: "mean" (Eq. 2) or "max" (released).
    cfg.MODEL.QUERY_GENERATOR.POOL = "mean"
    # Point selection: "dsps" (Algorithm 1) or "topk".
    cfg.MODEL.QUERY_GENERATOR.SELECTOR = "dsps"
    # W_dist of Algorithm 1.
    cfg.MODEL.QUERY_GENERATOR.DIST_WEIGHT = 0.003
    # Unit of the distance: grid "cells" (Algorithm 1) or the grid "diagonal" (released).
    cfg.MODEL.QUERY_GENERATOR.DIST_UNIT = "cells"
    # Inject text queries (ITQ): concatenate F_q to the filtered image features (Eq. 2).
    cfg.MODEL.QUERY_GENERATOR.INJECT_TEXT = True
    # Weight of the minimap supervision of the score map; 0 switches it off.
    cfg.MODEL.QUERY_GENERATOR.MINIMAP_WEIGHT = 0.1
    # Target of the minimap: "area" share of a cell or "nearest" pixel (released).
    cfg.MODEL.QUERY_GENERATOR.MINIMAP_TARGET = "area"
    # Heads and dropout of the attention.
    cfg.MODEL.QUERY_GENERATOR.NHEADS = 8
    cfg.MODEL.QUERY_GENERATOR.DROPOUT = 0.1


def _add_grounding_head(cfg: CN) -> None:
    cfg.MODEL.GROUNDING_HEAD = CN()
    # Key of GROUNDING_HEAD_REGISTRY; empty together with an empty QUERY_GENERATOR.NAME.
    cfg.MODEL.GROUNDING_HEAD.NAME = "PointGuidedGroundingHead"
    # Key of TRANSFORMER_DECODER_REGISTRY: DeformableDecoder or DETRDecoder (Table 7).
    cfg.MODEL.GROUNDING_HEAD.DECODER = "DeformableDecoder"
    # Neck levels the decoder reads; ["p4"] is single-scale deformable attention.
    cfg.MODEL.GROUNDING_HEAD.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    # Decoder layers, heads, feed-forward width, dropout.
    cfg.MODEL.GROUNDING_HEAD.DEC_LAYERS = 3
    cfg.MODEL.GROUNDING_HEAD.NHEADS = 8
    cfg.MODEL.GROUNDING_HEAD.DIM_FEEDFORWARD = 1024
    cfg.MODEL.GROUNDING_HEAD.DROPOUT = 0.1
    # Reference of a query: its selected "point" (paper), the point plus a learned shift "shifted"
    # (released), or "learned" from the query position alone (Deformable DETR).
    cfg.MODEL.GROUNDING_HEAD.REFERENCE = "point"
    # Weights of the auxiliary layers: the "same" as the last layer's, or "ones" (released).
    cfg.MODEL.GROUNDING_HEAD.AUX_WEIGHTS = "same"
    # lambda_rec of Eq. 5.
    cfg.MODEL.GROUNDING_HEAD.LOSS_WEIGHT = 0.1
    # Weight of the cross-entropy inside L_detr; L1 has 5 and GIoU 2.
    cfg.MODEL.GROUNDING_HEAD.CLASS_WEIGHT = 1.0
    # Class weight of "no object" in the cross-entropy.
    cfg.MODEL.GROUNDING_HEAD.NO_OBJECT_WEIGHT = 0.1
    # Instance masks (Q_d x S_global); off for the rows without instance supervision (Table 8).
    cfg.MODEL.GROUNDING_HEAD.MASK_ON = True
    # lambda_neg of Eq. 6: masks of unmatched queries against nothing; 0 switches it off.
    cfg.MODEL.GROUNDING_HEAD.NEGATIVE_WEIGHT = 0.2

    cfg.MODEL.GROUNDING_HEAD.MATCHER = CN()
    # lambda_point of Eq. 4; lambda_cls is 1, lambda_box 5, lambda_giou 2.
    cfg.MODEL.GROUNDING_HEAD.MATCHER.POINT_WEIGHT = 2.0
    # Class cost: cross-entropy "ce" (Eq. 4) or negative probability "prob" (released).
    cfg.MODEL.GROUNDING_HEAD.MATCHER.CLASS_COST = "ce"


def _add_solver(cfg: CN) -> None:
    # Key of OPTIMIZER_REGISTRY: "AdamW" or "Adam".
    cfg.SOLVER.OPTIMIZER = "AdamW"
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
    # Length of the training run in epochs, from which the trainer computes MAX_ITER, WARMUP_ITERS
    # and STEPS for the batch and data at hand; 0 = MAX_ITER counts.
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
    # Micro-batches that a batch of IMS_PER_BATCH is computed in, one after the other: less memory,
    # the same gradient. Only BatchNorm sees their smaller batches.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # CPU threads of a process; 0: OMP_NUM_THREADS or all cores, shared among CPU processes.
    cfg.SOLVER.NUM_THREADS = 0
    # With SOLVER.AMP.ENABLED (Detectron2's): type of most products in training, "fp16" with
    # scaled losses, "bf16", or "tf32", which is float32 but for rounded factors (GPUs only). Losses
    # are computed in float32, and so are evaluations.
    cfg.SOLVER.AMP.PRECISION = "fp16"
    cfg.SOLVER.EMA = CN()
    # Evaluate, and give away, a moving average of the weights; training itself is the same.
    cfg.SOLVER.EMA.ENABLED = False
    # Share that the average keeps of itself in each iteration; less in the first ones.
    cfg.SOLVER.EMA.DECAY = 0.999


def _add_test(cfg: CN) -> None:
    # Epochs between two evaluations; 0 = TEST.EVAL_PERIOD counts, in iterations.
    cfg.TEST.EVAL_EPOCHS = 0
    # Metric, as metrics.json names it ("gres/gIoU"; "shapes_val/gres/gIoU" with several test sets),
    # whose highest value decides on model_best.pth; empty = no such file.
    cfg.TEST.BEST_METRIC = ""
    # Images rendered by the final evaluation, per data set; 0 renders none.
    cfg.TEST.VIS_SAMPLES = 0
    # Protocols of an evaluation, all in one pass: "native" (original resolution), "official" (rules
    # and 480 pixels of the benchmark's authors), "released" (the paper authors' evaluation at 320
    # pixels), and "official_native", "released_native" (their rules at the original resolution).
    cfg.TEST.PROTOCOLS = ("native",)
    # File of tools/calibrate.py: predictors decide "no target" by its threshold, evaluations report
    # what that does beside the model's own decision; empty = the model's own only.
    cfg.TEST.CALIBRATION = ""
    # Write the predictions of an evaluation to inference/<dataset>/<dataset>_predictions.jsonl, for
    # tools/score_predictions.py; train_net.py --eval-only switches it on.
    cfg.TEST.SAVE_PREDICTIONS = False
    # Images per batch at inference.
    cfg.TEST.BATCH_SIZE = 32


def _add_engine(cfg: CN) -> None:
    cfg.WANDB = CN()
    # Send scalars and images to Weights & Biases too; its own WANDB_PROJECT and WANDB_NAME apply.
    cfg.WANDB.ENABLED = False
