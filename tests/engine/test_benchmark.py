"""tools/benchmark.py: what it is asked for, what it says, and how two runs are compared."""

import json

import pytest

from tests.scripts import ROOT, load_script

ONNX = ROOT / "demo" / "igvg_tiny_shapes.onnx"
ROW = {
    "samples": 8,
    "seconds": [4.0, 1.0, 2.0],
    "cpu_seconds": [1.0],
    "parts": {"forward": [0.5], "backward": [1.0], "optimizer": [0.5]},
    "floors": {"forward": 0.4, "optimizer": 0.1},
    "operations": {"forward": 4e9},
    "rates": {"gemm_gflops": 10.0},
    "others": {},
    "before_mib": 100.0,
    "peak_mib": 300.0,
    "notes": [],
}


@pytest.fixture(scope="module")
def benchmark():
    return load_script("tools/benchmark.py")


@pytest.fixture
def run(benchmark, monkeypatch, capsys):
    """Callable (arguments, speed): the output of a run whose processes answer at once."""

    def start(arguments, speed=1.0):
        asked = []

        def run_case(args, case, argv, folder):
            asked.append(case)
            factor = (2.0 if case["variant"] else 1.0) / speed
            parts = {k: [s * factor for s in v] for k, v in ROW["parts"].items()}
            seconds = [s * factor for s in ROW["seconds"]]
            rates = {"gemm_gflops": 10.0 * speed}
            return {**ROW, "parts": parts, "seconds": seconds, "rates": rates}

        monkeypatch.setattr(benchmark, "run_case", run_case)
        benchmark.main([*arguments, "MODEL.DEVICE", "cpu"])
        return asked, capsys.readouterr().out

    return start


def test_variants_take_turns_and_are_compared_with_the_first(run, tmp_path):
    output, variant = tmp_path / "numbers.json", "MODEL.BEIT3.CHECKPOINTING True"
    arguments = ["--what", "training", "--variant", variant, "--rounds", "2"]
    asked, text = run([*arguments, "--json", str(output)])
    assert [case["variant"] for case in asked] == 2 * ["", variant]
    lines = [line.split() for line in text.splitlines()]
    peak = ["300", "1.00", "10"]
    assert ["as", "configured", "2", "1.00", "1", "4", "25", "%", *peak] in lines
    assert [*variant.split(), "4", "2.00", "1", "2", "12", "%", *peak] in lines
    # Part: seconds, share of the step, share of the peak.
    assert ["forward", "0.5", "(25", "%,", "80", "%)", "1", "(25", "%,", "40", "%)"] in lines
    assert ["sum", "2", "4"] in lines
    content = json.loads(output.read_text())
    row = content["rows"][1]
    assert row["samples_per_second"] == 2.0 and row["floor_seconds"] == 0.5
    assert row["parts"]["forward"]["gflop"] == 4.0 and row["parts"]["backward"]["gflop"] is None
    assert {"format", "machine", "machine_after", "malloc", "rows", "runs"} <= content.keys()
    assert len(content["machine"]["load"]) == 3 and content["machine"]["device"] == "cpu"


def test_every_combination_is_a_case(benchmark):
    args = ["--batch", "1,8", "--threads", "1,2", "--precision", "fp32,bf16", "--size", "64,64x96"]
    cases = benchmark.list_cases(benchmark.parse_args([*args, "--malloc", "system"]))
    assert len(cases) == 16 and cases[-1]["batch"] == 8 and cases[-1]["size"] == (64, 96)
    args = benchmark.parse_args(["--what", "training", *args, "--malloc", "system"])
    case = benchmark.list_cases(args)[-1]
    expected = "INPUT.IMAGE_SIZE (64, 96) SOLVER.NUM_THREADS 2 SOLVER.IMS_PER_BATCH 8 "
    expected += "SOLVER.AMP.ENABLED True SOLVER.AMP.PRECISION bf16"
    assert " ".join(benchmark.options_of(case, args)) == expected


