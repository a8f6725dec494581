"""Pictures and the one-page report at the end of a run."""

import json
import os

from detectron2.config import CfgNode
from torch import nn

from .report import build_report
from .result_images import render_result_pictures


def write_report(cfg: CfgNode, model: nn.Module) -> str:
    """Render best and worst cases of the first test set, then ``report.html``.

    Args:
        cfg: config of the finished run; ``TEST.VIS_SAMPLES`` pictures are made.
        model: the trained model.

    Returns:
        path of the page in ``cfg.OUTPUT_DIR``.
    """
    dataset_name = cfg.DATASETS.TEST[0]
    path = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name, f"{dataset_name}_records.json")
    records = None
    if os.path.isfile(path):
        with open(path) as file:
            records = json.load(file)
    render_result_pictures(
        cfg,
        model,
        dataset_name,
        os.path.join(cfg.OUTPUT_DIR, "pictures", dataset_name),
        cfg.TEST.VIS_SAMPLES,
        records,
    )
    return build_report(cfg.OUTPUT_DIR)
