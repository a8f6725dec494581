"""tools/benchmark.py: what each part measures, on models of milliseconds."""

import sys

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

from igvg_d2.modeling.neck.simple_fpn import SimFPN
from igvg_d2.testing import random_batch, tiny_cfg
from tests.scripts import ROOT, load_script

# Lists of tokens, and a table of tokens for ids of the tokenizer that needs no file.
OPTS = ["MODEL.BEIT3.VOCAB_SIZE", 256, "INPUT.TOKENIZER.NAME", "ShapesTokenizer"]
FAST = ["--steps", "2", "--clock", "cpu", "--photo", "48x64", "--samples", "8"]


@pytest.fixture(scope="module")
def benchmark():
    return load_script("tools/benchmark.py")


@pytest.fixture
def measure(benchmark, tmp_path):
    """Callable (what, options, arguments): a Result, of the first case, in CPU seconds."""

    def run(what, opts=(), arguments=()):
        args = benchmark.parse_args(["--what", what, *FAST, *arguments])
        args.photos = str(tmp_path)
        case = benchmark.list_cases(args)[0]
        # What others compute meanwhile is not counted.
        benchmark.use_clock(args.clock)
        return benchmark.PARTS[what](tiny_cfg([*OPTS, *opts]), case, args)

    yield run
    benchmark.use_clock("wall")
    if "benchmark_photos" in DatasetCatalog.list():
        DatasetCatalog.remove("benchmark_photos")
        MetadataCatalog.remove("benchmark_photos")


def test_time_goes_to_the_innermost_label(benchmark):
    clock_of = sys.modules["benchmarking.clock"]
    times = iter([0, 1, 3, 6, 10, 15, 21])
    clock = clock_of.Clock(now=lambda: next(times))
    clock.start()
    clock.push("heads")
    clock.push("decoder")
    clock.pop()
    clock.pop()
    clock.switch("losses")
    spans = clock.stop()
    parts = [(None, 1), ("heads", 2), ("decoder", 3), ("heads", 4), (None, 5), ("losses", 6)]
    assert spans == parts
    expected = {"preparation": 1, "heads": 6, "decoder": 3, "other": 5, "losses": 6}
    assert clock_of.sum_spans(spans) == expected


def test_inference_by_parts(measure):
    result = measure("inference", arguments=["--no-torchscale"])
    assert list(result.parts)[0] == "preparation" and list(result.parts)[-1] == "post-processing"
    stages = {"encoder", "neck and pixel decoder", "query generation", "decoder", "heads", "other"}
    assert stages == result.parts.keys() - {"preparation", "post-processing"}
    assert all(min(x) >= 0 and len(x) == 2 for x in result.parts.values())
    # Of other passes than the whole, so only near to it.
    assert 0.2 < sum(map(min, result.parts.values())) / min(result.seconds) < 5
    assert 0 < result.before_mib <= result.peak_mib
    # 16 patches and CLS, 8 tokens of text; width 32, feed-forward 48, 2 layers.
    patches = 2 * 16 * 3 * 16 * 16 * 32
    linear = 2 * (17 + 8) * 32 * (3 * 32 + 32 + 2 * 48)
    attention = 2 * 2 * (17 + 8) ** 2 * 32
    assert result.operations["encoder"] == patches + 2 * (linear + attention)
    rate = 1e9 * result.rates["gemm_gflops"]
    assert result.floors["encoder"] == pytest.approx(result.operations["encoder"] / rate)


def test_torchscale_in_the_same_turns(measure):
    pytest.importorskip("torchscale")
    result = measure("inference")
    names = ["encoder alone", "torchscale, text padded to 20", "torchscale, equal text"]
    assert list(result.others) == names and all(len(x) == 2 for x in result.others.values())
    # Nothing stands in for its requirements any longer.
    assert "timm" not in sys.modules or sys.modules["timm"].__spec__ is not None


def test_backends_answer_alike(benchmark):
    parts = sys.modules["benchmarking.model_parts"]
    (batch,) = random_batch([0], (64, 64), [8])
    scores, classes = [], []
    for backend in ("eager", "optimized"):
        torch.manual_seed(0)
        model = parts.build_backend(tiny_cfg(OPTS), backend)
        with torch.inference_mode():
            scores.append(model([batch])[0]["candidates"].scores)
        classes.append({type(module).__name__ for module in model.modules()})
    torch.testing.assert_close(*scores)
    assert "_Linear" in classes[1] - classes[0]


def test_an_exported_file_has_its_own_size(benchmark):
    pytest.importorskip("onnxruntime", reason="needs pip install 'igvg_d2[export]'")
    parts, file = sys.modules["benchmarking.model_parts"], str(ROOT / "demo/igvg_tiny_shapes.onnx")
    with pytest.raises(ValueError, match=r"takes images of \(96, 96\) only, found \(64, 64\)"):
        parts.build_backend(tiny_cfg(OPTS), file)


