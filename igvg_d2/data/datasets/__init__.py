"""Readers of the benchmarks' official files; importing it registers the built-in data sets."""

from . import builtin
from .common import load_referring, register_grounding
from .expressions import load_expressions, register_expressions
from .files import read_refs
from .fingerprint import dataset_fingerprint, fingerprint
from .grefcoco import load_grefcoco
from .instances import InstanceFile, to_rle
from .refcoco import load_refcoco
from .refzom import load_refzom
from .rrefcoco import load_rrefcoco
