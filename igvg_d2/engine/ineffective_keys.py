"""Which options that somebody set have no effect in the chosen configuration?"""

import fnmatch
import logging
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Tuple

from detectron2.config import CfgNode, get_cfg
from tabulate import tabulate

from igvg_d2.config import add_igvg_config

logger = logging.getLogger(__name__)


class Rule(NamedTuple):
    """Options that have no effect under a condition.

    Attributes:
        keys: patterns of full key names; a ``!`` in front takes names out again.
        applies: the condition, given the config.
        why: the reason, as the user reads it.
    """

    keys: Tuple[str, ...]
    applies: Callable[[CfgNode], bool]
    why: str


class IneffectiveKey(NamedTuple):
    """One finding: full name, value and reason."""

    key: str
    value: Any
    why: str


def _always(cfg: CfgNode) -> bool:
    return True


def _queries(cfg: CfgNode) -> CfgNode:
    return cfg.MODEL.QUERY_GENERATOR


def _head(cfg: CfgNode) -> CfgNode:
    return cfg.MODEL.GROUNDING_HEAD


_QUERY, _HEAD, _GLOBAL = "MODEL.QUERY_GENERATOR.", "MODEL.GROUNDING_HEAD.", "MODEL.GLOBAL_HEAD."
_STEPPED = ("WarmupMultiStepLR", "WarmupStepWithFixedGammaLR")

# Options of Detectron2 that nothing here reads; tests/engine/test_config_checks.py watches.
_DETECTRON2 = (
    Rule(
        tuple(
            f"MODEL.{part}"
            for part in (
                *("RPN.*", "ROI_*", "ANCHOR_GENERATOR.*", "PROPOSAL_GENERATOR.*", "FPN.*"),
                *("RESNETS.*", "RETINANET.*", "SEM_SEG_HEAD.*", "PANOPTIC_FPN.*"),
                *("KEYPOINT_ON", "MASK_ON", "LOAD_PROPOSALS"),
            )
        ),
        _always,
        "the model has no such part",
    ),
    Rule(
        ("DATASETS.PROPOSAL_FILES_*", "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_*"),
        _always,
        "the model reads no proposals",
    ),
    Rule(
        ("INPUT.MASK_FORMAT",), _always, "masks are always bitmaps; every format can be annotated"
    ),
    Rule(("INPUT.CROP.*",), _always, "crops can cut targets away and are refused"),
    Rule(("DATALOADER.ASPECT_RATIO_GROUPING",), _always, "all inputs have one size"),
    Rule(
        (
            *("DATALOADER.REPEAT_THRESHOLD", "DATALOADER.REPEAT_SQRT"),
            *("DATALOADER.RANDOM_SUBSET_*", "DATASETS.TRAIN_REPEAT_FACTOR"),
        ),
        _always,
        "every epoch visits every item once",
    ),
    Rule(("TEST.AUG.*",), _always, "there is no test-time augmentation"),
    Rule(
        ("TEST.DETECTIONS_PER_IMAGE", "TEST.KEYPOINT_OKS_SIGMAS"),
        _always,
        "the number of queries and MODEL.IGVG.TEST decide what is kept",
    ),
    Rule(
        ("SOLVER.MOMENTUM", "SOLVER.NESTEROV", "SOLVER.BIAS_LR_FACTOR"),
        _always,
        "SOLVER.OPTIMIZER offers no SGD; see BETAS",
    ),
    Rule(
        ("SOLVER.CLIP_GRADIENTS.*",),
        _always,
        "gradients are clipped by their total norm: SOLVER.CLIP_TOTAL_NORM",
    ),
)

