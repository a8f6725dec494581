"""Options that would silently hurt are refused, and those that nothing reads are reported."""

import logging
from typing import Any, Dict, Iterator, Optional, Tuple

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.utils import comm
from detectron2.utils.logger import log_first_n
from tabulate import tabulate

from igvg_d2.config import add_igvg_config
from igvg_d2.data import build_tokenizer
from igvg_d2.evaluation import parse_protocols

from .train_step import PRECISIONS

logger = logging.getLogger(__name__)

# Read before the trainer is built, or after the training run.
_READ_ELSEWHERE = (
    *("VERSION", "OUTPUT_DIR", "SEED", "CUDNN_BENCHMARK", "FLOAT32_PRECISION", "MODEL.WEIGHTS"),
    *("DATASETS.EXPRESSION_FILES", "DATASETS.SKIP_INVALID", "DATASETS.TEST", "TEST.VIS_SAMPLES"),
)


def check_config(cfg: CfgNode) -> None:
    """Refuse options, most of them Detectron2's defaults, that silently hurt referring data.

    Raises:
        ValueError: names all such keys, what they do here, and the values to set.
    """
    solver = cfg.SOLVER
    parse_protocols(cfg.TEST.PROTOCOLS)
    # A rule reads the options it shows. What another option can switch off is read by a check, and
    # only when it is on, so that report_unread_keys still names it.
    checks = (_check_normalisation, _check_batch, _check_precision, _check_average)
    problems = [check(cfg) for check in (*checks, _check_metric_names)]
    rules = (
        (
            cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS=True would drop every no-target sample; set it to "
            "False (configs/Base-IGVG.yaml does).",
        ),
        (
            cfg.INPUT.RANDOM_FLIP != "none",
            f"INPUT.RANDOM_FLIP={cfg.INPUT.RANDOM_FLIP!r} would flip images under 'the left man'; "
            "set it to 'none' and use INPUT.FLIP, which swaps the words too.",
        ),
        (
            cfg.INPUT.CROP.ENABLED,
            "INPUT.CROP.ENABLED=True would cut targets away and turn their expressions into "
            "no-target ones; set it to False.",
        ),
        (
            solver.CLIP_GRADIENTS.ENABLED,
            "SOLVER.CLIP_GRADIENTS.ENABLED=True clips each parameter on its own, which changes the "
            "direction of a step; set it to False and use SOLVER.CLIP_TOTAL_NORM.",
        ),
        (
            not cfg.DATASETS.TRAIN,
            "DATASETS.TRAIN is empty: set the names of the registered data sets to train on.",
        ),
        (
            cfg.TEST.CALIBRATION,
            f"TEST.CALIBRATION={cfg.TEST.CALIBRATION!r} promises nothing of a model still trained "
            "further; leave it to --eval-only and predictors.",
        ),
        (
            solver.CHECKPOINT_KEEP < 0,
            f"SOLVER.CHECKPOINT_KEEP={solver.CHECKPOINT_KEEP} must be 0 (all) or more.",
        ),
    )
    problems += [message for is_wrong, message in rules if is_wrong]
    if any(problems):
        raise ValueError("\n".join(filter(None, problems)))


def _check_normalisation(cfg: CfgNode) -> Optional[str]:
    """Detectron2's default mean is in BGR order, its default deviation 1 in units of a pixel."""
    mean, std = list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD)
    default = list(get_cfg().MODEL.PIXEL_MEAN)
    wanted = {"BGR": default, "RGB": default[::-1]}.get(cfg.INPUT.FORMAT, mean)
    if mean in (default, default[::-1]) and mean != wanted:
        return (
            f"MODEL.PIXEL_MEAN={mean} is not in the order of INPUT.FORMAT={cfg.INPUT.FORMAT}; set "
            f"it to {wanted}."
        )
    # Means of images in [0, 1] need no such scale.
    if std == [1.0, 1.0, 1.0] and max(mean) > 1.0:
        return (
            "MODEL.PIXEL_STD=[1.0, 1.0, 1.0] would feed the encoder values up to 150; set it to "
            "the deviation the encoder was trained with, [58.395, 57.12, 57.375] in RGB order."
        )
    return None


