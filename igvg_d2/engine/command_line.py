"""What the scripts that take a data set have in common."""

import argparse
from typing import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from igvg_d2.data.datasets import set_skip_invalid

from .setup import AddConfig, setup_config


def add_config_file(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """The option ``--config-file``."""
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        required=required,
        default="",
        help="config file, or a name (python -m igvg_d2.model_zoo --list); the data sets of its "
        "DATASETS.EXPRESSION_FILES are known by their names (datasets/README.md, 'Your own data')",
    )


def setup_data(
    config_file: str,
    names: Sequence[str] = (),
    opts: Sequence[str] = (),
    add_config: AddConfig = (),
) -> CfgNode:
    """Config of a script, whose data sets, and those that the script was asked for, are registered.

    Args:
        config_file: may be empty, see :func:`igvg_d2.engine.setup_config`, also for the others.
        names: data sets on the command line; its ``DATASETS.SKIP_INVALID`` is in force for them.

    Raises:
        FileNotFoundError, ValueError: by ``setup_config``, or there is no data set of a name.
    """
    cfg = setup_config(config_file, opts, add_config)
    check_registered(names)
    if config_file:
        set_skip_invalid(names, cfg.DATASETS.SKIP_INVALID)
    return cfg


def check_registered(names: Sequence[str]) -> None:
    """ValueError if there is no data set of a name."""
    for name in names:
        if name not in DatasetCatalog.list():
            raise ValueError(
                f"no data set '{name}'; registered: {', '.join(DatasetCatalog.list())}; for data "
                "of your own pass --config-file"
            )
