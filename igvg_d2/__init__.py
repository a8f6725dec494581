"""Instance-aware generalized visual grounding (IGVG) as a Detectron2 extension.

Importing the package registers its data sets and models with Detectron2. Nothing is read from disk
or downloaded by that.
"""

from .requirements_check import check_requirements

# Before anything imports torch or detectron2: a missing piece is then named in one line.
check_requirements()

from . import data, modeling  # noqa: E402  (register data sets and models)
from .config import add_igvg_config  # noqa: E402
from .io import hub  # noqa: E402, F401  (hf:// addresses for PathManager)
from .io.terminal import escape_messages  # noqa: E402

escape_messages()

__version__ = "0.1.0"

__all__ = ["add_igvg_config", "data", "modeling"]
