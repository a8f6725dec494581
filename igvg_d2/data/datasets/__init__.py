"""Readers of the benchmarks' official files; importing it registers the built-in data sets."""

from . import builtin
from .benchmarks import ROW_RULES, load_reviewed, load_rows
from .coco_expressions import load_expressions, register_expressions
from .fingerprint import fingerprint
from .instances import InstanceFile
from .referring import TARGET_RULES, load_referring
from .registration import load_dataset, register_grounding, set_skip_invalid
from .seqtr import load_seqtr

# Name of earlier versions; the rule of gRefCOCO is the default.
load_grefcoco = load_referring
