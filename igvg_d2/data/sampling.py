"""Which sample is drawn when in training: a function of seed, epoch and item alone.

A *visit* is one appearance of an item in training. Everything random about it, the sentence that is
drawn and the augmentation, comes from a generator of its own that is seeded with (seed, epoch,
item). So it does not matter how many workers or processes share the work, nor whether the run was
interrupted; loaders that let each worker draw from a stream of its own repeat or lose draws.
"""

import itertools
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple, Union

import numpy as np
from detectron2.utils import comm
from detectron2.utils.serialize import PicklableWrapper
from torch.utils.data import Dataset, Sampler

Visit = Tuple[int, int]
_Sample = Dict[str, Any]
_Item = Union[_Sample, List[_Sample]]

SAMPLE_UNITS = ("expression", "object")
# Items that are tried before the loader gives up on a mapper that returns None.
_MAX_ATTEMPTS = 100


class VisitSampler(Sampler):
    """Endless shuffled visits of all items, epoch after epoch, shared out over the processes.

    The order of an epoch follows from (seed, epoch), so any position is reached at once.

    Args:
        size: number of items; an epoch visits each once.
        seed: the same in all processes.
        shuffle: False keeps the order of the data.

    Attributes:
        position: visits of all processes together that are already done; set it before iterating
            to continue a training run.
    """

    def __init__(self, size: int, seed: int, shuffle: bool = True):
        if size <= 0:
            raise ValueError(f"VisitSampler: expected at least one item, found {size}")
        self.size = size
        self.seed = seed
        self.shuffle = shuffle
        self.position = 0
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def __iter__(self) -> Iterator[Visit]:
        """Yields (epoch, index of the item) for this process."""
        current, order = None, None
        for position in itertools.count(self.position + self._rank, self._world_size):
            epoch, offset = divmod(position, self.size)
            if epoch != current:
                current, order = epoch, self._order(epoch)
            yield epoch, int(order[offset])

    def __len__(self) -> int:
        """Items of an epoch."""
        return self.size

    def _order(self, epoch: int) -> np.ndarray:
        """Indices of all items in the order of an epoch."""
        if not self.shuffle:
            return np.arange(self.size)
        return np.random.default_rng((self.seed, epoch)).permutation(self.size)


class VisitDataset(Dataset):
    """What a visit shows: one sentence of the item, mapped with random numbers of its own.

    Args:
        items: dataset dicts, or lists of dicts of which each visit draws one, all with the same
            probability.
        mapper: gets the dict with one more entry, ``rng``, a ``numpy.random.Generator`` for its
            augmentation. If it returns None, another item takes the place.
        seed: of all draws.
    """

    def __init__(self, items: Sequence[_Item], mapper: Callable[[_Sample], Any], seed: int):
        self.items = items
        self.mapper = PicklableWrapper(mapper)
        self.seed = seed

    def __len__(self) -> int:
        """Number of items."""
        return len(self.items)

    def __getitem__(self, visit: Visit) -> Any:
        """The mapper's output for (epoch, index of the item)."""
        epoch, index = visit
        rng = np.random.default_rng((self.seed, epoch, index))
        for _ in range(_MAX_ATTEMPTS):
            mapped = self.mapper({**draw_sentence(self.items[index], rng), "rng": rng})
            if mapped is not None:
                return mapped
            index = int(rng.integers(len(self.items)))
        raise RuntimeError(
            f"the mapper returned None for {_MAX_ATTEMPTS} samples in a row; check the data with "
            "datasets/check.py"
        )


def draw_sentence(item: _Item, rng: np.random.Generator) -> _Sample:
    """The item itself, or one of its dicts, all with the same probability."""
    if isinstance(item, list):
        return item[int(rng.integers(len(item)))]
    return item


def group_by_object(samples: Sequence[_Sample], name: str) -> List[List[_Sample]]:
    """Dataset dicts of one object each, by ``ref_id``, in the order in which the objects appear.

    Args:
        samples: dataset dicts, one per expression.
        name: of the data set, for the message if a dict has no ``ref_id``.
    """
    groups: Dict[Any, List[_Sample]] = {}
    for sample in samples:
        if "ref_id" not in sample:
            raise ValueError(
                f"DATALOADER.SAMPLE_UNIT 'object' needs 'ref_id' in every sample of '{name}', the "
                "object an expression is about; add it to the reader or use 'expression'"
            )
        groups.setdefault(sample["ref_id"], []).append(sample)
    return list(groups.values())
