"""What the documents name exists: files, links, options of scripts, config keys, imports."""

import importlib
import re
from itertools import product
from pathlib import Path

import detectron2
import pytest
from detectron2.config import CfgNode, get_cfg

from igvg_d2 import add_igvg_config

ROOT = Path(__file__).resolve().parent.parent
# Folders that a checkout may hold beside its own files.
NOT_OURS = {".git", ".venv", ".pytest_cache", "output", "build"}
FOLDERS = "igvg_d2|configs|datasets|demo|dev|docs|projects|tests|tools"
# Names of files that a document tells to write, to download, or that a run writes.
ELSEWHERE = {
    "config.yaml", "my.yaml", "train.json", "val.json", "my/train.json",
    "my/val.json", "instance.json", "instance_index.json",
    "metrics.json", "metrics.json.previous", "run_summary.json", "statistics.json", "17.jpg",
    "instances_nogoogle_withid.json", "instances_nogoogle.json", "instances.json", "report.html",
    "output/my/finetune.yaml", "P.json", "T.json", "image.jpg", "grefs.json",
}  # fmt: skip
GENERATED = ("datasets/shapes", "output/")
# Detectron2's own options and those of torchrun, srun and pip are not ours to check.
SCRIPT = r"python(?: -m pytest)? ([\w./-]+\.py)"
KEY = r"\b(?:QG|GH|GL|[A-Z][A-Z0-9_]+)(?:\.[A-Z0-9_]+)*\.[A-Z0-9_]+\*?(?![\w.])"
SHORT = {
    "QG": "MODEL.QUERY_GENERATOR",
    "GH": "MODEL.GROUNDING_HEAD",
    "GL": "MODEL.GLOBAL_HEAD",
}


def ours(path):
    """Whether a file belongs to the repository, not to its environment, runs or data."""
    parts = path.relative_to(ROOT).parts
    in_data = len(parts) > 2 and parts[0] == "datasets"
    return not in_data and not NOT_OURS.intersection(parts)


FILES = [path for path in ROOT.rglob("*") if ours(path) and path.is_file()]
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]
DOCUMENTS = sorted(name for name in NAMES if name.endswith(".md"))
# Documents, docstrings, heads of configs and scripts refer to files by their paths.
PROSE = sorted(
    name
    for name in NAMES
    if name.endswith((".md", ".yaml", ".sh"))
    or name in ("Makefile", ".ci/run")
    or (name.endswith(".py") and not name.startswith("tests/"))
)


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def expand(path):
    """Glob patterns of "a/{b,c}" and "a/<name>.py"."""
    parts = re.split(r"\{([^{}]*)\}", re.sub(r"<[^<>]*>", "*", path))
    choices = [part.split(",") if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(choice) for choice in product(*choices)]


@pytest.mark.parametrize("name", PROSE)
def test_paths_from_the_root_exist(name):
    """In documents also folders, and paths from the document's own folder."""
    pattern = rf"(?<![\w./-])(?:{FOLDERS})/[\w./{{}},*<>+-]+"
    if not name.endswith(".md"):  # code joins paths, only whole names are checked there
        pattern = rf"(?<![\w./-])(?:{FOLDERS})/[\w./+-]+\.(?:py|md|sh|yaml|jpg|safetensors)\b"
    found = {path.rstrip(".,:;/") for path in re.findall(pattern, read(name))}
    folders = (ROOT, (ROOT / name).parent)
    lost = [
        path
        for path in found
        if not path.startswith(GENERATED)
        and not all(any(any(folder.glob(one)) for folder in folders) for one in expand(path))
    ]
    assert lost == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    for link, anchor in re.findall(r"\]\((?!https?://)([^)#\s]*)(#[^)\s]*)?\)", read(name)):
        target = (ROOT / name).parent / link if link else ROOT / name
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.M) if anchor else []
        slugs = [re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in headings]
        assert not anchor or anchor[1:] in slugs, link + anchor


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_in_code_spans_exist(name):
    """Also by the end of their path: "modeling/test_parts.py", "frames.py" after its folder."""
    spans = re.findall(r"`([\w./+-]+\.(?:py|sh|yaml|json|jpg|md))`", read(name))
    lost = {
        span
        for span in spans
        if span not in ELSEWHERE and not any(f"/{path}".endswith(f"/{span}") for path in NAMES)
    }
    assert lost == set()


def options_of(script):
    """Source text that defines the options of ``script``."""
    engine = [read(name) for name in NAMES if name.startswith("igvg_d2/engine/")]
    detectron2_defaults = Path(detectron2.__file__).parent / "engine/defaults.py"
    return "\n".join([read(script), *engine, detectron2_defaults.read_text()])


@pytest.mark.parametrize("name", [*DOCUMENTS, "Makefile", ".ci/run"])
def test_commands_name_options_that_exist(name):
    text = re.sub(r"\\\n\s*", " ", read(name))
    for command in re.findall(SCRIPT + r"([^\n`]*)", text):
        script, arguments = command
        if script.endswith("run_script.py"):  # passes its arguments on
            script = arguments.split()[0]
        options = re.findall(r"(?<![\w-])--[a-z][\w-]*", arguments.partition("#")[0])
        source = options_of(script)
        for option in set(options) - {"--help"}:
            assert f'"{option}"' in source, f"{script} has no option {option}"


def config_keys(node, prefix=""):
    """Full names of all keys and nodes of a config."""
    names = set()
    for key, value in node.items():
        names.add(prefix + key)
        if isinstance(value, CfgNode):
            names |= config_keys(value, f"{prefix}{key}.")
    return names


@pytest.mark.parametrize("name", DOCUMENTS)
def test_config_keys_exist(name):
    cfg = get_cfg()
    add_igvg_config(cfg)
    keys = config_keys(cfg)
    nodes = {key.partition(".")[0] for key in keys} | set(SHORT)
    for key in re.findall(KEY, read(name)):
        node, _, rest = key.partition(".")
        if node in nodes:
            full = f"{SHORT.get(node, node)}.{rest}"
            known = [k for k in keys if k == full or (full[-1] == "*" and k.startswith(full[:-1]))]
            assert known, key


@pytest.mark.parametrize("name", DOCUMENTS)
def test_targets_of_make_exist(name):
    targets = set(re.findall(r"^([\w-]+):", read("Makefile"), re.M))
    assert set(re.findall(r"(?:`|^)make ([a-z][\w-]*)", read(name), re.M)) <= targets


@pytest.mark.parametrize("name", DOCUMENTS)
def test_imports_from_the_library_work(name):
    for module, names in re.findall(r"from (igvg_d2[\w.]*) import ([\w, ]+)", read(name)):
        for attribute in names.split(","):
            assert hasattr(importlib.import_module(module), attribute.strip()), (module, attribute)
    for dotted in re.findall(r"`(igvg_d2(?:\.\w+)+)\b", read(name)):
        module, _, attribute = dotted.rpartition(".")
        try:
            importlib.import_module(dotted)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(module), attribute), dotted
