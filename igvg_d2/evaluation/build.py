"""Registry of the evaluators and the choice of one by a data set's metadata."""

import os
from typing import Optional

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils.registry import Registry

GROUNDING_EVALUATOR_REGISTRY = Registry("GROUNDING_EVALUATOR")
GROUNDING_EVALUATOR_REGISTRY.__doc__ = """
Registry of evaluators. A registered class is called as
`cls(cfg, dataset_name, output_folder)` (through its `from_config`) and returns a
:class:`detectron2.evaluation.DatasetEvaluator`. A data set selects it by metadata
`evaluator_type`: a benchmark name of the table below or the name of a registered class.
"""

# Metadata value -> registered class. An outside project needs no entry here: it sets
# `evaluator_type` to the name of its own class.
_EVALUATOR_TYPES = {
    "grefcoco": "GRefCOCOEvaluator",
    "refcoco": "RefCOCOEvaluator",
    "refzom": "RefZOMEvaluator",
    "rrefcoco": "RRefCOCOEvaluator",
    "ref_l4": "RefL4Evaluator",
    "openref": "OpenRefEvaluator",
}


def build_grounding_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: Optional[str] = None
) -> DatasetEvaluator:
    """Build the evaluator named by the metadata `evaluator_type` of a data set.

    Args:
        cfg: the full config; `OUTPUT_DIR` is read when `output_folder` is None.
        dataset_name: name in DatasetCatalog.
        output_folder: where result files go; default `OUTPUT_DIR/inference`.
    """
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type", None)
    name = _EVALUATOR_TYPES.get(evaluator_type, evaluator_type)
    if name is None or name not in GROUNDING_EVALUATOR_REGISTRY:
        raise ValueError(
            f"metadata 'evaluator_type' of data set '{dataset_name}': expected one of "
            f"{sorted(_EVALUATOR_TYPES)} or the name of a class in GROUNDING_EVALUATOR_REGISTRY, "
            f"found {evaluator_type!r}; set it at registration"
        )
    if output_folder is None:
        output_folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    return GROUNDING_EVALUATOR_REGISTRY.get(name)(cfg, dataset_name, output_folder)
