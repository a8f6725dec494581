"""Work in several processes, which a killed worker ends with an error and not with a hang."""

import collections
import itertools
import multiprocessing
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Callable, Deque, Iterable, Iterator, List

# Items that travel to a worker together, and such chunks per worker that are ready at a time.
_CHUNK, _AHEAD = 32, 4


def map_in_processes(
    work: Callable[[Any], Any], items: Iterable[Any], num_workers: int
) -> Iterator[Any]:
    """Results of ``work`` in the order of the items, of which some hundred are in memory at a time.

    Args:
        work: any function; workers are forked and inherit it.
        items: read some chunks ahead, so that the workers have something to do meanwhile.
        num_workers: processes; below 2, and where there is no fork, the calling one does it all.

    Raises:
        ChildProcessError: a worker ended before its work was done.
    """
    if num_workers < 2 or "fork" not in multiprocessing.get_all_start_methods():
        yield from map(work, items)
        return
    items, context = iter(items), multiprocessing.get_context("fork")
    waiting: Deque[Future] = collections.deque()
    try:
        with ProcessPoolExecutor(num_workers, context, _inherit, (work,)) as pool:
            while chunk := list(itertools.islice(items, _CHUNK)):
                waiting.append(pool.submit(_work_on, chunk))
                if len(waiting) > _AHEAD * num_workers:
                    yield from waiting.popleft().result()
            for results in waiting:
                yield from results.result()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            f"a worker process was killed, perhaps because memory ran out; use fewer than "
            f"{num_workers} of them"
        ) from error


def _inherit(work: Callable[[Any], Any]) -> None:
    """First of all in a worker."""
    global _work
    _work = work


def _work_on(chunk: List[Any]) -> List[Any]:
    return list(map(_work, chunk))
