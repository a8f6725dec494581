"""Options that somebody set and that nothing reads, found by recording what a run reads."""

import logging
from typing import Any, Dict, Iterator, Tuple

from detectron2.config import CfgNode, get_cfg
from tabulate import tabulate

from igvg_d2.config import add_igvg_config

logger = logging.getLogger(__name__)

# Read before the trainer is built, or after the training run.
_READ_ELSEWHERE = (
    *("VERSION", "OUTPUT_DIR", "SEED", "CUDNN_BENCHMARK", "FLOAT32_PRECISION", "MODEL.WEIGHTS"),
    *("DATASETS.EXPRESSION_FILES", "DATASETS.SKIP_INVALID", "DATASETS.TEST", "TEST.VIS_SAMPLES"),
)
_READ_BY_EVALUATION = "TEST."


class _Reads(set):
    """Full names of options; copies of a config share them."""

    def __deepcopy__(self, memo):
        return self


class RecordingNode(CfgNode):
    """A config that notes which options are read, by attribute or by item.

    Its clones note theirs in the same place. ``dump``, ``items`` and ``merge_from_*`` of the whole
    are no reads. What a pickled copy reads in another process is not known here.
    """

    @classmethod
    def wrap(cls, node: CfgNode, reads: set, prefix: str = "") -> "RecordingNode":
        """The config ``node``, frozen if it is, that adds full names to ``reads``."""
        new = cls()
        for key, value in node.items():
            if isinstance(value, CfgNode):
                value = cls.wrap(value, reads, f"{prefix}{key}.")
            dict.__setitem__(new, key, value)
        new.__dict__.update(node.__dict__)
        new.__dict__.update(reads=reads, prefix=prefix)
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
    return {
        key: value
        for key, value in flatten(cfg)
        if key in known
        and value != known[key]
        and key not in cfg.__dict__["reads"]
        and key not in _READ_ELSEWHERE
    }


def report_unread_keys(cfg: RecordingNode, evaluated: bool = False) -> None:
    """Log :func:`find_unread_keys`, those of ``TEST`` only once something was ``evaluated``."""
    rows = [
        item
        for item in find_unread_keys(cfg).items()
        if item[0].startswith(_READ_BY_EVALUATION) == evaluated
    ]
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
