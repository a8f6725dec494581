"""What pip and make are told: package metadata, and the commands behind `make`."""

import os
import re
import shutil
import subprocess
import sys
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

import igvg_d2
from igvg_d2.requirements_check import REQUIREMENTS

ROOT = Path(__file__).resolve().parent.parent

# Arguments: the checkout, a folder for the result. Run on a copy, as it leaves egg-info behind.
BUILD_METADATA = """
import os, sys, setuptools.build_meta as backend
os.chdir(sys.argv[1])
print("dist-info:" + backend.prepare_metadata_for_build_wheel(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def metadata(tmp_path_factory):
    """Parsed METADATA of the package as pip would see it."""
    pytest.importorskip("setuptools.build_meta")
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("setup.py", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "igvg_d2", copy / "igvg_d2", ignore=ignored)
    (copy / "tests").mkdir()
    (copy / "tests" / "__init__.py").touch()
    out = tmp_path_factory.mktemp("metadata")
    run = subprocess.run(
        [sys.executable, "-c", BUILD_METADATA, str(copy), str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("dist-info:")]
    text = (out / line.partition(":")[2] / "METADATA").read_text(encoding="utf-8")
    return Parser().parsestr(text), copy


def test_metadata(metadata):
    fields, _ = metadata
    assert fields["Name"].replace("-", "_") == "igvg_d2"
    assert fields["Version"] == igvg_d2.__version__
    assert fields["Requires-Python"] == ">=3.10"
    assert {"dev", "docs", "all"} <= set(fields.get_all("Provides-Extra"))


def test_the_version_stands_in_one_place():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[([^]]+)\]", changes, re.MULTILINE)[0] == igvg_d2.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    for name in ("setup.py", "CITATION.cff", "docs/conf.py", "README.md", "INSTALL.md"):
        assert igvg_d2.__version__ not in (ROOT / name).read_text(encoding="utf-8"), name


def test_runtime_requirements_are_lower_bounds_only(metadata):
    fields, _ = metadata
    required = {line.lower() for line in fields.get_all("Requires-Dist") if "extra" not in line}
    assert required == {f"{r.distributions[0]}>={r.minimum}" for r in REQUIREMENTS}
    # Not on PyPI under its own name: an install would fail for everybody.
    assert not any("detectron2" in line for line in required)


def test_only_the_library_is_packaged(metadata, tmp_path):
    """Every file of igvg_d2 is installed, templates too, and no top-level "tests" beside it."""
    _, copy = metadata
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path)],
        cwd=copy,
        capture_output=True,
        check=True,
    )
    built = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    ours = {path.relative_to(copy) for path in copy.glob("igvg_d2/**/*") if path.is_file()}
    assert built == ours


def make(*arguments):
    """Output of a `make` call in the checkout, without the variables of an outer `make test`."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    inherited = ("MAKEFLAGS", "MAKELEVEL", "CONFIG", "OUTPUT", "DATASETS", "OPTS", "TESTS", "VENV")
    environment = {k: v for k, v in os.environ.items() if k not in inherited}
    run = subprocess.run(
        ["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return run.stdout


def test_plain_make_teaches():
    text = make()
    for word in ("make demo", "make test", "DETECTRON2=", "CONFIG=", "OPTS="):
        assert word in text


def test_demo_trains_with_resume_into_a_folder_named_after_the_config():
    text = make("-n", "demo")
    assert "train_net.py --resume --num-gpus" in text
    assert 'OUTPUT_DIR "output/shapes_tiny"' in text
    assert "tools/make_report.py" in text
    assert '--num-gpus "7"' in make("-n", "demo", "PROCESSES=7")
    text = make("-n", "demo", "CONFIG=configs/Shapes/igvg_tiny_long.yaml")
    assert 'OUTPUT_DIR "output/shapes_tiny_long"' in text


@pytest.mark.parametrize("name", [".ci/run", "dev/setup_env.sh", "dev/linter.sh"])
def test_scripts_are_executable_and_stop_at_the_first_failure(name):
    path = ROOT / name
    assert os.access(path, os.X_OK), f"git update-index --chmod=+x {name}"
    assert "set -euo pipefail" in path.read_text(encoding="utf-8")
