"""dev/benchmark_predictor.py: what it prints, of the tiny model and small photos."""

import re

import pytest
from PIL import Image

from tests.scripts import load_script


@pytest.fixture
def benchmark(monkeypatch):
    module = load_script("dev/benchmark_predictor.py")
    build = module.build
    monkeypatch.setattr(module, "build", lambda model: build("tiny"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    return module


def test_time_and_memory_are_told(benchmark, capsys):
    parts = ["--parts", "overhead", "batch", "leak"]
    benchmark.main(["--rounds", "1", "--predictions", "4", *parts])
    overhead, batch, _, leak = capsys.readouterr().out.splitlines()
    assert re.search(r"^predictor, bare model: .* against .*: [+-]\d+\.\d % \(bar: 5\)$", overhead)
    assert re.search(r"^base, 8 expressions .*: gain \d+\.\d\d$", batch)
    before, after = map(int, re.search(r"(\d+) -> (\d+) MiB$", leak).groups())
    assert 0 < before and after - before < 100


def test_the_worker_of_a_photo_tells_its_peak(benchmark, capsys, tmp_path):
    path = benchmark.write_photo(str(tmp_path), (64, 48))
    benchmark.main(["--worker", "tiny", path])
    assert re.search(r'"peak_mib": \d+', capsys.readouterr().out)
