"""Starts the processes of a job and ends all of them when one is lost.

Takes the place of ``detectron2.engine.launch``, which chooses NCCL whenever the machine has a GPU
(also for ``MODEL.DEVICE cpu``), knows neither torchrun nor SLURM, and waits without end for a
process that hangs because another one died.
"""

import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.connection import wait
from typing import Any, Callable, List, MutableMapping, Optional, Sequence, Tuple
from urllib.parse import urlsplit

import torch
from detectron2.utils import comm
from torch import distributed

from .placement import choose_gloo_interface, find_slurm_task, find_torchrun
from .stopping import STOP_SIGNALS, STOPPED_EXIT_CODE, TrainingStopped

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT = timedelta(minutes=10)
# Seconds a process has to end by itself once another one is lost, and again after SIGTERM.
GRACE_SECONDS = 5.0
POLL_SECONDS = 0.5
# Longest traceback handed to the parent; a pipe takes 64 KiB without a reader.
_MAX_MESSAGE = 20000


class RankFailedError(RuntimeError):
    """A process of the job ended with an error; the message says which one and why."""


@dataclass(frozen=True)
class Job:
    """What the processes of one job have in common.

    Attributes:
        num_local: processes on this machine.
        num_machines, machine_rank: as on the command line.
        dist_url: where the processes meet.
        device: ``MODEL.DEVICE``.
        timeout: longest wait for another process.
    """

    num_local: int
    num_machines: int
    machine_rank: int
    dist_url: str
    device: str
    timeout: timedelta

    @property
    def world_size(self) -> int:
        """Processes of the job."""
        return self.num_local * self.num_machines


def launch(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: Optional[str] = "auto",
    args: Tuple = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
    *,
    device: Optional[str] = None,
    environ: Optional[MutableMapping[str, str]] = None,
) -> Any:
    """Run ``main_func`` in every process of a job; arguments as ``detectron2.engine.launch``.

    Without torchrun and SLURM, ``num_gpus_per_machine`` processes are started here. Under torchrun,
    and under SLURM with one task per process, this process is one of them and the four numbers of
    the command line are not needed. Under SLURM with one task per node, each task starts
    ``num_gpus_per_machine`` processes.

    Args:
        main_func: importable function, called as ``main_func(*args)``.
        num_gpus_per_machine: processes per machine, on GPUs or on the CPU.
        num_machines, machine_rank: of a job started by hand on several machines.
        dist_url: "tcp://host:port" of machine 0; "auto" is a free port of this machine.
        args: picklable.
        timeout: a process that waits longer than this for another one fails.
        device: ``MODEL.DEVICE``; "cpu" means gloo, also on a machine with GPUs. Default: GPUs where
            there are any.
        environ: ``os.environ`` to follow torchrun and SLURM; None does not look for them.

    Returns:
        what ``main_func`` returns, if it runs in this process; else None.

    Raises:
        ValueError: numbers or address that make no sense, or too few GPUs.
        RankFailedError: a process of this machine failed; all others have ended.
        SystemExit: all processes stopped after a signal, see :mod:`igvg_d2.engine.stopping`.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    job = Job(num_gpus_per_machine, num_machines, machine_rank, dist_url, device, timeout)
    torchrun = find_torchrun(environ) if environ is not None else None
    if torchrun is not None:
        _warn_if_ignored(job, torchrun.world_size, "torchrun")
        return _run_placed(main_func, args, job, torchrun, environ)
    # Machines numbered by hand come first: they are also used inside SLURM.
    task = find_slurm_task(environ) if environ is not None and num_machines == 1 else None
    if task is not None:
        if dist_url not in (None, "auto"):
            task = replace(task, dist_url=dist_url)
        one_per_node = task.world_size == len(task.hosts)
        if not (one_per_node and num_gpus_per_machine > 1):
            _warn_if_ignored(job, task.world_size, "SLURM")
            return _run_placed(main_func, args, job, task, environ)
        job = replace(
            job, num_machines=task.world_size, machine_rank=task.rank, dist_url=task.dist_url
        )
    job = _check(job)
    if job.world_size == 1:
        return main_func(*args)
    if job.num_machines > 1 and environ is not None:
        choose_gloo_interface(environ, job.dist_url)
    _start_and_watch(main_func, args, job)
    return None


def _warn_if_ignored(job: Job, world_size: int, starter: str) -> None:
    """The command line asks for other processes than there are; the ones that are there count."""
    if job.world_size not in (1, world_size):
        logger.warning(
            "%s started %d processes; --num-gpus %d and --num-machines %d are not used",
            *(starter, world_size, job.num_local, job.num_machines),
        )


def _run_placed(main_func, args, job: Job, place, environ: MutableMapping[str, str]) -> Any:
    """Run as one of the processes torchrun or SLURM started."""
    if place.world_size == 1:
        return main_func(*args)
    choose_gloo_interface(environ, place.dist_url)
    _join_group(job, place.dist_url, place.rank, place.world_size, place.local_rank)
    return main_func(*args)


def _check(job: Job) -> Job:
    """The job with an address filled in; ValueError for what cannot work."""
    for name, value in (("--num-gpus", job.num_local), ("--num-machines", job.num_machines)):
        if value < 1:
            raise ValueError(f"{name}: expected 1 or more, found {value}")
    if not 0 <= job.machine_rank < job.num_machines:
        raise ValueError(
            f"--machine-rank: expected 0 to {job.num_machines - 1} (--num-machines is "
            f"{job.num_machines}), found {job.machine_rank}"
        )
    if job.world_size == 1:
        return job
    if job.num_machines > 1:
        url = urlsplit(job.dist_url or "")
        if url.scheme != "file" and not (url.scheme == "tcp" and url.hostname and url.port):
            raise ValueError(
                "--dist-url: several machines need the same tcp://<address of machine 0>:<free "
                f"port> everywhere, found {job.dist_url!r}"
            )
    elif job.dist_url in (None, "auto"):
        job = replace(job, dist_url=f"tcp://127.0.0.1:{_find_free_port()}")
    _check_device(job.device, job.num_local)
    return job


def _check_device(device: str, num_local: int) -> None:
    """Refuse a device that cannot carry the processes of this machine."""
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return
    if index:
        raise ValueError(
            f"MODEL.DEVICE is {device!r}: with several processes each takes a GPU of its own; set "
            f"{kind!r} and choose GPUs by CUDA_VISIBLE_DEVICES"
        )
    found = torch.cuda.device_count() if kind == "cuda" else num_local
    if num_local > found:
        raise ValueError(
            f"--num-gpus {num_local}: this machine offers {found} GPUs; ask for fewer, or set "
            "MODEL.DEVICE cpu for processes on the CPU"
        )


def _find_free_port() -> int:
    """A port nobody listens to at this moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _join_group(job: Job, dist_url: str, rank: int, world_size: int, local_rank: int) -> None:
    """Make this process a member of the job: process groups, GPU, Detectron2's local group."""
    on_gpu = job.device.partition(":")[0] == "cuda"
    if on_gpu:
        # A task that sees only its own GPU sees it as number 0.
        torch.cuda.set_device(local_rank % max(torch.cuda.device_count(), 1))
    try:
        distributed.init_process_group(
            backend="nccl" if on_gpu else "gloo",
            init_method=dist_url,
            rank=rank,
            world_size=world_size,
            timeout=job.timeout,
        )
    except (RuntimeError, ValueError) as error:
        raise RankFailedError(
            f"rank {rank} of {world_size} could not meet the others at {dist_url} within "
            f"{job.timeout}: {error}. Check that all processes were started, that the address is "
            "that of the first machine and that the port is free."
        ) from error
    local_size = 1 + max(comm.all_gather(local_rank))
    if world_size % local_size or rank % local_size != local_rank:
        raise RankFailedError(
            f"rank {rank} has local rank {local_rank} of {local_size}: expected the same number of "
            "processes on every machine, numbered machine by machine (SLURM: --ntasks-per-node)"
        )
    comm.create_local_process_group(local_size)
    comm.synchronize()


