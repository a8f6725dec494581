"""`make docs`: the documents and docstrings become pages without a warning, offline."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {path.parent.name for path in ROOT.glob("igvg_d2/*/__init__.py")}


def test_every_room_of_the_library_has_a_page():
    pages = {path.stem for path in ROOT.glob("docs/api/*.md")}
    assert pages == ROOMS | {"package"}
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^api/(\w+)$", index, re.MULTILINE)) == pages


def test_every_document_has_a_place_in_the_index():
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    listed = {f"{name}.md" for name in re.findall(r"^\.\./([\w/-]+)$", index, re.MULTILINE)}
    folders = (".", "datasets", "dev", "projects/*", "projects/*/*")
    ours = {path for folder in folders for path in ROOT.glob(f"{folder}/*.md")}
    assert listed == {path.relative_to(ROOT).as_posix() for path in ours}


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("sphinx", "myst_parser")),
    reason="Sphinx is not installed: make docs installs it and builds the pages",
)
def test_the_pages_are_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs"]
    pages, trees = tmp_path / "pages", tmp_path / "trees"
    run = subprocess.run(
        [*command, "-d", str(trees), ".", str(pages)], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "url=docs/index.html" in (pages / "index.html").read_text(encoding="utf-8")
    front = (pages / "docs/index.html").read_text(encoding="utf-8")
    assert 'href="../README.html"' in front
    modeling = (pages / "docs/api/modeling.html").read_text(encoding="utf-8")
    assert "igvg_d2.modeling.meta_arch.igvg.IGVG.forward" in modeling
    assert "RankedOutput" in (pages / "docs/api/inference.html").read_text(encoding="utf-8")
    walk = (pages / "docs/walkthrough.html").read_text(encoding="utf-8")
    assert walk.count("data:image/png") >= 6 and "CountingHead" in walk
    # What a browser would load by itself.
    loaded = re.findall(r"""(?:src=|<link[^>]*stylesheet[^>]*href=)["']([^"']+)""", front)
    assert loaded and not [address for address in loaded if address.startswith(("http", "//"))]
