"""House rules a reviewer should not have to check by eye: imports, sizes, forbidden calls."""

import ast
import io
import sys
import tokenize
from pathlib import Path

import pytest

from igvg_d2.requirements_check import REQUIREMENTS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "igvg_d2"
SCRIPT_FOLDERS = ("tools", "demo", "dev", "datasets", "projects")

MAX_FILE_LINES = 350
MAX_FUNCTION_CODE_LINES = 60
MAX_TRAIN_NET_LINES = 90

# Folders that only engine/ may join.
ROOMS = ("data", "modeling", "evaluation", "solver", "checkpoint")
COMPONENTS = set("backbone neck pixel_decoder query_generator grounding_head global_head".split())
# tabulate and yaml come with Detectron2.
EXTERNAL = {"detectron2", "tabulate", "yaml", *(requirement.module for requirement in REQUIREMENTS)}
# pkg_resources and downloads at import.
FORBIDDEN_MODULES = ("detectron2.model_zoo", "detectron2.utils.testing")
# Outside the library: they import it, never the reverse.
OUTSIDE = {"projects", "tools", "tests", "demo", "datasets", "configs", "dev", "train_net"}


def package_files():
    """Every Python file of the library."""
    return sorted(PACKAGE.rglob("*.py"))


def project_files():
    """Every Python file of the project: library, scripts, tests."""
    files = package_files() + sorted((ROOT / "tests").rglob("*.py")) + sorted(ROOT.glob("*.py"))
    for folder in SCRIPT_FOLDERS:
        found = sorted((ROOT / folder).rglob("*.py"))
        if folder == "datasets":  # downloaded or generated sets lie in its sub-folders
            found = [path for path in found if path.parent == ROOT / folder]
        files += found
    return files


def name_of(path):
    """Path relative to the root, for messages and test ids."""
    return path.relative_to(ROOT).as_posix()


def parse(path):
    """AST of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def module_parts(path):
    """("igvg_d2", "data", "datasets", "builtin") for igvg_d2/data/datasets/builtin.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def imported_modules(tree, path, top_level_only=False):
    """Absolute dotted names a file imports, one per imported name.

    ``from ..neck import build_neck`` gives "igvg_d2.modeling.neck.build_neck": the last part may be
    a module or an object, which the rules below do not need to tell apart.
    """
    package = module_parts(path) if path.name == "__init__.py" else module_parts(path)[:-1]
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*parent, *(node.module.split(".") if node.module else ())))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def inside(module, prefix):
    """Whether a dotted name is the prefix or lies below it."""
    return module == prefix or module.startswith(prefix + ".")


def imports_of_package():
    """(file name, path, imported module) of the whole library."""
    for path in package_files():
        for module in imported_modules(parse(path), path):
            yield name_of(path), path, module


def test_rooms_do_not_import_each_other():
    wrong = [
        f"{name} imports {module}"
        for name, path, module in imports_of_package()
        for room in ROOMS
        for other in (*ROOMS, "engine")
        if other != room
        and inside(".".join(module_parts(path)), f"igvg_d2.{room}")
        and inside(module, f"igvg_d2.{other}")
    ]
    assert not wrong, "only engine/ joins the rooms: " + "; ".join(wrong)


def test_config_io_and_visualizer_stand_below_the_rooms():
    config = PACKAGE / "config.py"
    below = {config, *(PACKAGE / "io").glob("*.py"), *(PACKAGE / "visualization").glob("*.py")}
    # It feeds a model with samples of a data set.
    below.remove(PACKAGE / "visualization" / "result_images.py")
    wrong = [
        f"{name} imports {module}"
        for name, path, module in imports_of_package()
        for other in (*ROOMS, "engine")
        # Drawn answers are judged by the benchmark's rules, pure functions.
        if not inside(module, "igvg_d2.evaluation.metrics")
        if path in below and inside(module, f"igvg_d2.{other}")
    ]
    wrong += [
        f"{config.name} imports {module}"
        for module in imported_modules(parse(config), config)
        if not inside(module, "detectron2.config")
    ]
    assert not wrong, "; ".join(wrong)


