"""Work in several processes: order, errors, and killed workers."""

import itertools
import os
import signal

import pytest

from igvg_d2.io.processes import map_in_processes


def square(number):
    return number * number


def die_at_seven(number):
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def refuse_seven(number):
    if number == 7:
        raise ValueError("seven")
    return number


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_results_come_in_order(num_workers):
    expected = [i * i for i in range(700)]
    assert list(map_in_processes(square, iter(range(700)), num_workers)) == expected
    # Workers inherit what no file can name.
    assert list(map_in_processes(lambda i: i * i, range(700), num_workers)) == expected
    with pytest.raises(ValueError, match="seven"):
        list(map_in_processes(refuse_seven, range(10), num_workers))


def test_items_are_not_read_far_ahead():
    numbers = itertools.count()
    results = map_in_processes(square, numbers, 2)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    results.close()
    assert next(numbers) < 400


def test_a_killed_worker_is_an_error_and_no_hang():
    with pytest.raises(ChildProcessError, match="a worker process was killed.*fewer than 2"):
        list(map_in_processes(die_at_seven, range(1000), 2))
