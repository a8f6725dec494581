"""Data sets in Detectron2's catalogs, and whether their malformed records may be skipped."""

import inspect
import logging
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

from detectron2.data import DatasetCatalog, MetadataCatalog

logger = logging.getLogger(__name__)

# Messages of one load that go to the log.
_LOGGED = 20


class RegisteredLoader:
    """What the catalog calls: runs a reader, and counts and lists what it skipped if it may skip.

    Args:
        name: registered name.
        loader: without arguments, or with the optional argument ``skipped`` (a list that gets a
            message for every malformed record, which is then left out).

    Attributes:
        skip_invalid: whether malformed records are skipped instead of being errors.
        skipped: messages of the last load.
    """

    def __init__(self, name: str, loader: Callable[..., List[Dict[str, Any]]]):
        self.name = name
        self.loader = loader
        self.skip_invalid = False
        self.skipped: List[str] = []

    def __call__(self) -> List[Dict[str, Any]]:
        """Dataset dicts."""
        return self.load(self.skip_invalid)

    def load(self, skip_invalid: bool) -> List[Dict[str, Any]]:
        """Dataset dicts, with or without skipping."""
        self.skipped = []
        if not skip_invalid:
            return self.loader()
        if "skipped" not in inspect.signature(self.loader).parameters:
            raise ValueError(
                f"data set '{self.name}': its reader cannot skip invalid records (it takes no "
                "argument 'skipped'); switch DATASETS.SKIP_INVALID off"
            )
        samples = self.loader(skipped=self.skipped)
        for message in self.skipped[:_LOGGED]:
            logger.warning("skipped: %s", message)
        if self.skipped:
            logger.warning(
                "data set '%s': %d invalid records skipped, %d expressions left; results are not "
                "comparable with those on the whole data set",
                *(self.name, len(self.skipped), len(samples)),
            )
        return samples


def register_grounding(
    name: str, metadata: Dict[str, Any], loader: Callable[..., List[Dict[str, Any]]]
) -> None:
    """Registers a data set in Detectron2's catalogs; ``loader`` runs when the data are asked for.

    Args:
        name: new name, to be used in ``cfg.DATASETS.TRAIN`` or ``cfg.DATASETS.TEST``.
        metadata: entries of its metadata, over the defaults ``evaluator_type`` "grefcoco" and
            ``thing_classes`` ["target"].
        loader: returns dataset dicts as described in :mod:`igvg_d2.data.datasets.common`, the same
            at every call; see :class:`RegisteredLoader` for its argument.
    """
    DatasetCatalog.register(name, RegisteredLoader(name, loader))
    defaults = {"evaluator_type": "grefcoco", "thing_classes": ["target"]}
    MetadataCatalog.get(name).set(**{**defaults, **metadata})


def set_skip_invalid(names: Iterable[str], skip_invalid: bool) -> None:
    """Whether data sets leave out malformed records, counted and listed, from now on.

    Data sets that :func:`register_grounding` did not register are left alone.
    """
    for name in names:
        loader = _registered(name)
        if loader is not None:
            loader.skip_invalid = skip_invalid


def load_dataset(name: str, skip_invalid: bool = False) -> Tuple[List[Dict[str, Any]], List[str]]:
    """Dataset dicts of a registered data set, and messages of the malformed records left out."""
    loader = _registered(name)
    if loader is None:
        return DatasetCatalog.get(name), []
    samples = loader.load(skip_invalid)
    return samples, loader.skipped


def _registered(name: str) -> Optional[RegisteredLoader]:
    loader = DatasetCatalog[name] if name in DatasetCatalog else None
    return loader if isinstance(loader, RegisteredLoader) else None