_SOLVER = (
    Rule(
        ("SOLVER.MUON_LR",),
        lambda cfg: cfg.SOLVER.OPTIMIZER != "Muon",
        "only SOLVER.OPTIMIZER Muon uses it",
    ),
    Rule(
        ("SOLVER.AMSGRAD",),
        lambda cfg: cfg.SOLVER.OPTIMIZER == "Muon",
        "Muon has no AMSGrad",
    ),
    Rule(
        ("SOLVER.STEPS", "SOLVER.STEP_EPOCHS", "SOLVER.GAMMA"),
        lambda cfg: cfg.SOLVER.LR_SCHEDULER_NAME not in _STEPPED,
        "SOLVER.LR_SCHEDULER_NAME has no steps",
    ),
    Rule(
        ("SOLVER.WARMUP_FACTOR",),
        lambda cfg: cfg.SOLVER.WARMUP_METHOD == "staircase",
        "a staircase warm-up has factors of its own",
    ),
    Rule(
        ("SOLVER.NUM_DECAYS", "SOLVER.RESCALE_INTERVAL"),
        lambda cfg: cfg.SOLVER.LR_SCHEDULER_NAME != "WarmupStepWithFixedGammaLR",
        "only WarmupStepWithFixedGammaLR uses it",
    ),
    Rule(
        ("SOLVER.BASE_LR_END",),
        lambda cfg: cfg.SOLVER.LR_SCHEDULER_NAME != "WarmupCosineLR",
        "only WarmupCosineLR uses it",
    ),
    Rule(
        ("SOLVER.AMP.PRECISION",),
        lambda cfg: not cfg.SOLVER.AMP.ENABLED,
        "SOLVER.AMP.ENABLED is False",
    ),
    Rule(
        ("SOLVER.EMA.DECAY",),
        lambda cfg: not cfg.SOLVER.EMA.ENABLED,
        "SOLVER.EMA.ENABLED is False",
    ),
    Rule(
        ("TEST.PRECISE_BN.*",),
        lambda cfg: cfg.SOLVER.EMA.ENABLED,
        "the model that SOLVER.EMA evaluates has averages of the statistics",
    ),
    Rule(
        ("DATALOADER.MAX_BAD_*",),
        lambda cfg: not cfg.DATALOADER.SKIP_BAD_SAMPLES,
        "without DATALOADER.SKIP_BAD_SAMPLES the first bad sample stops the training",
    ),
    Rule(
        ("WANDB.PROJECT", "WANDB.NAME"),
        lambda cfg: not cfg.WANDB.ENABLED,
        "WANDB.ENABLED is False",
    ),
    Rule(
        ("TEST.PRECISE_BN.NUM_ITER",),
        lambda cfg: not cfg.TEST.PRECISE_BN.ENABLED,
        "TEST.PRECISE_BN.ENABLED is False",
    ),
)

