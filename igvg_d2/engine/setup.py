"""Config of a run: defaults, file, command line, a device that exists, iterations for epochs."""

import logging
import os
from typing import Any, Callable, Sequence

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

import igvg_d2
from igvg_d2.config import add_igvg_config
from igvg_d2.data import GroundingTrainLoader
from igvg_d2.data.datasets import register_expressions, set_skip_invalid
from igvg_d2.io.atomic import write_atomically
from igvg_d2.model_zoo import MODELS

from .config_files import explained, merge_config
from .devices import find_device

logger = logging.getLogger(__name__)

AddConfig = Sequence[Callable[[CfgNode], None]]

_CHECKOUT = os.path.dirname(os.path.dirname(igvg_d2.__file__))


def setup_config(
    config_file: str = "",
    opts: Sequence[str] = (),
    add_config: AddConfig = (),
    num_processes: int = 1,
) -> CfgNode:
    """Read a config the Detectron2 way.

    Args:
        config_file: YAML file; or a name of `igvg_d2.model_zoo`, or a file of safetensors that
            carries its config, and ``MODEL.WEIGHTS`` is then that. Empty for the config of a name
            given as MODEL.WEIGHTS in ``opts``, or else for the defaults alone.
        opts: KEY VALUE pairs of the command line, the strongest.
        add_config: functions of outside projects, such as ``add_center_queries_config``, that add
            their keys to the config in place. ``main`` of train_net.py, of the demo and of each
            tool that reads a config takes them, too.
        num_processes: of the job on this machine, which all need the device.

    Returns:
        CfgNode, not frozen. ``MODEL.DEVICE`` is that of :func:`find_device`: "cpu" on a machine
        without a GPU. The data sets of ``DATASETS.EXPRESSION_FILES`` are registered, and
        ``DATASETS.SKIP_INVALID`` is in force for those of the config.

    Raises:
        FileNotFoundError: there is no such config file.
        ValueError: it, or an option of the command line, does not fit; the device cannot be used;
            see also ``EXPRESSION_FILES``.
    """
    cfg = get_cfg()
    for add in (add_igvg_config, *add_config):
        add(cfg)
    default, cfg.MODEL.DEVICE = cfg.MODEL.DEVICE, ""
    weights = dict(zip(opts[::2], opts[1::2])).get("MODEL.WEIGHTS")
    if not config_file and weights in MODELS:
        config_file = weights
    if config_file:
        merge_config(cfg, config_file)
    with explained("options KEY VALUE of the command line: an option"):
        cfg.merge_from_list(list(opts))
    model = MODELS.get(cfg.MODEL.WEIGHTS)
    if model is not None and not cfg.INPUT.TOKENIZER.FILE:
        cfg.INPUT.TOKENIZER.FILE = model.tokenizer
    # Configs of a checkout name its files from its root, wherever the command runs.
    in_checkout = os.path.join(_CHECKOUT, cfg.MODEL.WEIGHTS)
    if not os.path.isfile(cfg.MODEL.WEIGHTS) and os.path.isfile(in_checkout):
        cfg.MODEL.WEIGHTS = in_checkout
    asked = cfg.MODEL.DEVICE
    cfg.MODEL.DEVICE = find_device(asked or default, num_processes, is_default=not asked)
    _register_expression_files(cfg)
    set_skip_invalid((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST), cfg.DATASETS.SKIP_INVALID)
    return cfg