def _check_batch(cfg: CfgNode) -> Optional[str]:
    """Every process takes an equal share, so that an average over processes is one over samples."""
    batch, processes = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size()
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference not in (0, processes):
        if batch % reference:
            return (
                f"SOLVER.IMS_PER_BATCH={batch} must be a multiple of SOLVER.REFERENCE_WORLD_SIZE="
                f"{reference}."
            )
        batch = batch // reference * processes
    steps = cfg.SOLVER.ACCUMULATION_STEPS
    if steps < 1:
        return f"SOLVER.ACCUMULATION_STEPS={steps} must be at least 1."
    parts = processes * steps
    if batch >= parts and batch % parts == 0:
        return None
    micro_batches = f" times SOLVER.ACCUMULATION_STEPS, {steps}" if steps > 1 else ""
    fitting = max(1, batch // parts) * parts
    return (
        f"SOLVER.IMS_PER_BATCH={batch} is the batch over all processes and must be a multiple of "
        f"their number, {processes}{micro_batches}; set it to {fitting} or {fitting + parts}."
    )


def _check_precision(cfg: CfgNode) -> Optional[str]:
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    precision, device = cfg.SOLVER.AMP.PRECISION, torch.device(cfg.MODEL.DEVICE).type
    if precision not in PRECISIONS:
        return f"SOLVER.AMP.PRECISION={precision!r} must be one of {sorted(PRECISIONS)}."
    if precision == "tf32" and device != "cuda":
        return f"SOLVER.AMP.PRECISION='tf32' is for GPUs, not for {device}; set AMP.ENABLED False."
    if precision == "fp16" or device != "cuda" or torch.version.hip is not None:
        return None
    # PyTorch calls bf16 supported on older ones too, where it is emulated.
    found = torch.cuda.get_device_capability(cfg.MODEL.DEVICE)
    if found >= (8, 0):
        return None
    return (
        f"SOLVER.AMP.PRECISION={precision!r} needs a GPU of compute capability 8.0, this one "
        f"({torch.cuda.get_device_name(cfg.MODEL.DEVICE)}) has {found[0]}.{found[1]}; set it to "
        "'fp16'."
    )


def _check_average(cfg: CfgNode) -> Optional[str]:
    if not cfg.SOLVER.EMA.ENABLED or 0.0 < cfg.SOLVER.EMA.DECAY < 1.0:
        return None
    return (
        f"SOLVER.EMA.DECAY={cfg.SOLVER.EMA.DECAY} must lie between 0 and 1, as 0.999 does; to do "
        "without an average set SOLVER.EMA.ENABLED to False."
    )


def _check_metric_names(cfg: CfgNode) -> Optional[str]:
    """The evaluation finds out the rest: evaluators know their metrics when they have some."""
    names = list(cfg.DATASETS.TEST)
    asked = [("EXPECTED_RESULTS", row[0]) for row in cfg.TEST.EXPECTED_RESULTS]
    asked += [("BEST_METRIC", cfg.TEST.BEST_METRIC)] if cfg.TEST.BEST_METRIC else []
    for key, metric in asked:
        if len(names) != 1 and not metric.startswith(tuple(f"{name}/" for name in names)):
            return (
                f"TEST.{key}: {metric!r} must begin with one of DATASETS.TEST {names} and a slash, "
                "for instance 'shapes_val/gres'."
            )
    return None


def warn_of_random_encoder(cfg: CfgNode) -> None:
    """Say, once, what it costs when a training run starts from a BEiT-3 of random numbers."""
    is_grounding = cfg.MODEL.META_ARCHITECTURE == "IGVG" and cfg.MODEL.BACKBONE.NAME == "BEiT3"
    if cfg.MODEL.WEIGHTS or not is_grounding:
        return
    width = cfg.MODEL.BEIT3.EMBED_DIM
    weights = {
        768: "beit3-base-indomain (554 MB, downloaded once) or a file of BEiT-3 base",
        1024: "a file of BEiT-3 large (beit3_large_patch16_224.zip)",
    }.get(width, f"weights of an encoder of this size (MODEL.BEIT3.EMBED_DIM {width})")
    log_first_n(
        logging.WARNING,
        "MODEL.WEIGHTS is empty: the BEiT-3 encoder starts from random numbers and knows of images "
        "and words only what these training data show. A long training run then learns them by "
        "heart and stays far below published results on other images. Set MODEL.WEIGHTS to "
        f"{weights}, unless that is meant",
        name=__name__,
        key="message",
    )


def check_vocabulary(cfg: CfgNode, model: torch.nn.Module) -> None:
    """Refuse a tokenizer with more ids than the backbone knows, whichever backbone it is.

    Raises:
        ValueError: names the tokenizer, both numbers, and what to do.
    """
    found = build_tokenizer(cfg).vocab_size
    backbone = getattr(model, "backbone", None)
    known = getattr(backbone, "vocab_size", found)
    if found > known:
        raise ValueError(
            f"The tokenizer {cfg.INPUT.TOKENIZER.NAME} has {found} ids, the backbone "
            f"{type(backbone).__name__} knows {known}; for BEiT3 raise MODEL.BEIT3.VOCAB_SIZE."
        )


class _Reads(set):
    """Full names of options; copies of a config share them."""

    def __deepcopy__(self, memo):
        return self


class RecordingNode(CfgNode):
    """A config that notes which options are read, by attribute or by item; clones share the notes.

    ``dump``, ``items`` and ``merge_from_*`` of the whole are no reads. What a pickled copy reads in
    another process is not known here.
    """

    @classmethod
    def wrap(cls, node: CfgNode, reads: set, prefix: str = "") -> "RecordingNode":
        """The config ``node``, frozen if it is, that adds full names to ``reads``."""
        new = cls()
        for key, value in node.items():
            if isinstance(value, CfgNode):
                value = cls.wrap(value, reads, f"{prefix}{key}.")
            dict.__setitem__(new, key, value)
        new.__dict__.update(node.__dict__, reads=reads, prefix=prefix)
        return new

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if not isinstance(value, CfgNode):
            self.__dict__["reads"].add(self.__dict__["prefix"] + key)
        return value


def record_reads(cfg: CfgNode) -> RecordingNode:
    """A copy of a config that records what is read of it from now on."""
    return RecordingNode.wrap(cfg, _Reads())


def find_unread_keys(cfg: RecordingNode) -> Dict[str, Any]:
    """Options that differ from their default and were not read so far.

    Options of outside projects, whose defaults are not known here, are not judged.

    Args:
        cfg: of :func:`record_reads`, after everything is built that reads it.

    Returns:
        full name to value, in the order of the config.
    """
    defaults = get_cfg()
    add_igvg_config(defaults)
    known = dict(flatten(defaults))
    read = {*cfg.__dict__["reads"], *_READ_ELSEWHERE}
    return {
        key: value
        for key, value in flatten(cfg)
        if key in known and value != known[key] and key not in read
    }


def report_unread_keys(cfg: RecordingNode, evaluated: bool = False) -> None:
    """Log :func:`find_unread_keys`, those of ``TEST`` only once something was ``evaluated``."""
    found = find_unread_keys(cfg).items()
    rows = [item for item in found if item[0].startswith("TEST.") == evaluated]
    if rows:
        table = tabulate(rows, headers=["option", "value"], disable_numparse=True)
        logger.warning("Options that are set but have no effect in this configuration:\n%s", table)


def flatten(node: CfgNode, prefix: str = "") -> Iterator[Tuple[str, Any]]:
    """(full key, value) of every leaf of a config."""
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
