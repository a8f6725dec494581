"""Config of a run: defaults, file, command line, and a device that exists."""

import logging
from typing import Callable, Sequence

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from igvg_d2.config import add_igvg_config
from igvg_d2.data.datasets import register_expressions, set_skip_invalid
from igvg_d2.io.atomic import check_writable

AddConfig = Sequence[Callable[[CfgNode], None]]


def setup_config(
    config_file: str = "", opts: Sequence[str] = (), add_config: AddConfig = ()
) -> CfgNode:
    """Read a config the Detectron2 way.

    Args:
        config_file: YAML file; empty for the defaults alone.
        opts: KEY VALUE pairs of the command line, the strongest.
        add_config: functions of outside projects, such as ``add_center_queries_config``, that add
            their keys to the config in place. ``main`` of train_net.py, of the demo and of each
            tool that reads a config takes them, too.

    Returns:
        CfgNode, not frozen. On a machine without a GPU, ``MODEL.DEVICE`` becomes "cpu". The data
        sets of ``DATASETS.EXPRESSION_FILES`` are registered, and ``DATASETS.SKIP_INVALID`` is in
        force for those of the config.
    """
    cfg = get_cfg()
    for add in (add_igvg_config, *add_config):
        add(cfg)
    if config_file:
        cfg.merge_from_file(config_file)
    cfg.merge_from_list(list(opts))
    if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    _register_expression_files(cfg)
    set_skip_invalid((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST), cfg.DATASETS.SKIP_INVALID)
    return cfg


def check_output_dir(cfg: CfgNode) -> None:
    """End the program with one line when ``OUTPUT_DIR`` cannot be written; it is made if missing.

    Raises:
        SystemExit: folder, reason, and what to do.
    """
    try:
        check_writable(cfg.OUTPUT_DIR)
    except OSError as error:
        raise SystemExit(error.strerror) from error


def set_num_threads(cfg: CfgNode) -> None:
    """Share PyTorch's threads (``OMP_NUM_THREADS``, or all cores) among CPU processes."""
    if cfg.MODEL.DEVICE == "cpu" and comm.get_world_size() > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // comm.get_local_size()))
    logging.getLogger(__name__).info("CPU threads: %d", torch.get_num_threads())


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
            known = MetadataCatalog.get(name).get("annotation_file", None)
            if known != annotation_file:
                raise ValueError(
                    f"DATASETS.EXPRESSION_FILES: the name '{name}' is taken by '{known}'; choose "
                    "another one"
                )
            continue
        register_expressions(name, annotation_file, image_root)
