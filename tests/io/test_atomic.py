"""A file is there as a whole or not at all, and a full disk says what is needed."""

import errno
import os
import shutil

import pytest

from igvg_d2.io.atomic import atomic_path, check_writable, write_atomically


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "x.json"
    write_atomically(str(path), "\u00e4")
    assert path.read_bytes() == b"\xc3\xa4"
    with atomic_path(str(path)) as unfinished:
        (tmp_path / unfinished).write_bytes(b"new")
        assert path.read_bytes() == b"\xc3\xa4"
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_a_file_gets_the_rights_of_any_new_file(tmp_path):
    (tmp_path / "other").write_text("")
    with atomic_path(str(tmp_path / "x")) as unfinished:
        os.chmod(unfinished, 0o600)
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError("else"), ValueError("else"), KeyboardInterrupt()])
def test_after_an_error_the_old_file_is_there(tmp_path, error):
    write_atomically(str(tmp_path / "x"), b"old")
    with pytest.raises(type(error)):
        with atomic_path(str(tmp_path / "x"), 10):
            raise error
    assert (tmp_path / "x").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_full_disk_says_what_is_needed(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    # What PyTorch makes of the system's error.
    error = RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
    with pytest.raises(OSError, match="x.pth': 288 bytes are needed, 100 bytes are") as caught:
        with atomic_path(str(tmp_path / "x.pth"), 288):
            raise error
    assert caught.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())


def test_folder_is_probed_before_the_work(tmp_path, monkeypatch):
    check_writable(str(tmp_path / "new" / "folder"))
    assert not list((tmp_path / "new" / "folder").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="OUTPUT_DIR '.*file/x' cannot be written: Not a directory"):
        check_writable(str(tmp_path / "file" / "x"))

    def fail(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="cannot be written: No space left on device; set OUTPUT_DIR"):
        check_writable(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "new"]
