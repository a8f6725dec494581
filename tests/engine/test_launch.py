"""Processes are placed as torchrun and SLURM say, and a job ends when one of them is lost."""

import importlib
import multiprocessing
import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm

from igvg_d2.engine.launch import RankFailedError, launch
from igvg_d2.engine.placement import (
    choose_gloo_interface,
    expand_hosts,
    find_slurm_task,
    find_torchrun,
)

# An end by the launcher, not by the time-out of the process group.
TIMEOUT = timedelta(minutes=5)
MAX_SECONDS = 150


@pytest.mark.parametrize(
    "text, hosts",
    [
        ("", []),
        ("node1", ["node1"]),
        ("a[01-03,7],b", ["a01", "a02", "a03", "a7", "b"]),
        ("r[1-2]n[8-9]", ["r1n8", "r1n9", "r2n8", "r2n9"]),
        ("a-1.b.c,gpu[098-101]", ["a-1.b.c", "gpu098", "gpu099", "gpu100", "gpu101"]),
    ],
)
def test_slurm_host_lists(text, hosts):
    assert expand_hosts(text) == hosts


@pytest.mark.parametrize("text", ["a[1-2", "a[1-x]", "a]"])
def test_host_lists_that_make_no_sense(text):
    with pytest.raises(ValueError, match="SLURM_NODELIST"):
        expand_hosts(text)


SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_NODELIST": "n[3-4]",
    "SLURM_JOB_ID": "12345",
}


def test_slurm_task():
    task = find_slurm_task(SLURM)
    assert (task.rank, task.world_size, task.local_rank) == (5, 8, 1)
    assert task.hosts == ["n3", "n4"] and task.dist_url == "tcp://n3:22345"
    own = {**SLURM, "MASTER_ADDR": "x", "MASTER_PORT": "99"}
    assert find_slurm_task(own).dist_url == "tcp://x:99"
    step = {**SLURM, "SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_NODELIST": "n4"}
    assert find_slurm_task(step).world_size == 6 and find_slurm_task(step).hosts == ["n4"]


@pytest.mark.parametrize(
    "change",
    [
        {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        {"ENVIRONMENT": "BATCH"},
        {"SLURM_STEP_NUM_TASKS": "1"},
    ],
)
def test_batch_scripts_and_single_tasks_are_no_slurm_jobs(change):
    assert find_slurm_task({**SLURM, **change}) is None
    assert find_slurm_task({}) is None


def test_torchrun():
    environ = dict(RANK="3", WORLD_SIZE="4", LOCAL_RANK="1", MASTER_ADDR="h", MASTER_PORT="1")
    place = find_torchrun(environ)
    assert (place.rank, place.world_size, place.local_rank) == (3, 4, 1)
    assert find_torchrun({"RANK": "3"}) is None
    with pytest.raises(ValueError, match="MASTER_PORT"):
        find_torchrun({k: v for k, v in environ.items() if k != "MASTER_PORT"})
    with pytest.raises(ValueError, match="WORLD_SIZE: expected a number, found 'x'"):
        find_torchrun({**environ, "WORLD_SIZE": "x"})


def test_gloo_uses_the_interface_of_the_first_machine():
    environ = {}
    choose_gloo_interface(environ, "tcp://127.0.0.2:1234")
    assert environ == {"GLOO_SOCKET_IFNAME": "lo"}
    chosen = {"GLOO_SOCKET_IFNAME": "ib0"}
    choose_gloo_interface(chosen, "tcp://127.0.0.2:1234")
    assert chosen == {"GLOO_SOCKET_IFNAME": "ib0"}
    unknown = {}
    choose_gloo_interface(unknown, "tcp://no.such.host.invalid:1")
    assert unknown == {}


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
    if mode == "work":
        return
    if comm.get_rank() == 1:
        if mode == "raise":
            raise ValueError("sample 7_0 ('x.jpg') is bad")
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "raise":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1000)
    torch.distributed.all_reduce(torch.ones(1))


@pytest.mark.parametrize(
    "mode, method, message",
    [
        ("raise", "fork", r"rank 1 of 2 .*failed(.|\n)*sample 7_0 \('x.jpg'\) is bad"),
        ("kill", "spawn", "rank 1 of 2 .*was killed by SIGKILL"),
    ],
)
def test_a_lost_process_ends_the_job(tmp_path, monkeypatch, mode, method, message):
    # A spawned process needs 4 s of CPU to import torch and Detectron2, a forked one nothing.
    context = multiprocessing.get_context(method)
    monkeypatch.setattr(multiprocessing, "get_context", lambda wanted: context)
    # The name of the module in its package is that of the function.
    module = importlib.import_module("igvg_d2.engine.launch")
    monkeypatch.setattr(module, "GRACE_SECONDS", 2.0)
    start = time.monotonic()
    with pytest.raises(RankFailedError, match=message):
        launch(work, 2, args=(str(tmp_path), mode), device="cpu", timeout=TIMEOUT)
    assert time.monotonic() - start < MAX_SECONDS
    assert (tmp_path / "ranks").read_text() == "0 0\n1 1"


def join_job(folder, arguments, environ):
    """What the command line does, in a process of its own."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "MASTER_"))]:
        del os.environ[name]
    os.environ.update(environ)
    launch(work, *arguments, args=(folder, "work"), device="cpu", environ=os.environ)


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


def free_port():
    from igvg_d2.engine.launch import _find_free_port

    return str(_find_free_port())


def test_two_machines(tmp_path):
    url = f"tcp://127.0.0.1:{free_port()}"
    commands = [((1, 2, rank, url), {}) for rank in (0, 1)]
    assert run_all(tmp_path, commands) == ["0 0", "1 0"]


def test_tasks_of_slurm(tmp_path):
    tasks = {"SLURM_NTASKS": "2", "SLURM_NODELIST": "localhost", "MASTER_PORT": free_port()}
    # The command line of a job without SLURM, unchanged.
    commands = [
        ((2, 1, 0, "auto"), {**tasks, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}) for rank in "01"
    ]
    assert run_all(tmp_path, commands) == ["0 0", "1 1"]
