"""What pip and make are told: package metadata, and the commands behind `make`."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

import igvg_d2
from igvg_d2.requirements_check import REQUIREMENTS

ROOT = Path(__file__).resolve().parent.parent

# Arguments: the checkout, a folder for the result. Run on a copy, as it leaves egg-info behind.
BUILD_WHEEL = """
import os, sys, setuptools.build_meta as backend
os.chdir(sys.argv[1])
print("wheel:" + backend.build_wheel(sys.argv[2]))
"""
# Run in a folder that is not the checkout. Argument: an image.
ASK_THE_WHEEL = """
import sys, igvg_d2
from igvg_d2.inference import GroundingPredictor
predictor = GroundingPredictor.from_pretrained("shapes-tiny", device="cpu")
result = predictor(sys.argv[1], "all triangles")
print("answer:", igvg_d2.__file__, predictor.cfg.MODEL.WEIGHTS, len(result), sep="\\n")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The unpacked wheel as a user installs it, and the copy of the checkout that it is made of."""
    pytest.importorskip("setuptools.build_meta")
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("setup.py", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "igvg_d2", copy / "igvg_d2", ignore=ignored)
    (copy / "tests").mkdir()
    (copy / "tests" / "__init__.py").touch()
    out = tmp_path_factory.mktemp("wheel")
    run = subprocess.run(
        [sys.executable, "-c", BUILD_WHEEL, str(copy), str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("wheel:")]
    unpacked = tmp_path_factory.mktemp("site-packages")
    zipfile.ZipFile(out / line.partition(":")[2]).extractall(unpacked)
    return unpacked, copy


@pytest.fixture(scope="module")
def metadata(wheel):
    """Parsed METADATA of the package as pip sees it."""
    (path,) = wheel[0].glob("*.dist-info/METADATA")
    return Parser().parsestr(path.read_text(encoding="utf-8"))


def test_metadata(metadata):
    fields = metadata
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
    fields = metadata
    required = {line.lower() for line in fields.get_all("Requires-Dist") if "extra" not in line}
    assert required == {f"{r.distributions[0]}>={r.minimum}" for r in REQUIREMENTS}
    # Not on PyPI under its own name: an install would fail for everybody.
    assert not any("detectron2" in line for line in required)


def test_only_the_library_is_packaged(wheel):
    """Every file of igvg_d2 is installed, templates too, and no top-level "tests" beside it."""
    unpacked, copy = wheel
    files = (path.relative_to(unpacked) for path in unpacked.rglob("*") if path.is_file())
    built = {path for path in files if not path.parts[0].endswith(".dist-info")}
    assert built == {path.relative_to(copy) for path in copy.glob("igvg_d2/**/*") if path.is_file()}
    names = {path.as_posix() for path in built}
    assert "igvg_d2/configs/Shapes/igvg_tiny.yaml" in names
    assert "igvg_d2/weights/igvg_tiny_shapes.safetensors" in names


def test_the_wheel_answers_without_the_checkout(wheel, tmp_path):
    image = shutil.copy(ROOT / "demo/images/scene.jpg", tmp_path)
    run = subprocess.run(
        [sys.executable, "-c", ASK_THE_WHEEL, image],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(wheel[0]), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    module, weights, count = run.stdout.partition("answer:\n")[2].split()
    assert Path(module).is_relative_to(wheel[0]) and Path(weights).is_relative_to(wheel[0])
    assert count == "3"


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
