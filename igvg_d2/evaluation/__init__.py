"""Evaluators of the grounding benchmarks and the metrics they are made of."""

from .build import GROUNDING_EVALUATOR_REGISTRY, build_grounding_evaluator
from .calibration import Calibration, check_threshold, read_calibration
from .frames import GroundTruth
from .grefcoco_evaluation import GRefCOCOEvaluator
from .grounding_evaluation import GroundingEvaluator
from .no_target_evaluation import RefZOMEvaluator, RRefCOCOEvaluator
from .openref_evaluation import OpenRefEvaluator
from .protocols import PROTOCOLS, Protocol, parse_protocols
from .ref_l4_evaluation import RefL4Evaluator
from .refcoco_evaluation import RefCOCOEvaluator
from .reporting import merge_records
