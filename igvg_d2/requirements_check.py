"""Names a missing or too old requirement in one line, before anything heavy is imported.

Only the standard library is used here: ``setup.py`` reads :data:`REQUIREMENTS` from this file, and
``python igvg_d2/requirements_check.py`` works in an empty environment.
"""

import importlib.metadata
import importlib.util
import os
import re
import sys
from typing import NamedTuple, Optional, Sequence, Tuple

MIN_PYTHON = "3.10"


class Requirement(NamedTuple):
    """A package: top-level module, lowest version, names in the registry (the first is ours)."""

    module: str
    minimum: str
    distributions: Tuple[str, ...]


# Detectron2 is not published on PyPI under its own name, so pip cannot install it as a dependency.
DETECTRON2 = Requirement("detectron2", "0.6", ("detectron2", "sal-detectron2"))
# The headless build needs no libGL, which servers lack; any flavour already there is accepted.
_OPENCV = tuple(f"opencv-{kind}" for kind in ("python-headless", "python", "contrib-python"))

# What igvg_d2 imports, itself or through Detectron2's engine.
REQUIREMENTS: Tuple[Requirement, ...] = (
    Requirement("torch", "2.3", ("torch",)),
    Requirement("torchvision", "0.18", ("torchvision",)),
    Requirement("numpy", "1.23", ("numpy",)),
    Requirement("scipy", "1.9", ("scipy",)),
    Requirement("PIL", "9.1", ("pillow",)),
    Requirement("cv2", "4.6", (*_OPENCV, "opencv-contrib-python-headless")),
    Requirement("matplotlib", "3.6", ("matplotlib",)),
    Requirement("jinja2", "3.0", ("jinja2",)),
    Requirement("pycocotools", "2.0.6", ("pycocotools",)),
    Requirement("fvcore", "0.1.5", ("fvcore",)),
    Requirement("transformers", "4.40", ("transformers",)),
    Requirement("huggingface_hub", "0.24", ("huggingface_hub",)),
    Requirement("sentencepiece", "0.1.99", ("sentencepiece",)),
    Requirement("safetensors", "0.4", ("safetensors",)),
    Requirement("tensorboard", "2.11", ("tensorboard",)),
)


class RequirementsError(ImportError):
    """A package the project needs is missing or too old; the message says what to run."""


def parse_version(text: str) -> Tuple[int, ...]:
    """Leading numbers: (2, 14, 1) of "2.14.1+cu130"; () without any number."""
    match = re.match(r"\s*v?(\d+(?:\.\d+)*)", text)
    return tuple(int(part) for part in match.group(1).split(".")) if match else ()


def find_version(requirement: Requirement) -> Optional[str]:
    """Installed version, without an import; "" when nothing tells it, None when it is absent."""
    spec = importlib.util.find_spec(requirement.module)
    # A folder without __init__.py (for instance a left-over of an uninstall) is not the package.
    if spec is None or spec.origin is None:
        return None
    for distribution in requirement.distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def check_requirements(requirements: Sequence[Requirement] = (*REQUIREMENTS, DETECTRON2)) -> None:
    """Stop with one clear line when this environment cannot run the project.

    ``import igvg_d2`` calls it first. It reads package metadata only: a few milliseconds.

    Raises:
        RequirementsError: naming each failing piece. Shown without traceback if nobody catches it.
    """
    found = {r: find_version(r) for r in requirements}
    facts, commands, missing = [], [], []
    if sys.version_info < parse_version(MIN_PYTHON):
        facts.append(f"Python (found {sys.version.split()[0]}, needed >= {MIN_PYTHON})")
        commands.append("make env PYTHON=<path of a newer python3> VENV=<new folder>")
    for requirement, version in found.items():
        if version is None or () < parse_version(version) < parse_version(requirement.minimum):
            name, minimum = requirement.distributions[0], requirement.minimum
            facts.append(f"{name} (found {version or 'nothing'}, needed >= {minimum})")
            missing.append(f'"{name}>={minimum}"' if requirement != DETECTRON2 else "")
        elif requirement == DETECTRON2 and not _is_new_detectron2():
            facts.append("detectron2 (found its release of 2021, needed: a newer one)")
            missing.append("")
    if any(missing):
        commands.append(f"pip install {' '.join(filter(None, missing))}")
    if "" in missing:
        commands.append("make env (or see INSTALL.md to add it to an environment of your own)")
    if facts:
        _stop(f"igvg_d2 cannot run: {'; '.join(facts)}. Run: {' and then: '.join(commands)}")


def _is_new_detectron2() -> bool:
    """Whether it is newer than its last release: the sources still call themselves 0.6."""
    package = os.path.dirname(importlib.util.find_spec("detectron2").origin)
    with open(os.path.join(package, "utils", "events.py"), encoding="utf-8") as file:
        return "def has_event_storage" in file.read()


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
