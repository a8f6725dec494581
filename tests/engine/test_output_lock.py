"""Two runs in one output folder: the second is refused, unless the first has ended."""

import json
import os
import socket
import subprocess
import sys

import pytest

from igvg_d2.engine.output_lock import LOCK, FolderInUseError, output_lock, release_output_lock

HOST = socket.gethostname()


@pytest.fixture
def left(tmp_path):
    """Writes the lock of somebody else."""

    def write(**owner):
        path = tmp_path / LOCK
        path.write_text(json.dumps(owner))
        return path

    return write


def test_it_is_held_and_released(tmp_path):
    path = tmp_path / LOCK
    with output_lock(str(tmp_path)):
        owner = json.loads(path.read_text())
        assert (owner["host"], owner["pid"]) == (HOST, os.getpid())
        with pytest.raises(FolderInUseError, match=f"by process {os.getpid()} on host '{HOST}'"):
            with output_lock(str(tmp_path)):
                pass
    assert not path.exists()
    with pytest.raises(SystemExit), output_lock(str(tmp_path)):
        sys.exit(75)
    assert not path.exists()


def test_an_end_without_exceptions_releases_it_but_not_that_of_a_forked_process(tmp_path):
    with output_lock(str(tmp_path)):
        child = os.fork()
        if child == 0:
            release_output_lock()
            os._exit(0)
        os.waitpid(child, 0)
        assert (tmp_path / LOCK).exists()
        release_output_lock()
        assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("how", ["ended", "zombie", "number taken"])
def test_one_that_a_dead_process_left_is_replaced(tmp_path, left, caplog, how):
    process = subprocess.Popen(["true"])
    if how == "ended":
        process.wait()
    else:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    pid = os.getpid() if how == "number taken" else process.pid
    left(host=HOST, pid=pid, begin="12")
    with output_lock(str(tmp_path)):
        assert f"is of process {pid}, which has ended" in caplog.text
    process.wait()


@pytest.mark.parametrize(
    "owner",
    [
        {"host": "another", "pid": 4, "begin": "1"},
        {"host": HOST, "pid": -1, "begin": "1"},
        {"host": HOST},
    ],
)
def test_another_host_and_what_cannot_be_read_need_a_person(tmp_path, left, owner):
    path = left(**owner)
    with pytest.raises(FolderInUseError, match=f"OUTPUT_DIR.* in use .*'{path}'.*remove the file"):
        with output_lock(str(tmp_path)):
            pass
    assert json.loads(path.read_text()) == owner