def _start_and_watch(main_func, args: Tuple, job: Job) -> None:
    """Start the processes of this machine; return when all are done, raise when one is lost."""
    context = multiprocessing.get_context("spawn")
    processes, reports = [], []
    for local_rank in range(job.num_local):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_run_rank, args=(local_rank, main_func, args, job, sender))
        process.start()
        sender.close()
        processes.append(process)
        reports.append(receiver)
    received: List[int] = []

    def forward(number, frame):
        received.append(number)
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, number)

    previous = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
    try:
        lost = _wait_for_first_failure(processes)
    finally:
        _end(processes)
        for number, handler in previous.items():
            signal.signal(number, handler)
    if lost is None:
        return
    if all(process.exitcode == STOPPED_EXIT_CODE for process in processes):
        sys.exit(STOPPED_EXIT_CODE)
    if received:
        sys.exit(128 + received[-1])
    raise RankFailedError(_describe(processes[lost], reports[lost], lost, job))


def _run_rank(local_rank: int, main_func, args: Tuple, job: Job, report) -> None:
    """Body of a started process; the traceback of an error goes to the parent."""
    _end_with_parent()
    try:
        rank = job.machine_rank * job.num_local + local_rank
        _join_group(job, job.dist_url, rank, job.world_size, local_rank)
        main_func(*args)
    except TrainingStopped as stopped:
        # At once: taking everything down takes seconds, and the launcher is not patient.
        logging.shutdown()
        os._exit(stopped.code)
    except Exception:
        report.send(traceback.format_exc()[-_MAX_MESSAGE:])
        # Not sys.exit: a library's exit handler may wait for the processes that are lost.
        logging.shutdown()
        os._exit(1)


def _end_with_parent() -> None:
    """End this process when the parent is gone, however it ended."""

    def watch():
        wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _wait_for_first_failure(processes: Sequence) -> Optional[int]:
    """Index of the first process that ends with an error; None when all end well."""
    running = dict(enumerate(processes))
    while running:
        # A sentinel alone would come late: data loader workers hold it open until they notice.
        wait([process.sentinel for process in running.values()], timeout=POLL_SECONDS)
        for index in [i for i, process in running.items() if not process.is_alive()]:
            if running.pop(index).exitcode != 0:
                return index
    return None


def _end(processes: Sequence) -> None:
    """End the processes that are still there: by themselves, by SIGTERM, by SIGKILL."""
    for ask in (lambda process: None, lambda process: process.terminate()):
        for process in processes:
            if process.is_alive():
                ask(process)
        deadline = time.monotonic() + GRACE_SECONDS
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
    for process in processes:
        if process.is_alive():
            process.kill()
        process.join()


def _describe(process, report, local_rank: int, job: Job) -> str:
    """What happened to a lost process, and what to do."""
    rank = job.machine_rank * job.num_local + local_rank
    message = ""
    try:
        if report.poll():
            message = report.recv()
    except EOFError:
        pass  # it was killed before it could say anything
    code = process.exitcode
    how = (
        f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed (exit code {code})"
    )
    hint = ""
    if code == -signal.SIGKILL:
        hint = " The system does this when memory runs out: see `dmesg`."
    return (
        f"rank {rank} of {job.world_size} (pid {process.pid}) {how}; the other processes of this "
        f"machine were ended too.{hint} Continue from the last checkpoint with --resume."
        + (f"\n\n{message}" if message else "")
    )