_MODEL = (
    Rule(
        ("MODEL.BEIT3.*", "!MODEL.BEIT3.VOCAB_SIZE"),
        lambda cfg: cfg.MODEL.BACKBONE.NAME != "BEiT3",
        "MODEL.BACKBONE.NAME is another backbone",
    ),
    Rule(
        (_QUERY + "*", _HEAD + "*", f"!{_QUERY}NAME", f"!{_HEAD}NAME")
        + tuple(f"MODEL.IGVG.TEST.{k}" for k in ("SCORE_*", "WEIGHT_SCORES", "NMS_*")),
        lambda cfg: not _queries(cfg).NAME,
        "MODEL.QUERY_GENERATOR.NAME is empty: the model has the global branch only",
    ),
    Rule(
        (_QUERY + "*", f"!{_QUERY}NAME", f"!{_QUERY}NUM_OBJECT_QUERIES"),
        lambda cfg: _queries(cfg).NAME == "LearnedQueryGenerator",
        "learned queries depend on their number only",
    ),
    Rule(
        (_QUERY + "*",)
        + tuple(f"!{_QUERY}{k}" for k in ("NAME", "NUM_OBJECT_QUERIES", "NHEADS", "DROPOUT")),
        lambda cfg: _queries(cfg).NAME == "TextGuidedQueryGenerator",
        "text-guided queries select no points",
    ),
    Rule(
        (_QUERY + "TEXT_SCORE",),
        lambda cfg: _queries(cfg).TEXT_SELECTION != "topk",
        "MODEL.QUERY_GENERATOR.TEXT_SELECTION does not score tokens",
    ),
    Rule(
        (_QUERY + "DIM_FEEDFORWARD",),
        lambda cfg: _queries(cfg).ATTENTION == "cross" or not _queries(cfg).INJECT_TEXT,
        "the text-to-image attention has no feed-forward layer (ATTENTION, INJECT_TEXT)",
    ),
    Rule(
        (_QUERY + "DIST_*",),
        lambda cfg: _queries(cfg).SELECTOR != "dsps",
        "MODEL.QUERY_GENERATOR.SELECTOR does not look at distances",
    ),
    Rule(
        (_QUERY + "MINIMAP_TARGET",),
        lambda cfg: _queries(cfg).MINIMAP_WEIGHT <= 0,
        "MODEL.QUERY_GENERATOR.MINIMAP_WEIGHT is 0",
    ),
    Rule(
        tuple(_HEAD + k for k in ("INSTANCE_*", "NEGATIVE_*", "MASK_WEIGHT", "DICE_WEIGHT")),
        lambda cfg: not _head(cfg).MASK_ON,
        "MODEL.GROUNDING_HEAD.MASK_ON is False",
    ),
    Rule(
        (_HEAD + "MASK_WEIGHT", _HEAD + "DICE_WEIGHT"),
        lambda cfg: _head(cfg).INSTANCE_WEIGHT == 0,
        "MODEL.GROUNDING_HEAD.INSTANCE_WEIGHT is 0",
    ),
    Rule(
        (_HEAD + "AUX_WEIGHTS",),
        lambda cfg: not _head(cfg).DEEP_SUPERVISION,
        "MODEL.GROUNDING_HEAD.DEEP_SUPERVISION is False",
    ),
    Rule(
        (_HEAD + "NUM_POINTS", _HEAD + "REFERENCE"),
        lambda cfg: _head(cfg).DECODER == "DETRDecoder" and _head(cfg).REFERENCE == "point",
        "DETRDecoder attends everywhere",
    ),
    Rule(
        tuple(_GLOBAL + k for k in ("LOSS_WEIGHT", "MASK_WEIGHT", "DICE_WEIGHT")),
        lambda cfg: not cfg.MODEL.GLOBAL_HEAD.MASK_ON,
        "MODEL.GLOBAL_HEAD.MASK_ON is False",
    ),
    Rule(
        (_GLOBAL + "NO_TARGET_CLASS_WEIGHTS",),
        lambda cfg: cfg.MODEL.GLOBAL_HEAD.NO_TARGET_WEIGHT == 0,
        "MODEL.GLOBAL_HEAD.NO_TARGET_WEIGHT is 0",
    ),
    Rule(
        ("INPUT.TOKENIZER.FILE", "INPUT.TOKENIZER.CLEAN_TEXT"),
        lambda cfg: cfg.INPUT.TOKENIZER.NAME == "ShapesTokenizer",
        "ShapesTokenizer has its words built in",
    ),
)


def find_ineffective_keys(cfg: CfgNode) -> List[IneffectiveKey]:
    """Options that differ from their default and change nothing in this configuration.

    Options of other projects, and all options of models of other projects, are not judged.

    Args:
        cfg: a full config.

    Returns:
        findings in the order of the config.
    """
    if cfg.MODEL.META_ARCHITECTURE != "IGVG":
        return []
    defaults = get_cfg()
    add_igvg_config(defaults)
    known: Dict[str, Any] = dict(flatten(defaults))
    rules = [rule for rule in (*_DETECTRON2, *_SOLVER, *_MODEL) if rule.applies(cfg)]
    found = []
    for key, value in flatten(cfg):
        # An empty list of steps says that there are none, under any schedule.
        if key not in known or value == known[key] or (key, value) == ("SOLVER.STEPS", ()):
            continue
        why = next((rule.why for rule in rules if _matches(key, rule.keys)), None)
        if why is not None:
            found.append(IneffectiveKey(key, value, why))
    return found


def report_ineffective_keys(cfg: CfgNode) -> None:
    """Log a warning that lists :func:`find_ineffective_keys`; nothing when there are none."""
    found = find_ineffective_keys(cfg)
    if found:
        table = tabulate(found, headers=["option", "value", "why"], disable_numparse=True)
        logger.warning("Options that are set but have no effect in this configuration:\n%s", table)


def flatten(node: CfgNode, prefix: str = "") -> Iterator[Tuple[str, Any]]:
    """(full key, value) of every leaf of a config."""
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _matches(key: str, patterns: Tuple[str, ...]) -> bool:
    """Whether a pattern matches the key and none with a ``!`` does."""
    taken_out = any(fnmatch.fnmatchcase(key, p[1:]) for p in patterns if p.startswith("!"))
    return not taken_out and any(fnmatch.fnmatchcase(key, p) for p in patterns)
