"""Data loaders: Detectron2's, with cheap transport from the worker processes."""

import gc
import io
import logging
import os
import pickle
import signal
import threading
import time
from multiprocessing import resource_tracker
from typing import Any, Callable, Dict, Iterator, List, Optional

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.utils import comm
from torch.utils.data import DataLoader, Sampler

from .bad_samples import BadSampleError, BadSampleSkipper, CheckedMapper
from .mapper import GroundingDatasetMapper
from .sampling import (
    SAMPLE_UNITS,
    VisitDataset,
    VisitSampler,
    group_by_object,
)
from .tokenizer import warn_of_unknown_words

logger = logging.getLogger(__name__)

_Sample = Dict[str, Any]
_Mapper = Callable[[_Sample], _Sample]

# Seconds after which a worker has noticed that the training process is gone.
_POLL_SECONDS = 0.5


class WorkerInit:
    """A ``worker_init_fn``: workers leave signals to the training run, and end when it ends.

    A signal to the process group (Ctrl-C, batch systems) also reaches the workers. They ignore it:
    the training process decides, and needs them until it has finished its step. SIGTERM from it
    ends a worker. If it is killed, a worker would wait for ever to put its batch into a full pipe;
    a thread watches the parent and ends the worker.

    Args:
        init: another ``worker_init_fn``, called first.
    """

    def __init__(self, init: Optional[Callable[[int], Any]] = None):
        self.init = init
        self.parent = os.getpid()

    def __call__(self, worker_id: int) -> None:
        """Called in the worker with its number."""
        if self.init is not None:
            self.init(worker_id)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        if hasattr(signal, "sigtimedwait"):  # Linux
            # Threads that begin later inherit this, so only the watching one gets the signal.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """End the process when the parent asks for it or is gone."""
        while os.getppid() == self.parent:
            if hasattr(signal, "sigtimedwait"):
                caught = signal.sigtimedwait({signal.SIGTERM}, _POLL_SECONDS)
                if caught is not None and caught.si_pid == self.parent:
                    os._exit(0)
            else:
                time.sleep(_POLL_SECONDS)
        # Not sys.exit, which would wait for the full pipe.
        os._exit(1)


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
    the receiving process 1 to 2 ms per sample: for small images as much as reading them. One
    string of bytes costs it 0.15 ms.
    """
    buffer = io.BytesIO()
    _TensorAsArrayPickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(batch)
    return buffer.getvalue()


class ErrorsAsSamples:
    """A mapper whose bad samples come out as errors, which PyTorch would wrap into tracebacks.

    Args:
        mapper: runs in a worker of an :class:`UnpackingLoader`, which raises the errors.
    """

    def __init__(self, mapper: _Mapper):
        self.mapper = mapper

    def __call__(self, dataset_dict: _Sample) -> Any:
        """The mapper's output, or its :class:`BadSampleError`."""
        try:
            return self.mapper(dataset_dict)
        except BadSampleError as error:
            return error


def _unpack_batch(packed: bytes) -> List[_Sample]:
    """The batch of :func:`pack_batch`; raises the first error that stands for a sample."""
    batch = pickle.loads(packed)
    for sample in batch:
        if isinstance(sample, BadSampleError):
            raise sample
    return batch


class UnpackingLoader:
    """Iterates over a loader of packed batches; yields ``list[dict]`` as Detectron2 loaders do.

    Its workers begin with :class:`WorkerInit`.

    Args:
        loader: its batches were made by :func:`pack_batch`.
    """

    def __init__(self, loader: DataLoader):
        self.loader = loader
        loader.worker_init_fn = WorkerInit(loader.worker_init_fn)

    def __iter__(self) -> Iterator[List[_Sample]]:
        """Yields batches as the mapper made them."""
        # A worker's garbage collector writes into the header of every object it inherits, and
        # writing means copying: 80 MiB per worker. Frozen objects are left alone.
        gc.freeze()
        # Workers begin with these blocked: one that is still importing would die of Ctrl-C. Python
        # unblocks some when it starts its tracker.
        resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(
            signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}
        )
        try:
            batches = iter(self.loader)
        finally:
            gc.unfreeze()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return map(_unpack_batch, batches)

    def __len__(self) -> int:
        """Number of batches; TypeError for the endless training loader."""
        return len(self.loader)


class GroundingTrainLoader:
    """Endless iterable of batches whose content is a function of seed and position.

    Args:
        loader: iterates over ``list[dict]``.
        sampler: of the loader; decides on the order.
        dataset: of the loader; decides on sentences and augmentation.
    """

    def __init__(self, loader: Any, sampler: Sampler, dataset: VisitDataset):
        self.loader = loader
        self.sampler = sampler
        self.dataset = dataset

    @property
    def num_items(self) -> int:
        """Visits that make an epoch: expressions or objects, see ``DATALOADER.SAMPLE_UNIT``."""
        return len(self.sampler)

    @property
    def seed(self) -> int:
        """Of order, sentences and augmentation; to be stored if ``SEED`` is negative."""
        return self.dataset.seed

    def seek(self, position: int) -> None:
        """Continue after ``position`` samples, counted over all processes.

        Takes effect at the next ``iter(loader)``; what follows equals what an uninterrupted loader
        of the same seed gives from there on, for any number of workers.
        """
        self.sampler.position = position

    def __iter__(self) -> Iterator[List[_Sample]]:
        """Yields this process's share of each batch."""
        return iter(self.loader)


