"""A missing or too old requirement is one clear line, before anything heavy is imported."""

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from igvg_d2.requirements_check import (
    DETECTRON2,
    REQUIREMENTS,
    Requirement,
    RequirementsError,
    check_requirements,
    find_version,
    parse_version,
)

ROOT = Path(__file__).resolve().parent.parent
CHECK = ROOT / "igvg_d2" / "requirements_check.py"


def write_module(folder, name, source):
    """A one-file package on disk; returns nothing."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(source, encoding="utf-8")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("2.14.1+cu130", (2, 14, 1)),
        ("0.1.5.post20221221", (0, 1, 5)),
        ("1.0rc1", (1, 0)),
        ("v3", (3,)),
        ("unknown", ()),
    ],
)
def test_parse_version(text, expected):
    assert parse_version(text) == expected


def test_versions_compare_as_numbers_not_text():
    assert parse_version("2.9") < parse_version("2.14")


def test_this_environment_is_complete():
    assert None not in map(find_version, (*REQUIREMENTS, DETECTRON2))
    check_requirements()


def test_message_is_one_line_with_what_found_needed_and_command(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # restored after the test
    monkeypatch.syspath_prepend(str(tmp_path))
    write_module(tmp_path, "igvg_unversioned_piece", "")
    (tmp_path / "igvg_leftover_folder").mkdir()
    names = ("unversioned_piece", "leftover_folder", "absent_piece")
    requirements = [Requirement(f"igvg_{name}", "1.10", (f"igvg-{name}",)) for name in names]
    version = importlib.metadata.version("numpy")
    with pytest.raises(RequirementsError) as caught:
        check_requirements([Requirement("numpy", "99.0", ("numpy",)), *requirements])
    # A piece whose version nothing tells gets the benefit of the doubt.
    assert str(caught.value) == (
        f"igvg_d2 cannot run: numpy (found {version}, needed >= 99.0); "
        "igvg-leftover_folder (found nothing, needed >= 1.10); "
        "igvg-absent_piece (found nothing, needed >= 1.10). "
        'Run: pip install "numpy>=99.0" "igvg-leftover_folder>=1.10" "igvg-absent_piece>=1.10"'
    )


def test_check_raises_an_import_error(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # restored after the test
    with pytest.raises(RequirementsError, match="igvg-absent .found nothing, needed >= 1.0"):
        check_requirements([Requirement("igvg_absent", "1.0", ("igvg-absent",))])
    assert issubclass(RequirementsError, ImportError)


def test_the_release_of_detectron2_from_2021_is_too_old(tmp_path, monkeypatch):
    """PyPI has it as pb1-detectron2; it fails with this Pillow, and lacks what the engine uses."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # restored after the test
    write_module(tmp_path, "detectron2", "__version__ = '0.6'")
    write_module(tmp_path / "detectron2", "utils", "")
    (tmp_path / "detectron2" / "utils" / "events.py").write_text("def get_event_storage(): pass")
    spec = importlib.util.spec_from_file_location(
        "detectron2", tmp_path / "detectron2" / "__init__.py"
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(RequirementsError, match=r"detectron2 \(found its release .* make env"):
        check_requirements([DETECTRON2])


def test_a_second_distribution_name_is_accepted():
    version = importlib.metadata.version("numpy")
    assert find_version(Requirement("numpy", "1.0", ("no-such-name", "numpy"))) == version


def test_empty_environment_gets_one_line_and_status_1():
    # -I -S: neither site-packages nor the working directory, as in a fresh virtual environment.
    run = subprocess.run(
        [sys.executable, "-I", "-S", str(CHECK)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert line.startswith("igvg_d2 cannot run: torch (found nothing, needed >= ")
    assert "detectron2 (found nothing" in line and "make env" in line


SCRIPTS = [
    path
    for pattern in ("train_net.py", "tools/*.py", "demo/*.py", "datasets/*.py")
    for path in sorted(ROOT.glob(pattern))
    if path.name != "onnx_demo.py"  # works without the library
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_checks_before_its_other_imports(script):
    code = (
        "import runpy, sys; sys.path.insert(0, sys.argv[1]); "
        "runpy.run_path(sys.argv[2], run_name='__main__')"
    )
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(ROOT), str(script)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith("igvg_d2 cannot run: torch (found nothing"), line


def test_import_of_the_package_checks_first():
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import igvg_d2"
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert len(run.stderr.splitlines()) == 1 and "Run: pip install" in run.stderr
