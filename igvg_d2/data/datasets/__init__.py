"""Readers of the benchmarks' official files; importing it registers the built-in data sets."""

from . import builtin
from .common import load_referring
from .expressions import load_expressions, register_expressions
from .files import read_refs
from .fingerprint import dataset_fingerprint, fingerprint
from .grefcoco import load_grefcoco
from .instances import InstanceFile
from .masks import to_rle
from .refcoco import load_refcoco
from .refzom import load_refzom
from .registration import load_dataset, register_grounding, set_skip_invalid
from .rrefcoco import load_rrefcoco
from .seqtr import load_seqtr
