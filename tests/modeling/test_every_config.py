"""Every shipped config, scaled down: no parameter without a gradient, whatever the batch holds.

DDP runs without ``find_unused_parameters``: one parameter that a batch leaves out of the graph ends
a training run in several processes, or lets it hang.
"""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from igvg_d2.engine import setup_config
from igvg_d2.testing import assert_all_parameters_used, random_batch

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = [p for folder in ("configs", "projects") for p in sorted((ROOT / folder).rglob("*.yaml"))]
# Outside projects have keys of their own; tests/projects covers them.
OUTSIDE = {"example_extension", "ViLT", "pretrain_tiny.yaml"}
CONFIGS = [path for path in CONFIGS if not OUTSIDE & set(path.parts)]
# Widths and depths; which parts there are and how they are wired stays as configured.
SCALED = [
    *("MODEL.DEVICE", "cpu", "INPUT.IMAGE_SIZE", (64, 64)),
    *("MODEL.BEIT3.EMBED_DIM", 32, "MODEL.BEIT3.DEPTH", 2, "MODEL.BEIT3.NUM_HEADS", 2),
    *("MODEL.BEIT3.FFN_DIM", 48, "MODEL.BEIT3.VOCAB_SIZE", 64),
    *("MODEL.BEIT3.PRETRAIN_IMAGE_SIZE", (64, 64)),
    *("MODEL.IGVG.HIDDEN_DIM", 32, "MODEL.NECK.OUT_CHANNELS", [32] * 4),
    *("MODEL.PIXEL_DECODER.CONV_DIMS", [32] * 3),
    *("MODEL.QUERY_GENERATOR.NHEADS", 2),
    *("MODEL.GROUNDING_HEAD.NHEADS", 2, "MODEL.GROUNDING_HEAD.DIM_FEEDFORWARD", 32),
]


def test_all_kinds_of_configs_are_there():
    folders = {path.parent.name for path in CONFIGS}
    assert folders >= {"gRefCOCO", "Ref-ZOM", "R-RefCOCO", "RefCOCO", "Shapes"}
    assert folders >= {"modules", "query_generator", "decoder", "supervision"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_parameter_without_a_gradient(path):
    torch.manual_seed(0)
    model = build_model(setup_config(str(path), SCALED))
    keys = set()
    # Mixed, none with a target, one alone without, and more targets than some have queries.
    for counts in ([2, 0, 1], [0, 0], [0], [3]):
        batch = random_batch(counts)
        with EventStorage():
            losses = model(batch)
        assert_all_parameters_used(model, sum(losses.values()))
        assert all(p.grad.isfinite().all() for p in model.parameters()), counts
        keys.add(tuple(losses))
    assert len(keys) == 1, "the keys of the losses depend on the batch"
