"""Processes meet, also those of torchrun, and a job ends when one of them is lost."""

import atexit
import functools
import os
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
import torch
from detectron2.utils import comm
from torch import multiprocessing

from igvg_d2.engine.launch import RankFailedError, _check_address, _run_rank, launch
from igvg_d2.engine.stop_signals import STOPPED_EXIT_CODE

# An end by the launcher, not by the time-out of the process group.
TIMEOUT = timedelta(minutes=5)
MAX_SECONDS = 150


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((0,), {}, "--num-gpus"),
        ((1, 0), {}, "--num-machines"),
        ((1, 2, 2, "tcp://h:1"), {}, "--machine-rank: expected 0 to 1"),
        ((2, 2, 0, "auto"), {}, "--dist-url"),
        ((1, 2, 0, "tcp://h"), {}, "--dist-url"),
        ((2,), {"device": "cuda:1"}, "MODEL.DEVICE is 'cuda:1'"),
        ((999,), {"device": "cuda"}, "--num-gpus 999: this machine offers"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        launch(print, *arguments, **options)


def test_one_process_runs_here():
    assert launch(lambda x: x + 1, 1, args=(2,)) == 3


def work(folder, mode):
    """A process of the tests: meets the others, then works, raises or is killed."""
    ranks = comm.all_gather((comm.get_rank(), comm.get_local_rank(), os.getpid()))
    if comm.is_main_process():
        Path(folder, "ranks").write_text("\n".join(f"{r} {lr}" for r, lr, _ in ranks))
        Path(folder, "workers").write_text(multiprocessing.get_start_method())
    if mode == "work":
        return
    if comm.get_rank() == 1:
        if mode == "raise":
            raise ValueError("sample 7_0 ('x.jpg') is bad")
        os.kill(os.getpid(), signal.SIGKILL)
    torch.distributed.all_reduce(torch.ones(1))


@pytest.mark.parametrize(
    "mode, method, message",
    [
        ("raise", "fork", r"rank 1 of 2 failed(.|\n)*sample 7_0 \('x.jpg'\) is bad"),
        ("kill", "spawn", r"rank 1 of 2 failed.*memory runs out(.|\n)*SIGKILL"),
    ],
)
def test_a_lost_process_ends_the_job(tmp_path, monkeypatch, mode, method, message):
    # A spawned process needs 4 s of CPU to import torch and Detectron2, a forked one nothing.
    start_processes = multiprocessing.start_processes
    patched = functools.partial(start_processes, start_method=method)
    monkeypatch.setattr(multiprocessing, "start_processes", patched)
    start = time.monotonic()
    with pytest.raises(RankFailedError, match=message):
        launch(work, 2, args=(str(tmp_path), mode), device="cpu", timeout=TIMEOUT)
    assert time.monotonic() - start < MAX_SECONDS
    assert (tmp_path / "ranks").read_text() == "0 0\n1 1"
    # However a rank was started, its loaders start workers as those of a single process.
    assert (tmp_path / "workers").read_text() == multiprocessing.get_all_start_methods()[0]


def join_job(folder, arguments, environ):
    """What the command line does, in a process of its own."""
    os.environ.update(environ)
    launch(work, *arguments, args=(folder, "work"), device="cpu")


def run_all(tmp_path, commands):
    """Run (arguments, environment) at once, wait for all, and return the ranks they had."""
    context = multiprocessing.get_context("fork")
    running = [context.Process(target=join_job, args=(str(tmp_path), *x)) for x in commands]
    for process in running:
        process.start()
    for process in running:
        process.join(100)
    codes = [process.exitcode for process in running]
    for process in running:
        process.kill()
    assert codes == [0] * len(running)
    return (tmp_path / "ranks").read_text().splitlines()


def in_process(function):
    """What a function returns in a process of its own."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(False)
    process = context.Process(target=lambda: sender.send(function()))
    process.start()
    sender.close()
    result = receiver.recv()
    process.join(30)
    return result


def free_port():
    return str(urlsplit(_check_address("auto", 1)).port)


def test_two_machines(tmp_path, monkeypatch):
    patched = functools.partial(multiprocessing.start_processes, start_method="fork")
    monkeypatch.setattr(multiprocessing, "start_processes", patched)
    url = f"tcp://127.0.0.1:{free_port()}"
    commands = [((1, 2, rank, url), {}) for rank in (0, 1)]
    clean_up = atexit.register((tmp_path / "parent").touch)
    assert run_all(tmp_path, commands) == ["0 0", "1 0"]
    atexit.unregister(clean_up)
    # A forked process has its parent's exit functions, which are not its own.
    assert not (tmp_path / "parent").exists()


def test_a_spawned_process_ends_after_its_threads_and_exit_functions(monkeypatch):
    ended = []

    def run(*_):
        threading.Thread(target=lambda: time.sleep(0.2) or ended.append("thread")).start()
        atexit.register(ended.append, "exit function")
        sys.exit(STOPPED_EXIT_CODE)

    def end():
        atexit._clear()
        _run_rank(0, None, (), ())

    module = sys.modules[launch.__module__]
    monkeypatch.setattr(module, "_run_in_group", run)
    monkeypatch.setattr(module, "os", SimpleNamespace(_exit=ended.append))
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "spawn")
    assert in_process(lambda: end() or ended) == ["thread", "exit function", STOPPED_EXIT_CODE]


def test_processes_of_torchrun(tmp_path):
    """As its agent starts them; the command line is that of a job without it."""
    names = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}
    names.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
    commands = [((2,), {**names, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
    assert run_all(tmp_path, commands) == ["0 0", "1 1"]
