"""Names a missing or too old requirement in one line, before anything heavy is imported.

Only the standard library is used here: ``setup.py`` reads :data:`REQUIREMENTS` from this file, so
the lower bounds are written once, and ``python igvg_d2/requirements_check.py`` works in an empty
environment.
"""

import importlib.metadata
import importlib.util
import re
import sys
from typing import List, NamedTuple, Optional, Sequence, Tuple

MIN_PYTHON = "3.10"


class Requirement(NamedTuple):
    """One importable package the project needs.

    Attributes:
        module: top-level module name; decides whether the package is there.
        minimum: lowest version the project works with.
        distributions: registry names that provide the module; the first is what we would install.
        command: how to install it when ``pip install "<name>>=<minimum>"`` is not the answer.
    """

    module: str
    minimum: str
    distributions: Tuple[str, ...]
    command: str = ""


# Detectron2 is not published on PyPI under its own name, so pip cannot install it as a dependency.
DETECTRON2 = Requirement(
    "detectron2",
    "0.6",
    ("detectron2", "sal-detectron2"),
    "make env (or see INSTALL.md to add it to an environment of your own)",
)

# What igvg_d2 imports, itself or through Detectron2's engine.
REQUIREMENTS: Tuple[Requirement, ...] = (
    Requirement("torch", "2.0", ("torch",)),
    Requirement("torchvision", "0.15", ("torchvision",)),
    Requirement("numpy", "1.23", ("numpy",)),
    Requirement("scipy", "1.9", ("scipy",)),
    Requirement("PIL", "9.1", ("pillow",)),
    # The headless build needs no libGL, which servers lack; any flavour already there is accepted.
    Requirement(
        "cv2",
        "4.6",
        (
            "opencv-python-headless",
            "opencv-python",
            "opencv-contrib-python",
            "opencv-contrib-python-headless",
        ),
    ),
    Requirement("matplotlib", "3.6", ("matplotlib",)),
    Requirement("pycocotools", "2.0.6", ("pycocotools",)),
    Requirement("fvcore", "0.1.5", ("fvcore",)),
    Requirement("transformers", "4.40", ("transformers",)),
    Requirement("sentencepiece", "0.1.99", ("sentencepiece",)),
    Requirement("safetensors", "0.4", ("safetensors",)),
    Requirement("tensorboard", "2.11", ("tensorboard",)),
)


class RequirementsError(ImportError):
    """A package the project needs is missing or too old; the message says what to run."""


def parse_version(text: str) -> Tuple[int, ...]:
    """Leading numbers of a version string, for comparison.

    Args:
        text: for example "2.14.1+cu130" or "0.1.5.post2022".

    Returns:
        (2, 14, 1) and (0, 1, 5) for the examples: suffixes do not count. () without any number.
    """
    match = re.match(r"\s*v?(\d+(?:\.\d+)*)", text)
    return tuple(int(part) for part in match.group(1).split(".")) if match else ()


def find_version(requirement: Requirement) -> Optional[str]:
    """Installed version of a requirement, found without importing it.

    Returns:
        The version; "" when the module is there but nothing tells its version (a source checkout
        on ``sys.path``); None when the module is absent.
    """
    spec = importlib.util.find_spec(requirement.module)
    # A folder without __init__.py (for instance a left-over of an uninstall) is not the package.
    if spec is None or spec.origin is None:
        return None
    for distribution in requirement.distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return _version_in_source(spec.origin)


def _version_in_source(path: str) -> str:
    """``__version__ = "..."`` of a Python file, or "" when it has none."""
    if not path.endswith(".py"):
        return ""
    with open(path, encoding="utf-8") as source:
        match = re.search(r"^__version__\s*=\s*[\"']([^\"']+)", source.read(), flags=re.MULTILINE)
    return match.group(1) if match else ""


def find_problems(requirements: Sequence[Requirement]) -> List[Tuple[Requirement, str]]:
    """Requirements that are absent or too old.

    Args:
        requirements: what to look for, in the order in which to report.

    Returns:
        (requirement, found) for each one that fails; found is "nothing" or the installed version.
    """
    problems = []
    for requirement in requirements:
        found = find_version(requirement)
        if found is None:
            problems.append((requirement, "nothing"))
        elif parse_version(found) and parse_version(found) < parse_version(requirement.minimum):
            problems.append((requirement, found))
    return problems


def describe_problems(problems: Sequence[Tuple[Requirement, str]]) -> str:
    """One line for the user: what, found, needed, and the command to run.

    Args:
        problems: at least one item as :func:`find_problems` returns them.
    """
    facts = "; ".join(
        f"{requirement.distributions[0]} (found {found}, needed >= {requirement.minimum})"
        for requirement, found in problems
    )
    from_registry = [
        f'"{requirement.distributions[0]}>={requirement.minimum}"'
        for requirement, _ in problems
        if not requirement.command
    ]
    commands = [f"pip install {' '.join(from_registry)}"] if from_registry else []
    commands += [requirement.command for requirement, _ in problems if requirement.command]
    return f"igvg_d2 cannot run: {facts}. Run: {' and then: '.join(commands)}"


def check_requirements(requirements: Optional[Sequence[Requirement]] = None) -> None:
    """Stop with one clear line when this environment cannot run the project.

    ``import igvg_d2`` calls it first, so a script needs no call of its own if that import comes
    before those of torch and detectron2. Takes a few milliseconds: it reads package metadata only.

    Args:
        requirements: what to look for; default everything the project needs.

    Raises:
        RequirementsError: naming each failing piece. Shown without traceback if nobody catches it.
    """
    if sys.version_info < parse_version(MIN_PYTHON):
        found = ".".join(str(number) for number in sys.version_info[:3])
        message = f"igvg_d2 cannot run: Python (found {found}, needed >= {MIN_PYTHON})."
        _stop(f"{message} Run: make env PYTHON=<path of a newer python3> VENV=<new folder>")
    problems = find_problems((*REQUIREMENTS, DETECTRON2) if requirements is None else requirements)
    if problems:
        _stop(describe_problems(problems))


def _stop(message: str) -> None:
    """Raise RequirementsError such that an uncaught one prints its message only."""
    previous_hook = sys.excepthook

    def show(kind, error, trace):
        # A traceback would bury the one line the user needs; other errors keep theirs.
        if issubclass(kind, RequirementsError):
            sys.stderr.write(f"{error}\n")
        else:
            previous_hook(kind, error, trace)

    sys.excepthook = show
    raise RequirementsError(message)


if __name__ == "__main__":
    check_requirements()
    sys.stdout.write("igvg_d2: every requirement is installed.\n")