def test_visualizer_is_imported_where_it_is_used():
    """matplotlib is slow to import and needed only when an image is drawn."""
    wrong = [
        name_of(path)
        for room in ROOMS
        for path in sorted((PACKAGE / room).rglob("*.py"))
        for module in imported_modules(parse(path), path, top_level_only=True)
        if inside(module, "igvg_d2.visualization.visualizer") or inside(module, "matplotlib")
    ]
    assert not wrong, f"import the visualizer inside the function that draws: {wrong}"


def modeling_part(parts):
    """Name below igvg_d2.modeling of a dotted module, or None."""
    return parts[2] if len(parts) > 2 and tuple(parts[:2]) == ("igvg_d2", "modeling") else None


def test_components_do_not_import_each_other():
    """Shared parts <- components <- meta_arch; a component's contract stands in its build.py."""
    wrong = []
    for name, path, module in imports_of_package():
        here, there = modeling_part(module_parts(path)), modeling_part(module.split("."))
        if here in (None, "meta_arch") or there in (None, here):
            continue
        is_contract = module.split(".")[3:4] == ["build"]
        if there == "meta_arch" or (there in COMPONENTS and not is_contract):
            wrong.append(f"{name} imports {module}")
    assert not wrong, "components meet in meta_arch/: " + "; ".join(wrong)


def test_library_does_not_import_what_is_built_on_it():
    wrong = [
        f"{name} imports {module}"
        for name, _, module in imports_of_package()
        if module.split(".")[0] in OUTSIDE or any(inside(module, m) for m in FORBIDDEN_MODULES)
    ]
    assert not wrong, "; ".join(wrong)


def test_external_packages_are_the_agreed_ones():
    wrong = [
        f"{name} imports {module}"
        for name, _, module in imports_of_package()
        if module.split(".")[0] not in EXTERNAL | {"igvg_d2"} | set(sys.stdlib_module_names)
    ]
    assert not wrong, "; ".join(wrong)


@pytest.mark.parametrize(
    "pattern, allowed",
    [
        ("evaluation/metrics.py", {"numpy", "pycocotools"}),
        ("io/atomic.py", set()),
        ("io/json_stream.py", set()),
        ("data/datasets/pickles.py", set()),
        ("io/rle.py", {"numpy", "pycocotools"}),
        ("data/synthetic/*.py", {"numpy", "PIL", "igvg_d2", "pycocotools"}),
        ("checkpoint/*_conversion.py", {"torch", "igvg_d2"}),
    ],
)
def test_pure_files_stay_pure(pattern, allowed):
    """They are used and tested without the rest: numpy, PIL or torch only."""
    for path in PACKAGE.glob(pattern):
        for module in imported_modules(parse(path), path):
            top = module.split(".")[0]
            sibling = inside(module, ".".join(module_parts(path)[:-1]))
            sibling = sibling or inside(module, "igvg_d2.io")
            is_fine = sibling if top == "igvg_d2" else top in allowed | set(sys.stdlib_module_names)
            assert is_fine, f"{name_of(path)} imports {module}; allowed: {sorted(allowed)}"


def reads_of_cfg(tree):
    """(line, function name) of every ``cfg.<KEY>``, with the function it stands in."""

    def visit(node, function):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            function = node.name
        is_read = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if is_read and node.value.id == "cfg" and node.attr.isupper():
            yield node.lineno, function
        for child in ast.iter_child_nodes(node):
            yield from visit(child, function)

    return visit(tree, "")


def test_only_builders_read_cfg():
    """A class that reads cfg itself cannot be built in a test: only from_config and build_* do."""
    wrong = [
        f"{name_of(path)}:{line} in {function or 'module'}"
        for room in ROOMS
        for path in sorted((PACKAGE / room).rglob("*.py"))
        for line, function in reads_of_cfg(parse(path))
        if not (function.lstrip("_").startswith("build_") or function.endswith("from_config"))
    ]
    assert not wrong, "cfg is read outside from_config and build_*: " + "; ".join(wrong)


