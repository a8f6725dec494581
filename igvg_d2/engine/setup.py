"""Config of a run: defaults, file, command line, and a device that exists."""

from typing import List

import torch
from detectron2.config import CfgNode, get_cfg

from igvg_d2.config import add_igvg_config


def setup_config(config_file: str = "", opts: List[str] = ()) -> CfgNode:
    """Read a config the Detectron2 way.

    Args:
        config_file: YAML file; empty for the defaults alone.
        opts: KEY VALUE pairs of the command line, the strongest.

    Returns:
        CfgNode, not frozen. On a machine without a GPU, ``MODEL.DEVICE`` becomes "cpu".
    """
    cfg = get_cfg()
    add_igvg_config(cfg)
    if config_file:
        cfg.merge_from_file(config_file)
    cfg.merge_from_list(list(opts))
    if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    return cfg