def set_num_threads(cfg: CfgNode) -> None:
    """Apply ``SOLVER.NUM_THREADS``; 0 shares PyTorch's threads among CPU processes."""
    threads = cfg.SOLVER.NUM_THREADS
    if threads == 0 and cfg.MODEL.DEVICE == "cpu" and comm.get_world_size() > 1:
        threads = max(1, torch.get_num_threads() // comm.get_local_size())
    if threads > 0:
        torch.set_num_threads(threads)
    logger.info("Device: %s; CPU threads: %d", cfg.MODEL.DEVICE, torch.get_num_threads())


def _register_expression_files(cfg: CfgNode) -> None:
    """Registers ``DATASETS.EXPRESSION_FILES``; a config that is read twice registers once.

    Raises:
        ValueError: an entry has the wrong form, or its name belongs to another data set.
    """
    for entry in cfg.DATASETS.EXPRESSION_FILES:
        if len(entry) != 3 or not all(isinstance(part, str) for part in entry):
            raise ValueError(
                "DATASETS.EXPRESSION_FILES: expected entries of [name, JSON file, image folder], "
                f"found {entry!r}"
            )
        name, annotation_file, image_root = entry
        if name in DatasetCatalog.list():
            known = MetadataCatalog.get(name)
            known = [known.get(key, None) for key in ("annotation_file", "image_root")]
            if known != [annotation_file, image_root]:
                raise ValueError(
                    f"DATASETS.EXPRESSION_FILES: the name '{name}' is taken by '{known[0]}' with "
                    f"the images in '{known[1]}'; choose another one, or start Python anew"
                )
            continue
        register_expressions(name, annotation_file, image_root)


def resolve_epochs(cfg: CfgNode, num_items: int) -> CfgNode:
    """Fill in the iterations of a config that states epochs, and log both.

    An epoch has ceil(items / SOLVER.IMS_PER_BATCH) iterations. ``SOLVER.EPOCHS`` > 0 decides
    MAX_ITER, WARMUP_ITERS and STEPS of SOLVER. If it is 0, MAX_ITER stays, and WARMUP_EPOCHS and
    STEP_EPOCHS decide only if they are set: the schedule of a long run, cut off.
    ``TEST.EVAL_EPOCHS`` and ``SOLVER.CHECKPOINT_EPOCHS`` > 0 decide TEST.EVAL_PERIOD and
    SOLVER.CHECKPOINT_PERIOD, so that the last evaluation falls on the last iteration. Applying it
    twice changes nothing.

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
        _set(resolved, "SOLVER", "MAX_ITER", "EPOCHS", solver.EPOCHS * per_epoch)
    if solver.EPOCHS > 0 or solver.WARMUP_EPOCHS > 0:
        _set(resolved, "SOLVER", "WARMUP_ITERS", "WARMUP_EPOCHS", solver.WARMUP_EPOCHS * per_epoch)
    if solver.EPOCHS > 0 or solver.STEP_EPOCHS:
        steps = (round(epochs * per_epoch) for epochs in solver.STEP_EPOCHS)
        steps = tuple(step for step in steps if step < solver.MAX_ITER)
        _set(resolved, "SOLVER", "STEPS", "STEP_EPOCHS", steps)
    for section, name in (("SOLVER", "CHECKPOINT"), ("TEST", "EVAL")):
        epochs = resolved[section][f"{name}_EPOCHS"]
        if epochs > 0:
            _set(resolved, section, f"{name}_PERIOD", f"{name}_EPOCHS", epochs * per_epoch)
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


def _set(cfg: CfgNode, section: str, key: str, epochs_key: str, value) -> None:
    """Set an option; a different value that somebody asked for is not overwritten silently."""
    found, epochs = cfg[section][key], cfg[section][epochs_key]
    # With a reference world size, Detectron2 has already scaled the numbers.
    asked = found != get_cfg()[section][key] and cfg.SOLVER.REFERENCE_WORLD_SIZE == 0
    if asked and found != value:
        raise ValueError(
            f"{section}.{key} = {found} contradicts {section}.{epochs_key} = {epochs}, which makes "
            f"it {value} for this batch and these data; leave {section}.{key} out, or empty "
            f"{section}.{epochs_key} (0 or an empty tuple)"
        )
    cfg[section][key] = value


def _log_schedule(cfg: CfgNode, num_items: int, per_epoch: int) -> None:
    """Say the schedule in epochs and in iterations."""
    solver = cfg.SOLVER

    def both(iterations: int) -> str:
        return f"{iterations} iterations ({iterations / per_epoch:.3g} epochs)"

    logger.info(
        "Schedule: %d %ss / batch %d = %d iterations per epoch; %s in all; warm-up %s; learning "
        "rate x %g after %s; evaluation every %s; checkpoint every %s",
        *(num_items, cfg.DATALOADER.SAMPLE_UNIT, solver.IMS_PER_BATCH, per_epoch),
        *(both(solver.MAX_ITER), both(solver.WARMUP_ITERS), solver.GAMMA),
        ", ".join(both(step) for step in solver.STEPS) or "no step",
        both(cfg.TEST.EVAL_PERIOD) if cfg.TEST.EVAL_PERIOD else "training",
        both(solver.CHECKPOINT_PERIOD),
    )