def test_an_earlier_run_is_compared_also_at_equal_speed_of_the_machine(run, tmp_path):
    earlier = str(tmp_path / "earlier.json")
    run(["--what", "training", "--json", earlier])
    _, text = run(["--what", "training", "--compare", earlier], speed=2.0)
    lines = [line.split() for line in text.splitlines()]
    assert ["training,", "as", "configured", "2", "1", "0.50", "1.00"] in lines
    assert ["backward", "1", "0.5", "0.50", "1.00"] in lines
    assert ["peak", "MiB", "300", "300", "1.00", "-"] in lines


def test_what_cannot_be_compared_is_refused(run, tmp_path):
    path = tmp_path / "earlier.json"
    path.write_text("[]")
    with pytest.raises(SystemExit, match="not a file that this version's --json has written"):
        run(["--compare", str(path)])
    with pytest.raises(SystemExit, match="No such file"):
        run(["--compare", str(tmp_path / "none.json")])
    run(["--what", "training", "--json", str(path)])
    with pytest.raises(SystemExit, match="no row of it was measured again"):
        run(["--compare", str(path)])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["KEY"], "pairs of KEY VALUE"),
        (["--variant", "KEY"], "pairs of KEY VALUE"),
        (["--steps", "0"], "at least 1"),
        (["--what", "training,all_of_it"], "'all_of_it' is none of inference, training, loader"),
        (["--size", "1x2x3"], "expected 320 or 480x640"),
        (["--photo", "320x"], "'320x': expected 320 or 480x640"),
        (["--batch", "0"], "'0': expected numbers of 1 or more"),
        (["--threads", "1,a"], "'1,a': expected numbers of 1 or more"),
        (["--processes", ""], "'': expected numbers of 1 or more"),
        (["--workers", "-1"], "'-1': expected numbers of 0 or more"),
        (["--tokens", "2"], "'2': expected numbers of 3 or more"),
        (["--backend", "eager,nobody.onnx"], "there is no file 'nobody.onnx'"),
        (["--backend", f"eager,{ONNX}", "--precision", "bf16"], "were chosen at its export"),
        (["--json", "none/x.json"], "there is no folder"),
        (["--compare", "SOLVER.AMP.ENABLED True"], '--variant "SOLVER.AMP.ENABLED True"'),
    ],
)
def test_arguments_that_make_no_sense_are_refused(benchmark, arguments, message, capsys):
    with pytest.raises(SystemExit):
        benchmark.parse_args(arguments)
    assert message in capsys.readouterr().err


def test_a_missing_config_is_named_in_one_line(benchmark):
    with pytest.raises(SystemExit, match="^cannot measure: no config file 'none.yaml'.*$"):
        benchmark.main(["--config-file", "none.yaml"])


def test_malloc_is_set_and_named(benchmark, run, monkeypatch):
    _, text = run(["--malloc", "glibc,system"])
    assert "malloc glibc: MALLOC_TRIM_THRESHOLD_=68719476736 MALLOC_MMAP_THRESHOLD_=" in text
    monkeypatch.setattr(benchmark.ctypes.util, "find_library", lambda name: f"lib{name}.so.2")
    found = benchmark.malloc_environment("jemalloc")["LD_PRELOAD"]
    assert found.partition(".so")[0].endswith("libjemalloc")
    monkeypatch.setattr(benchmark.ctypes.util, "find_library", lambda name: None)
    monkeypatch.setattr(benchmark.glob, "glob", lambda pattern: [])
    with pytest.raises(SystemExit, match="libtcmalloc is not installed"):
        benchmark.malloc_environment("tcmalloc")


def test_the_share_of_evaluation_is_told(benchmark):
    row = {"samples": 4, "cpu_seconds": 8.0}
    judged = {"what": "evaluator", "samples": 1, "cpu_seconds": 0.05}
    text = benchmark.report._share_of_evaluation([{**row, "what": "inference"}, judged])
    assert text == "evaluator: 2.5 % of the CPU time of inference per sample"
