"""tools/benchmark.py: what it measures, and how it counts."""

import importlib.util
import json
from pathlib import Path

import pytest

from igvg_d2.testing import tiny_cfg

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark", ROOT / "tools" / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_step_is_measured(benchmark):
    cfg = tiny_cfg(["SOLVER.IMS_PER_BATCH", 4, "SOLVER.ACCUMULATION_STEPS", 2])
    result = benchmark.measure(cfg, steps=2, warmup=1, real=False)
    assert len(result["seconds"]) == 2 and min(result["seconds"]) > 0
    assert 0 < result["before_mib"] <= result["peak_mib"]


def test_variants_are_compared_with_the_first(benchmark, monkeypatch, capsys, tmp_path):
    asked = []

    def run_variant(args, opts):
        asked.append((opts, args.opts))
        factor = 2.0 if opts else 1.0
        seconds = [4.0 * factor, 1.0 * factor, 2.0 * factor]
        return {"seconds": seconds, "before_mib": 100.0, "peak_mib": 300.0 / factor}

    monkeypatch.setattr(benchmark, "run_variant", run_variant)
    output = tmp_path / "numbers.json"
    opts = ["SOLVER.IMS_PER_BATCH", "8", "MODEL.DEVICE", "cpu"]
    variant = "MODEL.BEIT3.CHECKPOINTING True"
    benchmark.main(["--compare", variant, "--rounds", "2", "--json", str(output), *opts])
    # Variants take turns.
    assert asked == 2 * [([], opts), (variant.split(), opts)]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].split()[2:] == ["2.000", "1.00", "4.00", "100", "300", "1.00"]
    assert lines[-1].split()[2:] == ["4.000", "2.00", "2.00", "100", "150", "0.50"]
    assert json.loads(output.read_text())["rows"][1]["samples_per_second"] == 2.0


@pytest.mark.parametrize("arguments", [["KEY"], ["--compare", "KEY"], ["--steps", "0"]])
def test_arguments_that_make_no_sense_are_refused(benchmark, arguments):
    with pytest.raises(SystemExit):
        benchmark.parse_args(arguments)
