"""Signals to real processes: ranks, their launcher, loader workers."""

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from igvg_d2.data.loader import UnpackingLoader, pack_batch
from igvg_d2.engine import launch, stop_signals
from igvg_d2.engine.stop_signals import STOPPED_EXIT_CODE, StoppableLoader, StopSignals
from tests.engine.test_resuming import metrics
from tests.engine.toy_training import stop_one_rank, train_slowly

ROOT = Path(__file__).resolve().parents[2]
FORK = multiprocessing.get_context("fork")


def test_all_ranks_stop_at_one_iteration_and_go_on_exactly(tmp_path):
    """With BatchNorm statistics of each rank's own."""
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    with pytest.raises(SystemExit) as stopped:
        launch(stop_one_rank, 2, args=(whole, parts), device="cpu")
    assert stopped.value.code == STOPPED_EXIT_CODE
    expected, found = (
        torch.load(f"{folder}/model_final.pth", weights_only=True)["model"]
        for folder in (whole, parts)
    )
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert metrics(parts) == metrics(whole)


class Endless(torch.utils.data.IterableDataset):
    """Samples that fill a pipe, with the worker they come from."""

    def __iter__(self):
        while True:
            yield {"x": torch.zeros(300000), "pid": os.getpid()}


def use_workers(connection):
    """A training process with two workers, directed through ``connection``."""
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    loader = UnpackingLoader(DataLoader(Endless(), 2, num_workers=2, collate_fn=pack_batch))
    batches = iter(loader)
    for _ in range(2):
        connection.send(sorted({next(batches)[0]["pid"] for _ in range(6)}))
        how = connection.recv()
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)


def is_running(pid):
    """Whether a process is there and not a zombie, whose new parent may not look after it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks at /proc")
@pytest.mark.parametrize("end", ["die", "leave"])
def test_workers_ignore_signals_and_end_with_their_parent(end, capfd):
    connection, other = FORK.Pipe()
    process = FORK.Process(target=use_workers, args=(other,))
    process.start()
    workers = connection.recv()
    assert len(workers) == 2
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
        for pid in workers:
            os.kill(pid, number)
    time.sleep(0.3)
    connection.send("go on")
    assert connection.recv() == workers
    # They are now blocked on a pipe that nobody reads.
    time.sleep(0.5)
    connection.send(end)
    process.join(30)
    assert process.exitcode == (-signal.SIGKILL if end == "die" else 0)
    deadline = time.monotonic() + 10
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline, "a worker outlived its run"
        time.sleep(0.1)
    assert "Traceback" not in capfd.readouterr().err


def wait_for_signals(connection):
    """A process that remembers signals."""
    stop_signals._SAME_SECONDS = 0.5
    signals = StopSignals()
    signals.install()
    connection.send("ready")
    while signals.received is None:
        time.sleep(0.05)
    connection.send(signals.received)
    time.sleep(30)


def test_a_second_signal_ends_at_once_but_a_copy_of_the_first_does_not(capfd):
    connection, other = FORK.Pipe()
    process = FORK.Process(target=wait_for_signals, args=(other,))
    process.start()
    assert connection.recv() == "ready"
    os.kill(process.pid, signal.SIGUSR1)
    assert connection.recv() == signal.SIGUSR1
    os.kill(process.pid, signal.SIGTERM)  # as from a launcher and a batch system
    process.join(0.7)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGTERM)
    process.join(5)
    assert process.exitcode == 128 + signal.SIGTERM
    assert "SIGUSR1: stopping after this step" in capfd.readouterr().err


def interruptible(folder, processes, seconds):
    """A command in a terminal: its processes are a group, which Ctrl-C reaches."""
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)
    patched = functools.partial(torch.multiprocessing.start_processes, start_method="fork")
    torch.multiprocessing.start_processes = patched
    launch(train_slowly, processes, args=(folder, seconds), device="cpu")


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("keys, code", [(1, STOPPED_EXIT_CODE), (2, 128 + signal.SIGINT)])
def test_ctrl_c_saves_and_a_second_one_ends_at_once(tmp_path, capfd, processes, keys, code):
    folder = str(tmp_path)
    process = FORK.Process(target=interruptible, args=(folder, processes, 60.0 if keys > 1 else 1))
    process.start()
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("rank*"))) < processes:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.02)
    for _ in range(keys):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(1.0)
    process.join(30)
    assert process.exitcode == code
    saved = (tmp_path / "last_checkpoint").read_text()
    assert saved == ("model_0000012.pth" if keys == 1 else "model_0000009.pth")
    assert "Traceback" not in capfd.readouterr().err


STUB = """#!{python}
import pathlib, signal, sys, time
def stop(*_):
    time.sleep(0.5)
    pathlib.Path("{folder}/saved").touch()
    sys.exit(75)
signal.signal(signal.SIGINT, stop)
pathlib.Path("{folder}/started").touch()
time.sleep(60)
"""


def test_make_waits_for_an_interrupted_training_run(tmp_path):
    stub = tmp_path / "python"
    stub.write_text(STUB.format(python=sys.executable, folder=tmp_path))
    stub.chmod(0o755)
    process = subprocess.Popen(
        ["make", "--old-file=data", "train", f"PY={stub}"],
        **dict(cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT),
    )
    while not (tmp_path / "started").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert (tmp_path / "saved").exists()
    assert process.returncode != 0 and b"Error 75" in output


def test_handlers_are_given_back():
    before = signal.getsignal(signal.SIGTERM)
    signals = StopSignals()
    signals.install()
    assert signal.getsignal(signal.SIGTERM) == signals._handle and not signals.agreed()
    signals.remove()
    assert signal.getsignal(signal.SIGTERM) == before


def test_loader_outside_of_a_training_is_the_loader():
    loader = StoppableLoader([1, 2, 3])
    assert len(loader) == 3 and list(loader) == [1, 2, 3]
