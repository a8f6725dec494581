"""dev/estimate_memory.py: what it counts."""

import importlib.util
import re
from pathlib import Path

import pytest

from igvg_d2.testing import tiny_cfg

ROOT = Path(__file__).resolve().parents[2]
PRESET = ROOT / "configs" / "gRefCOCO" / "igvg_beit3_base_320_24gb.yaml"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("estimate", ROOT / "dev" / "estimate_memory.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_parts_are_those_of_the_options(script):
    opts = ["SOLVER.IMS_PER_BATCH", 8, "MODEL.BEIT3.DEPTH", 6]
    whole = script.estimate(tiny_cfg(opts))
    assert whole["total"] == pytest.approx(sum(whole.values()) - whole["total"])
    # Buffers are weights, and have no gradient.
    assert whole["gradients"] <= whole["weights"] < 1.1 * whole["gradients"]
    assert whole["optimizer"] == pytest.approx(2 * whole["gradients"])
    amsgrad = script.estimate(tiny_cfg([*opts, "SOLVER.AMSGRAD", True]))
    assert amsgrad["optimizer"] == pytest.approx(3 * whole["gradients"])
    recomputed = script.estimate(tiny_cfg([*opts, "MODEL.BEIT3.CHECKPOINTING", True]))
    assert recomputed["activations"] < whole["activations"]
    halves = script.estimate(tiny_cfg([*opts, "SOLVER.ACCUMULATION_STEPS", 2]))
    assert halves["activations"] < 0.7 * whole["activations"]


def test_the_preset_says_what_is_counted(script):
    """The header's number is the script's, and leaves a quarter of the 24 GB for what is not."""
    header = PRESET.read_text().split("_BASE_")[0]
    stated = float(re.search(r"([\d.]+) GiB", header)[1])
    cfg = script.setup_config(str(PRESET))
    cfg.MODEL.DEVICE = "cpu"
    found = script.estimate(cfg)["total"]
    assert found == pytest.approx(stated, abs=0.1) and found < 0.75 * 24e9 / 2**30