def test_only_data_sets_and_launch_read_the_environment():
    allowed = (PACKAGE / "data" / "datasets" / "builtin.py", PACKAGE / "engine" / "launch.py")
    wrong = [
        f"{name_of(path)}:{node.lineno}"
        for path in package_files()
        if path not in allowed
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    ]
    assert not wrong, f"pass the value as an argument or a config key: {wrong}"


def calls(tree):
    """(line, name) of every call: "print" for print(...), ".cuda" for x.cuda(...)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield node.lineno, node.func.id
            elif isinstance(node.func, ast.Attribute):
                yield node.lineno, f".{node.func.attr}"


def test_no_print_no_cuda_no_bare_except():
    wrong = []
    for path in package_files():
        tree = parse(path)
        wrong += [
            f"{name_of(path)}:{line} {name}()"
            for line, name in calls(tree)
            if name in ("print", ".cuda")
        ]
        wrong += [
            f"{name_of(path)}:{node.lineno} bare except"
            for node in ast.walk(tree)
            if isinstance(node, ast.ExceptHandler) and node.type is None
        ]
    assert not wrong, "use logging, x.device, a named exception: " + "; ".join(wrong)


def test_no_unfinished_notes():
    words = ("TO" + "DO", "FIX" + "ME")
    wrong = [
        f"{name_of(path)}:{number}"
        for path in project_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if any(word in line for word in words)
    ]
    assert not wrong, f"file an issue instead: {wrong}"


@pytest.mark.parametrize("path", project_files(), ids=name_of)
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    limit = MAX_TRAIN_NET_LINES if path == ROOT / "train_net.py" else MAX_FILE_LINES
    size = len(text.splitlines())
    assert size <= limit, f"{size} lines, at most {limit}: is there a second room in it?"
    for line, name, length in function_lengths(text):
        where = f"{name_of(path)}:{line} {name}"
        assert length <= MAX_FUNCTION_CODE_LINES, f"{where} has {length} code lines"


def function_lengths(text):
    """(line, name, code lines) of every function, without docstring, comments, blank lines."""
    layout = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    code_lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in layout:
            code_lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = set(range(node.lineno, node.end_lineno + 1)) & code_lines
            if ast.get_docstring(node) is not None:
                docstring = node.body[0]
                lines -= set(range(docstring.lineno, docstring.end_lineno + 1))
            yield node.lineno, node.name, len(lines)


def test_public_names_have_docstrings():
    wrong = []
    for path in package_files():
        tree = parse(path)
        if ast.get_docstring(tree) is None:
            wrong.append(f"{name_of(path)} (module)")
        public = [
            node
            for node in tree.body
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
        ]
        forwards = [
            method
            for node in public
            if isinstance(node, ast.ClassDef)
            for method in node.body
            if isinstance(method, ast.FunctionDef) and method.name == "forward"
        ]
        wrong += [
            f"{name_of(path)}:{node.lineno} {node.name}"
            for node in public + forwards
            if ast.get_docstring(node) is None
        ]
    assert not wrong, "docstring missing: " + "; ".join(wrong)


def test_every_registry_says_what_it_registers():
    wrong = []
    for path in package_files():
        tree = parse(path)
        created = {
            node.targets[0].id
            for node in tree.body
            if isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Call)
            and getattr(node.value.func, "id", "") == "Registry"
        }
        documented = {
            node.targets[0].value.id
            for node in tree.body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Attribute)
            and node.targets[0].attr == "__doc__"
        }
        wrong += [f"{name_of(path)} {registry}" for registry in created - documented]
    assert not wrong, f"set REGISTRY.__doc__ to the call signature it expects: {wrong}"
