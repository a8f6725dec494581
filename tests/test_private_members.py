"""What the library uses without a promise (Detectron2) or names (Shapes) is little, and listed."""

import ast
from pathlib import Path

import detectron2
import fvcore

from tests.test_architecture import PACKAGE, name_of, package_files, parse

# Private members of Detectron2 that are used, each in one place, and why.
PRIVATE_OF_DETECTRON2 = {
    "_trainer": "DefaultTrainer steps through it, and its __init__ gives GPU ids to DDP on CPUs",
    "_data_loader_iter": "SimpleTrainer makes its iterator when training begins, after seek()",
    "_write_metrics": "SimpleTrainer's public write_metrics has other arguments in 0.6 and 0.7",
    "_last_write": "TensorboardXWriter has no other way to begin after what is written already",
}


def private_names(folder):
    """Private functions and attributes that the classes of a package define."""
    names = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.update([node.attr] if getattr(node.value, "id", "") == "self" else [])
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def test_private_members_of_detectron2_are_few():
    theirs = private_names(Path(detectron2.__file__).parent)
    theirs |= private_names(Path(fvcore.__file__).parent)
    theirs -= private_names(PACKAGE) - PRIVATE_OF_DETECTRON2.keys()
    places = {}
    for path in package_files():
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Attribute) and node.attr in theirs:
                places.setdefault(node.attr, set()).add(name_of(path))
    assert places.keys() == PRIVATE_OF_DETECTRON2.keys(), places
    assert len(places) <= 4 and all(len(files) == 1 for files in places.values()), places


def test_shapes_is_named_as_data_and_tokenizer_only():
    found = {name_of(path) for path in package_files() if "Shapes" in path.read_text("utf-8")}
    known = {"igvg_d2/data/tokenizer.py", "igvg_d2/data/__init__.py", "igvg_d2/config.py"}
    assert {name for name in found if "/data/synthetic/" not in name} == known
