"""Configurations that would silently hurt are refused before anything is built."""

from typing import Callable, List, Optional

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.utils import comm

from igvg_d2.data import build_tokenizer

from .train_step import PRECISIONS


def check_config(cfg: CfgNode) -> None:
    """Refuse options, most of them Detectron2's defaults, that silently hurt referring data.

    All of them are reported at once.

    Raises:
        ValueError: names each key, what it does here, and the value to set.
    """
    problems = [problem for problem in (check(cfg) for check in _CHECKS) if problem]
    if problems:
        raise ValueError("\n".join(problems))


def _check_no_target_samples(cfg: CfgNode) -> Optional[str]:
    if not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        return None
    return (
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS=True would drop every no-target sample; set it to "
        "False (configs/Base-IGVG.yaml does)."
    )


def _check_flip(cfg: CfgNode) -> Optional[str]:
    if cfg.INPUT.RANDOM_FLIP == "none":
        return None
    return (
        f"INPUT.RANDOM_FLIP={cfg.INPUT.RANDOM_FLIP!r} would flip images under 'the left man'; "
        "set it to 'none' and use INPUT.FLIP, which swaps the words too."
    )


def _check_crop(cfg: CfgNode) -> Optional[str]:
    if not cfg.INPUT.CROP.ENABLED:
        return None
    return (
        "INPUT.CROP.ENABLED=True would cut targets away and turn their expressions into no-target "
        "ones; set it to False."
    )


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
    # Means of pictures in [0, 1] need no such scale.
    if std == [1.0, 1.0, 1.0] and max(mean) > 1.0:
        return (
            "MODEL.PIXEL_STD=[1.0, 1.0, 1.0] would feed the encoder values up to 150; set it to "
            "the deviation the encoder was trained with, [58.395, 57.12, 57.375] in RGB order."
        )
    return None


def _check_clipping(cfg: CfgNode) -> Optional[str]:
    if not cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        return None
    return (
        "SOLVER.CLIP_GRADIENTS.ENABLED=True clips each parameter on its own, which changes the "
        "direction of a step; set it to False and use SOLVER.CLIP_TOTAL_NORM."
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


def _check_data(cfg: CfgNode) -> Optional[str]:
    if cfg.DATASETS.TRAIN:
        return None
    return "DATASETS.TRAIN is empty: set the names of the registered data sets to train on."


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
    precision = cfg.SOLVER.AMP.PRECISION
    if precision not in PRECISIONS:
        return f"SOLVER.AMP.PRECISION={precision!r} must be one of {sorted(PRECISIONS)}."
    device = torch.device(cfg.MODEL.DEVICE).type
    if precision == "bf16" and device == "cuda" and not torch.cuda.is_bf16_supported():
        return "SOLVER.AMP.PRECISION='bf16' is not known to this GPU; set it to 'fp16'."
    return None


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
    if len(names) == 1:
        return None
    asked = [("EXPECTED_RESULTS", row[0]) for row in cfg.TEST.EXPECTED_RESULTS]
    asked += [("BEST_METRIC", cfg.TEST.BEST_METRIC)] if cfg.TEST.BEST_METRIC else []
    for key, metric in asked:
        if not metric.startswith(tuple(f"{name}/" for name in names)):
            return (
                f"TEST.{key}: {metric!r} must begin with one of DATASETS.TEST {names} and a slash, "
                "for instance 'shapes_val/gres'."
            )
    return None


def _check_keep(cfg: CfgNode) -> Optional[str]:
    if cfg.SOLVER.CHECKPOINT_KEEP >= 0:
        return None
    return f"SOLVER.CHECKPOINT_KEEP={cfg.SOLVER.CHECKPOINT_KEEP} must be 0 (all) or more."


_CHECKS: List[Callable[[CfgNode], Optional[str]]] = [
    _check_no_target_samples,
    _check_flip,
    _check_crop,
    _check_normalisation,
    _check_clipping,
    _check_data,
    _check_batch,
    _check_precision,
    _check_average,
    _check_metric_names,
    _check_keep,
]
