"""Starts the processes of a training job on this machine, or joins those that torchrun started.

``detectron2.engine.launch`` starts them in the same way, but chooses NCCL whenever the machine has
a GPU (also for ``MODEL.DEVICE cpu``), does not know torchrun, and passes on neither signals nor
exit codes. So does PyTorch's ``elastic_launch``, whose agent turns the end of a process after a
signal into an error of its own.
"""

import atexit
import functools
import os
import signal
import socket
import sys
import threading
import time
from datetime import timedelta
from multiprocessing import resource_tracker
from typing import Any, Callable, Dict, Optional, Tuple
from urllib.parse import urlsplit

import torch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch import distributed, multiprocessing
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from .stop_signals import SAME_KEY_SECONDS, STOP_SIGNALS, STOPPED_EXIT_CODE


class RankFailedError(RuntimeError):
    """A process of the job ended with an error; the message says which one and why."""


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
) -> Any:
    """Run ``main_func`` in every process of a job; arguments as ``detectron2.engine.launch``.

    Under torchrun this process is one of them, and the four numbers are not needed.

    Args:
        main_func: importable function, called as ``main_func(*args)``.
        num_gpus_per_machine: processes per machine, on GPUs or on the CPU.
        num_machines, machine_rank: of a job that is started on each of several machines.
        dist_url: "tcp://host:port" of machine 0; "auto" is a free port of this machine.
        args: picklable.
        timeout: a process that waits longer than this for another one fails, in any group.
        device: ``MODEL.DEVICE``; "cpu" means gloo, also on a machine with GPUs. Default: GPUs where
            there are any.

    Returns:
        what ``main_func`` returns, if it runs in this process; else None.

    Raises:
        ValueError: numbers or address that make no sense, or too few GPUs.
        RankFailedError: a process of this machine failed; all others have ended.
        SystemExit: the processes stopped after a signal, see :mod:`igvg_d2.engine.stop_signals`.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if distributed.is_torchelastic_launched():
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        rank, world_size, local_rank, local_size = (int(os.environ[name]) for name in names)
        if world_size > 1:
            _check_device(device, local_size)
            job = (rank - local_rank, world_size, local_size, "env://", device, timeout)
            return _run_in_group(local_rank, main_func, args, job)
        return main_func(*args)
    _check_numbers(num_gpus_per_machine, num_machines, machine_rank)
    world_size = num_gpus_per_machine * num_machines
    if world_size == 1:
        if device.startswith("cuda:"):
            torch.cuda.set_device(device)
        return main_func(*args)
    dist_url = _check_address(dist_url, num_machines)
    _check_device(device, num_gpus_per_machine)
    first = machine_rank * num_gpus_per_machine
    job = (first, world_size, num_gpus_per_machine, dist_url, device, timeout)
    # Ctrl-C also goes to the processes, which inherit this: they would die of it while importing.
    # The tracker, which Python starts with the first process, would undo it.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        processes = multiprocessing.start_processes(
            _run_rank, (main_func, args, job), nprocs=num_gpus_per_machine, join=False
        )
        _wait(processes, first, world_size)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    return None


def place_in_job(num_gpus_per_machine: int, machine_rank: int) -> Tuple[int, bool]:
    """What :func:`launch` is about to do, also under torchrun.

    Returns:
        processes of this machine, and whether this process is, or starts, the first of the job,
        which writes the files.
    """
    if distributed.is_torchelastic_launched():
        return int(os.environ["LOCAL_WORLD_SIZE"]), os.environ["RANK"] == "0"
    return num_gpus_per_machine, machine_rank == 0


def _check_numbers(num_gpus: int, num_machines: int, machine_rank: int) -> None:
    """Refuse numbers that cannot work."""
    for name, value in (("--num-gpus", num_gpus), ("--num-machines", num_machines)):
        if value < 1:
            raise ValueError(f"{name}: expected 1 or more, found {value}")
    if not 0 <= machine_rank < num_machines:
        raise ValueError(
            f"--machine-rank: expected 0 to {num_machines - 1} (--num-machines is {num_machines}), "
            f"found {machine_rank}"
        )


def _check_address(dist_url: Optional[str], num_machines: int) -> str:
    """The address, for "auto" one of this machine with a port nobody listens to at this moment."""
    url = urlsplit(dist_url or "")
    is_complete = url.scheme == "file" or url.scheme == "tcp" and url.hostname and url.port
    if num_machines > 1 and not is_complete:
        raise ValueError(
            "--dist-url: several machines need the same tcp://<address of machine 0>:<free port> "
            f"everywhere, found {dist_url!r}"
        )
    if dist_url not in (None, "auto"):
        return dist_url
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


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
    found = torch.cuda.device_count() if kind == "cuda" else 1
    if num_local > found:
        raise ValueError(
            f"--num-gpus {num_local}: this machine offers {found} GPUs ({device}); ask for fewer "
            "(torchrun: --nproc-per-node; each process needs a GPU of its own), or set "
            "MODEL.DEVICE cpu for processes on the CPU"
        )


def _run_rank(local_rank: int, main_func: Callable[..., Any], args: Tuple, job: Tuple) -> None:
    """Body of a started process."""
    # Before the training run, an end without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if multiprocessing.get_start_method() == "fork":
        # It ends as below, but its exit functions are those of its parent.
        _run_in_group(local_rank, main_func, args, job)
        return
    # Workers of its loaders start as those of a single process: one that is spawned, as this was,
    # imports everything again, 4 s and 0.6 GB, at every evaluation.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    code = 0
    try:
        _run_in_group(local_rank, main_func, args, job)
    except SystemExit as end:
        if not isinstance(end.code, int):
            raise
        code = end.code
    # As a forked process ends. Before 3.14, Python ends a thread of gloo that drops its last tensor
    # while the interpreter is being taken down, and the process then dies of SIGABRT.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run_in_group(local_rank: int, main_func: Callable[..., Any], args: Tuple, job: Tuple) -> Any:
    """``main_func(*args)`` as a member of the job; after an error nobody waits for the others.

    Args:
        local_rank: of this process among those of the machine.
        main_func, args: see :func:`launch`.
        job: rank of the machine's first process, processes of the job and of the machine, and
            address, device and time-out, see :func:`launch`.
    """
    first, world_size, local_size, dist_url, device, timeout = job
    rank, on_gpu, new_group = first + local_rank, device == "cuda", distributed.new_group
    if on_gpu:
        torch.cuda.set_device(local_rank)
    # Detectron2 makes groups of its own, with a time-out of 10 or 30 minutes.
    distributed.new_group = functools.partial(new_group, timeout=timeout)
    try:
        try:
            distributed.init_process_group(
                backend="nccl" if on_gpu else "gloo",
                init_method=dist_url,
                rank=rank,
                world_size=world_size,
                timeout=timeout,
            )
        except (RuntimeError, ValueError) as error:
            raise RankFailedError(
                f"rank {rank} of {world_size} could not meet the others at {dist_url} within "
                f"{timeout}: {error}. Check that all processes were started, that the address is "
                "that of the first machine and that the port is free."
            ) from error
        comm.create_local_process_group(local_size)
        comm.synchronize()
        result = main_func(*args)
    except SystemExit as end:
        if end.code == STOPPED_EXIT_CODE:
            distributed.destroy_process_group()
        raise
    finally:
        distributed.new_group = new_group
    distributed.destroy_process_group()
    return result


def _wait(processes: multiprocessing.ProcessContext, first: int, world_size: int) -> None:
    """Pass signals on until all processes are done; PyTorch ends the others when one is lost.

    SIGINT is blocked until here. A second one kills the processes.
    """
    received: Dict[int, float] = {}

    def forward(number, frame):
        age = time.monotonic() - received.setdefault(number, time.monotonic())
        is_second_key = number == signal.SIGINT and age > SAME_KEY_SECONDS
        for process in processes.processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL if is_second_key else number)

    previous: Dict[int, Any] = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        while not processes.join():
            pass
    except (ProcessExitedException, ProcessRaisedException) as error:
        code = getattr(error, "exit_code", 1)
        # A rank leaves with this code when the checkpoint of all of them is there.
        if code == STOPPED_EXIT_CODE:
            sys.exit(code)
        if received:
            sys.exit(128 + list(received)[-1])
        hint = ""
        if code == -signal.SIGKILL:
            hint = " The system does this when memory runs out: see `dmesg`."
        # Of an error that a process explains itself, without the traceback before it.
        reason = str(error).rpartition(f"{RankFailedError.__name__}: ")[2]
        raise RankFailedError(
            f"rank {first + error.error_index} of {world_size} failed; the other processes of this "
            f"machine were ended too.{hint} Continue from the last checkpoint with --resume.\n"
            f"{reason}"
        ) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