def test_what_is_no_module_is_measured_as_a_whole(measure, monkeypatch):
    parts = sys.modules["benchmarking.model_parts"]
    build = parts.build_backend
    monkeypatch.setattr(parts, "build_backend", lambda *args: build(*args).forward)
    result = measure("inference")
    assert list(result.parts) == ["all"] and not result.others
    assert result.operations["encoder"] > 0 and result.floors.keys() == {
        name for name, amount in result.operations.items() if amount
    }


def test_a_training_step_by_parts(measure):
    opts = ["SOLVER.IMS_PER_BATCH", 4, "SOLVER.ACCUMULATION_STEPS", 2]
    result = measure("training", opts)
    assert list(result.parts) == ["forward", "matching", "losses", "backward", "optimizer"]
    assert all(min(x) > 0 for x in result.parts.values()) and result.samples == 4
    # Of the same steps: nothing but the marks themselves lies between.
    assert sum(x[0] for x in result.parts.values()) == pytest.approx(result.seconds[0], rel=0.2)
    # Gradients of weights and of inputs: twice the pass, less those of the images.
    ratio = result.operations["backward"] / result.operations["forward"]
    assert 1.8 < ratio <= 2.0
    assert result.floors["optimizer"] > 0 and 0 < result.before_mib <= result.peak_mib


def test_processes_share_a_step(benchmark, in_two_processes):
    parts = sys.modules["benchmarking.model_parts"]
    args = benchmark.parse_args([*FAST, "--warmup", "0"])
    cfg = tiny_cfg([*OPTS, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.NUM_THREADS", 1])
    for result in in_two_processes(lambda rank: vars(parts._train(cfg, args))):
        assert result["samples"] == 4 and result["floors"]["forward"] > 0
        ((name, seconds),) = result["others"].items()
        assert name.startswith("all-reduce of ") and len(seconds) == 2


def test_losses_are_left_as_they_were(benchmark):
    clock_of = sys.modules["benchmarking.clock"]
    model = _Toy()
    clock = clock_of.Clock(now=lambda: 0)
    clock.start()
    with clock_of.timed_losses(model, clock):
        assert model.my_losses() == 7 and toy_loss() == 5
        assert [label for _, label in clock.marks] == [None, *2 * ["losses", None]]
    assert "my_losses" not in vars(model) and not hasattr(toy_loss, "__wrapped__")


def test_stages_are_found_by_registry_then_by_name(benchmark):
    clock_of = sys.modules["benchmarking.clock"]
    stages = clock_of.find_stages(_Toy())
    assert list(stages.values()) == ["neck and pixel decoder", "heads", "proposals"]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader(measure, workers):
    opts = ["SOLVER.IMS_PER_BATCH", 2]
    result = measure("loader", opts, ["--workers", str(workers), "--clock", "wall"])
    assert result.samples == 2 and result.seconds[0] > 0 and result.floors["loader"] > 0
    assert result.others["a batch of the test loader"]
    assert bool(result.notes) == bool(workers)


def test_the_evaluator(measure, caplog):
    result = measure("evaluator", ["TEST.PROTOCOLS", "('native', 'official')"])
    assert result.seconds[0] == pytest.approx(sum(x[0] for x in result.parts.values()))
    assert list(result.parts) == ["records", "summary"] and result.floors["records"] > 0
    assert 100 < result.rates["record_bytes"] < 10000
    assert result.notes == ["evaluator: 8 samples, protocols native, official"]


def test_made_up_answers_are_good_ones(benchmark, measure, tmp_path):
    data = sys.modules["benchmarking.data_parts"]
    measure("evaluator")
    samples = DatasetCatalog.get("benchmark_photos")[:8]
    cfg = tiny_cfg()
    answers = data.make_answers(cfg, samples, (), data.np.random.default_rng(0))
    for sample, answer in zip(samples, answers):
        count = len(sample["annotations"])
        assert len(answer["instances"]) == count and answer["no_target"] == (count == 0)
        assert len(answer["candidates"]) == 4 and answer["mask"].shape == (48, 64)
        assert bool(answer["instances"].pred_masks.any()) == (count > 0)


def toy_loss():
    return 5


class _Toy(nn.Module):
    """A meta-architecture of nobody here."""

    def __init__(self):
        super().__init__()
        self.pyramid = SimFPN(in_channels=8, stride=16, out_channels=[8, 8, 8, 8])
        self.roi_heads = nn.Sequential(nn.Linear(2, 2))
        self.proposals = nn.Sequential(nn.Linear(2, 2))
        self.projection = nn.Linear(2, 2)

    def my_losses(self):
        return 7

    def forward(self, x):
        return torch.zeros(1)