def build_grounding_train_loader(
    cfg: CfgNode, mapper: Optional[_Mapper] = None, seed: Optional[int] = None
) -> GroundingTrainLoader:
    """Builds the endless training loader for ``cfg.DATASETS.TRAIN``.

    Samples are not grouped by aspect ratio, whatever the configuration says: they are all brought
    to one size. Samples without a target are kept.

    Args:
        cfg: batch size, workers and data sets as in Detectron2, and ``DATALOADER.SAMPLE_UNIT``.
        mapper: default: ``GroundingDatasetMapper(cfg, is_train=True)``. It finds a random generator
            of the visit under ``rng`` in the dict it gets.
        seed: of order and draws; default ``cfg.SEED``, or a random one if that is negative.

    Returns:
        Iterable of ``list[dict]``, the mapper's output for each sample of a batch. A sample that
        replaces bad ones (``DATALOADER.SKIP_BAD_SAMPLES``) names them under ``bad_samples``.
    """
    mapper = GroundingDatasetMapper(cfg, is_train=True) if mapper is None else mapper
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name != "TrainingSampler":
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN: expected 'TrainingSampler', found {name!r}; targets have "
            "no categories that could be balanced"
        )
    if seed is None:
        seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    items = build_train_items(cfg)
    if isinstance(mapper, GroundingDatasetMapper):
        texts = [s["expression"] for i in items for s in (i if isinstance(i, list) else [i])]
        warn_of_unknown_words(mapper.tokenizer, texts)
    items = DatasetFromList(items, copy=False)
    sampler = VisitSampler(len(items), seed)
    skip = cfg.DATALOADER.SKIP_BAD_SAMPLES
    mapper = BadSampleSkipper(mapper, items) if skip else CheckedMapper(mapper)
    in_process = cfg.DATALOADER.NUM_WORKERS == 0
    dataset = VisitDataset(items, mapper if in_process else ErrorsAsSamples(mapper), seed)
    loader = build_detection_train_loader(
        dataset,
        mapper=None,
        sampler=sampler,
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=False,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=None if in_process else pack_batch,
        # With a generator of its own the loader takes nothing from the random numbers of training.
        seed=seed,
    )
    return GroundingTrainLoader(loader if in_process else UnpackingLoader(loader), sampler, dataset)


def build_train_items(cfg: CfgNode) -> List[Any]:
    """Items of ``DATASETS.TRAIN``: a dict each, or by SAMPLE_UNIT the list about one object."""
    unit = cfg.DATALOADER.SAMPLE_UNIT
    if unit not in SAMPLE_UNITS:
        raise ValueError(f"DATALOADER.SAMPLE_UNIT: expected one of {SAMPLE_UNITS}, found {unit!r}")
    items: List[Any] = []
    generator = cfg.MODEL.QUERY_GENERATOR
    for name in cfg.DATASETS.TRAIN:
        samples = _load(name)
        if generator.NAME:
            _warn_of_too_many_targets(name, samples, generator.NUM_OBJECT_QUERIES)
        # Ids are unique within a data set only, so that groups are formed before data sets are
        # joined.
        own = group_by_object(samples, name) if unit == "object" else list(samples)
        items.extend(own)
        logger.info("%s: %d expressions, visited as %d %ss", name, len(samples), len(own), unit)
    return items


def _warn_of_too_many_targets(name: str, samples: List[_Sample], num_queries: int) -> None:
    """Say how many expressions the model cannot answer in full, whatever it learns."""
    counts = [len(sample["annotations"]) for sample in samples]
    more = sum(count > num_queries for count in counts)
    if more:
        logger.warning(
            "%s: %d of %d expressions have more targets (up to %d) than the model has object "
            "queries (MODEL.QUERY_GENERATOR.NUM_OBJECT_QUERIES %d) and cannot be answered in full",
            *(name, more, len(samples), max(counts), num_queries),
        )


def _load(name: str) -> List[_Sample]:
    """Samples of a registered data set, without the polygons, which only evaluators need.

    A loader stores a copy of every target with each of its expressions; masks are there as RLE.
    """
    samples = get_detection_dataset_dicts(name, filter_empty=False)
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
        Sized iterable of ``list[dict]``, outputs of the mapper.
    """
    mapper = GroundingDatasetMapper(cfg, is_train=False) if mapper is None else mapper
    # Whatever SKIP_BAD_SAMPLES says: without its bad samples it is another benchmark.
    mapper = CheckedMapper(mapper)
    in_process = cfg.DATALOADER.NUM_WORKERS == 0
    loader = build_detection_test_loader(
        _load(dataset_name),
        mapper=mapper if in_process else ErrorsAsSamples(mapper),
        batch_size=batch_size,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=None if in_process else pack_batch,
    )
    return loader if in_process else UnpackingLoader(loader)
