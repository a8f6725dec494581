"""Data loaders: Detectron2's, with cheap transport from the worker processes."""

import io
import pickle
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Union

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import (
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from torch.utils.data import DataLoader

from .dataset_mapper import GroundingDatasetMapper

_Sample = Dict[str, Any]
_Mapper = Callable[[_Sample], _Sample]


class _TensorAsArrayPickler(pickle.Pickler):
    """Pickles a tensor, wherever it is in a sample, as a numpy array."""

    def reducer_override(self, obj: Any) -> Any:
        """Called by pickle for every object."""
        if isinstance(obj, torch.Tensor):
            return torch.from_numpy, (np.ascontiguousarray(obj.numpy()),)
        return NotImplemented


def pack_batch(batch: List[_Sample]) -> bytes:
    """Packs a batch into one string of bytes, in the worker; ``pickle.loads`` restores it.

    PyTorch would hand over each of the six tensors of a sample by a shared memory file, which costs
    the receiving process 1 to 2 ms per sample: for small pictures as much as reading them. One
    string of bytes costs it 0.15 ms.
    """
    buffer = io.BytesIO()
    _TensorAsArrayPickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(batch)
    return buffer.getvalue()


class UnpackingLoader:
    """Iterates over a loader of packed batches; yields ``list[dict]`` as Detectron2 loaders do.

    Args:
        loader: its batches were made by :func:`pack_batch`.
    """

    def __init__(self, loader: DataLoader):
        self.loader = loader

    def __iter__(self) -> Iterator[List[_Sample]]:
        """Yields batches as the mapper made them."""
        return map(pickle.loads, iter(self.loader))

    def __len__(self) -> int:
        """Number of batches; TypeError for the endless training loader."""
        return len(self.loader)


def build_grounding_train_loader(cfg: CfgNode, mapper: Optional[_Mapper] = None) -> Any:
    """Builds the endless training loader for ``cfg.DATASETS.TRAIN``.

    Samples are not grouped by aspect ratio, whatever the configuration says: they are all squashed
    to one size. Samples without a target are kept.

    Args:
        cfg: sampler, batch size, workers and data sets as in Detectron2.
        mapper: default: ``GroundingDatasetMapper(cfg, is_train=True)``.

    Returns:
        Iterable of ``list[dict]``, the mapper's output for each sample of a batch.
    """
    mapper = GroundingDatasetMapper(cfg, is_train=True) if mapper is None else mapper
    in_process = cfg.DATALOADER.NUM_WORKERS == 0
    collate = {} if in_process else {"collate_fn": pack_batch}
    dataset = _load(cfg.DATASETS.TRAIN)
    loader = build_detection_train_loader(
        cfg, mapper=mapper, dataset=dataset, aspect_ratio_grouping=False, **collate
    )
    return loader if in_process else UnpackingLoader(loader)


def _load(names: Union[str, Sequence[str]]) -> List[_Sample]:
    """Samples of registered data sets, without the polygons, which only evaluators need.

    A loader stores a copy of every target with each of its expressions; masks are there as RLE.
    """
    samples = get_detection_dataset_dicts(names, filter_empty=False)
    slim: Dict[int, Dict[str, Any]] = {}
    for sample in samples:
        for item in sample.get("annotations", ()):
            if id(item) not in slim:
                slim[id(item)] = {k: v for k, v in item.items() if k != "polygons"}
    return [
        {**sample, "annotations": [slim[id(item)] for item in sample.get("annotations", ())]}
        for sample in samples
    ]


def build_grounding_test_loader(
    cfg: CfgNode, dataset_name: str, mapper: Optional[_Mapper] = None, batch_size: int = 1
) -> Any:
    """Builds the loader of one data set for evaluation; every sample once, in order.

    Args:
        cfg: workers as in Detectron2.
        dataset_name: registered name.
        mapper: default: ``GroundingDatasetMapper(cfg, is_train=False)``.
        batch_size: samples per batch; the last batch may be smaller.

    Returns:
        Sized iterable of ``list[dict]``, the mapper's output for each sample of a batch.
    """
    mapper = GroundingDatasetMapper(cfg, is_train=False) if mapper is None else mapper
    in_process = cfg.DATALOADER.NUM_WORKERS == 0
    collate = {} if in_process else {"collate_fn": pack_batch}
    loader = build_detection_test_loader(
        _load(dataset_name),
        mapper=mapper,
        batch_size=batch_size,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        **collate,
    )
    return loader if in_process else UnpackingLoader(loader)
