"""dev/measure_cost.py: its arithmetic, and that docs/cost.md says what docs/cost.json has."""

import json
import re
import sys

import pytest
from PIL import Image

from tests.scripts import ROOT, load_script


@pytest.fixture(scope="module")
def script():
    return load_script("dev/measure_cost.py")


@pytest.fixture(scope="module")
def cost_tables(script):
    """What the script imports from its own folder."""
    return sys.modules["cost_tables"]


@pytest.fixture(scope="module")
def content():
    return json.loads((ROOT / "docs/cost.json").read_text(encoding="utf-8"))


def test_the_page_has_the_measured_numbers(script, cost_tables, content):
    text = (ROOT / "docs/cost.md").read_text(encoding="utf-8")
    named = [name for _, name, _, _ in re.findall(script.MARK, text, re.DOTALL)]
    assert sorted(named) == sorted(cost_tables.TABLES)
    assert script.fill(text, content) == text
    assert script.fill(text.replace(" 320 x 320 |", " 1 x 1 |"), content) == text


def test_the_page_counts_right(script, cost_tables, content):
    text = " ".join((ROOT / "docs/cost.md").read_text(encoding="utf-8").split())
    parameters = script.model_facts()["parameters"]
    assert content["model"]["parameters"] == parameters
    assert f"{parameters / 1e6:.1f} million parameters" in text
    assert f"{4 * parameters / 1e6:.0f} MB" in text and f"{16 * parameters / 1e9:.1f} GB" in text
    assert f"{cost_tables.TEST_ITEMS:,} expressions" in text
    x = cost_tables.scale(content, 512)
    assert f"The batch is {x['batch']:,}, and an epoch {x['steps_per_epoch']:.0f} steps" in text
    assert f"ten epochs are {10 * x['steps_per_epoch']:.0f} steps" in text
    for side, percent in ((320, 9), (640, 35)):
        tokens = (side // 16) ** 2 + 1 + 8
        assert round(100 * tokens / (6 * 768)) == percent
        assert f"{percent} % at {side}" in text


def test_a_step_by_hand(cost_tables):
    content = {
        "model": {"parameters": 1000},
        "size": {"rows": [{"size": [320, 320], "gflop": 2.0}]},
        "photo": {"rows": [{"photo": "480x640", "cpu_seconds": 0.01}]},
        "evaluator": {
            "rows": [{"parts": {"records": 0.001, "summary": 0.002}, "record_bytes": 100}]
        },
    }
    rates = dict.fromkeys(cost_tables.ASSUMED, 1e6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost_tables, "ASSUMED", {**rates, "bf16_flops": 6e9, "fast_bytes": 1000.0})
        x = cost_tables.scale(content, 16, samples_per_gpu=2)
        # 2 samples of 3 x 2 GFLOP at 6 GFLOP/s; 2 x 15 / 16 of 4000 bytes at 1000 per second.
        assert x["batch"] == 32 and x["compute"] == 2.0 and x["all_reduce"] == 7.5
        # Two thirds of computing hide as much of the exchange; 9 numbers of 4 bytes per parameter.
        assert x["step"] == pytest.approx(2.0 + 0.036 + 7.5 - 4 / 3)
        assert x["workers_per_gpu"] == pytest.approx(2 / x["step"] * 0.01)
        patch.setattr(cost_tables, "TEST_ITEMS", 1600)
        x = cost_tables.evaluation(content, 16)
        assert x["evaluator"] == pytest.approx(0.1) and x["summary"] == pytest.approx(3.2)
        assert x["bytes"] == 1600 * 15 / 16 * 100


def test_it_draws(script, content, tmp_path):
    path = tmp_path / "cost.png"
    script.main(["--json", str(ROOT / "docs/cost.json"), "--draw", str(path)])
    with Image.open(path) as drawn, Image.open(ROOT / "docs/images/cost.png") as shown:
        assert drawn.size == shown.size and drawn.width == 1300


def test_curves_are_collected_and_replaced(script, monkeypatch, tmp_path):
    row = {"size": None, "variant": "", "batch": 2, "processes": 1, "cpu_seconds": 3.0}
    row.update(peak_mib=4.0, others={}, rates={"gemm_gflops": 5.0})
    row["parts"] = {"encoder": {"seconds": 1.0, "gflop": 7.0}, "all": {"seconds": 2, "gflop": None}}
    asked = []

    def run_tool(arguments):
        asked.append(arguments)
        return {"rows": [row]}

    monkeypatch.setattr(script, "run_tool", run_tool)
    path = tmp_path / "cost.json"
    path.write_text('{"batch": 1, "photo": 2}')
    script.main(["--json", str(path), "--curves", "batch"])
    found = json.loads(path.read_text())
    kept = {"batch": 2, "processes": 1, "cpu_seconds": 3.0, "peak_mib": 4.0, "gemm_gflops": 5.0}
    assert found["batch"]["rows"] == [{**kept, "parts": {"encoder": 1.0, "all": 2}, "gflop": 7.0}]
    assert asked == [script.TOOL_CURVES["batch"]] and found["photo"] == 2
    assert len(found["batch"]["load"]) == 2 and found["model"]["parameters"] > 2e8


def test_memory_of_data_is_that_of_reading(script, monkeypatch):
    monkeypatch.setattr(script, "EXPRESSIONS", (200,))
    (row,) = script.measure_data()
    assert row["expressions"] == 200 and row["cpu_seconds"] > 0
    assert row["mib"] >= 0 and row["worker_mib"] > 0
