"""From epochs, which a recipe states, to iterations, which Detectron2 counts."""

import logging
import os
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.utils import comm

from igvg_d2.data import GroundingTrainLoader
from igvg_d2.io.atomic import write_atomically

logger = logging.getLogger(__name__)


def resolve_epochs(cfg: CfgNode, num_items: int) -> CfgNode:
    """Fill in the iterations of a config that states epochs, and log both.

    An epoch has ceil(items / SOLVER.IMS_PER_BATCH) iterations. ``SOLVER.EPOCHS`` > 0 decides
    MAX_ITER, WARMUP_ITERS and STEPS of SOLVER. If it is 0, MAX_ITER stays, and WARMUP_EPOCHS and
    STEP_EPOCHS decide only if they are set: the schedule of a long training, cut off.
    ``TEST.EVAL_EPOCHS`` and
    ``SOLVER.CHECKPOINT_EPOCHS`` > 0 decide TEST.EVAL_PERIOD and SOLVER.CHECKPOINT_PERIOD, so that
    the last evaluation falls on the last iteration. Applying it twice changes nothing.

    Args:
        cfg: a complete config, frozen or not; not changed.
        num_items: visits of an epoch, ``GroundingTrainLoader.num_items``.

    Returns:
        CfgNode, frozen.

    Raises:
        ValueError: names the key: epochs that make no sense together, or a number of iterations
            that contradicts them.
    """
    _check_epochs(cfg)
    resolved = cfg.clone()
    resolved.defrost()
    solver = resolved.SOLVER
    per_epoch = -(-num_items // solver.IMS_PER_BATCH)
    if solver.EPOCHS > 0:
        _set(resolved, "SOLVER.MAX_ITER", "SOLVER.EPOCHS", solver.EPOCHS * per_epoch)
    steps = tuple(round(epochs * per_epoch) for epochs in solver.STEP_EPOCHS)
    if solver.EPOCHS > 0 or solver.WARMUP_EPOCHS > 0:
        warmup = solver.WARMUP_EPOCHS * per_epoch
        _set(resolved, "SOLVER.WARMUP_ITERS", "SOLVER.WARMUP_EPOCHS", warmup)
    if solver.EPOCHS > 0 or steps:
        steps = tuple(step for step in steps if step < solver.MAX_ITER)
        _set(resolved, "SOLVER.STEPS", "SOLVER.STEP_EPOCHS", steps)
    if solver.CHECKPOINT_EPOCHS > 0:
        period = solver.CHECKPOINT_EPOCHS * per_epoch
        _set(resolved, "SOLVER.CHECKPOINT_PERIOD", "SOLVER.CHECKPOINT_EPOCHS", period)
    if resolved.TEST.EVAL_EPOCHS > 0:
        period = resolved.TEST.EVAL_EPOCHS * per_epoch
        _set(resolved, "TEST.EVAL_PERIOD", "TEST.EVAL_EPOCHS", period)
    _log_schedule(resolved, num_items, per_epoch)
    resolved.freeze()
    return resolved


def resolve_schedule(cfg: CfgNode, data_loader: Any) -> CfgNode:
    """:func:`resolve_epochs` for a training loader, and ``config.yaml`` to match.

    Raises:
        ValueError: the config states epochs and the loader, made by a trainer of the user's own,
            does not know how many samples make one; or see :func:`resolve_epochs`.
    """
    if isinstance(data_loader, GroundingTrainLoader):
        cfg = resolve_epochs(cfg, data_loader.num_items)
        save_config(cfg)
        return cfg
    solver = cfg.SOLVER
    if solver.EPOCHS or solver.CHECKPOINT_EPOCHS or cfg.TEST.EVAL_EPOCHS:
        raise ValueError(
            "SOLVER.EPOCHS, SOLVER.CHECKPOINT_EPOCHS and TEST.EVAL_EPOCHS need build_train_loader "
            f"to return a GroundingTrainLoader, found {type(data_loader).__name__}; set them to 0"
        )
    return cfg


def save_config(cfg: CfgNode) -> None:
    """Write ``OUTPUT_DIR/config.yaml`` anew, in the main process; a kill leaves the old file."""
    if not comm.is_main_process():
        return
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    write_atomically(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), cfg.dump())


def _check_epochs(cfg: CfgNode) -> None:
    """Refuse epochs that make no sense together."""
    solver = cfg.SOLVER
    for key in ("EPOCHS", "WARMUP_EPOCHS", "CHECKPOINT_EPOCHS"):
        if solver[key] < 0:
            raise ValueError(f"SOLVER.{key}: expected 0 or more, found {solver[key]}")
    bounds = [solver.WARMUP_EPOCHS, *solver.STEP_EPOCHS, solver.EPOCHS or float("inf")]
    rising = all(first < second for first, second in zip(bounds, bounds[1:]))
    if not rising and not (len(bounds) == 2 and bounds[0] == bounds[1]):
        raise ValueError(
            "Expected SOLVER.WARMUP_EPOCHS < SOLVER.STEP_EPOCHS (numbers of finished epochs, "
            f"rising) < SOLVER.EPOCHS, found {bounds[0]}, {tuple(solver.STEP_EPOCHS)}, {bounds[-1]}"
        )


def _set(cfg: CfgNode, key: str, epochs_key: str, value) -> None:
    """Set an option; a different value that somebody asked for is not overwritten silently."""
    section, name = key.split(".")
    found = cfg[section][name]
    # With a reference world size, Detectron2 has already scaled the numbers.
    asked = found != get_cfg()[section][name] and cfg.SOLVER.REFERENCE_WORLD_SIZE == 0
    if asked and found != value:
        epochs = cfg[epochs_key.split(".")[0]][epochs_key.split(".")[1]]
        raise ValueError(
            f"{key} = {found} contradicts {epochs_key} = {epochs}, which makes it {value} for this "
            f"batch and these data; leave {key} out, or empty {epochs_key} (0 or an empty tuple)"
        )
    cfg[section][name] = value


def _log_schedule(cfg: CfgNode, num_items: int, per_epoch: int) -> None:
    """Say the schedule in epochs and in iterations."""
    solver = cfg.SOLVER

    def both(iterations: int) -> str:
        return f"{iterations} iterations ({iterations / per_epoch:.3g} epochs)"

    logger.info(
        "Schedule: %d %ss / batch %d = %d iterations per epoch; %s in all; warm-up %s; learning "
        "rate x %g after %s; evaluation every %s; checkpoint every %s",
        *(num_items, cfg.DATALOADER.SAMPLE_UNIT, solver.IMS_PER_BATCH, per_epoch),
        both(solver.MAX_ITER),
        both(solver.WARMUP_ITERS),
        solver.GAMMA,
        ", ".join(both(step) for step in solver.STEPS) or "no step",
        both(cfg.TEST.EVAL_PERIOD) if cfg.TEST.EVAL_PERIOD else "training",
        both(solver.CHECKPOINT_PERIOD),
    )
