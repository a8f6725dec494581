"""The promises of SECURITY.md: each names tests that exist, and memory is measured here."""

import ast
import ctypes
import gc
import json
import os
import re
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from igvg_d2.checkpoint import read_weights, write_checkpoint
from igvg_d2.data.datasets import load_expressions
from igvg_d2.evaluation import GRefCOCOEvaluator
from igvg_d2.evaluation.scoring import score_file
from igvg_d2.io.image import read_image
from igvg_d2.io.rle import runs_to_mask, to_rle

ROOT = Path(__file__).resolve().parent.parent
_SLACK = 64 << 20


def test_every_promise_names_tests_that_exist():
    text = (ROOT / "SECURITY.md").read_text()
    rows = [line for line in text.splitlines() if re.match(r"\| (?!file|---)", line)]
    assert len(rows) >= 11 and all("::" in row for row in rows)
    for path, name in re.findall(r"`([\w/]+\.py)::(\w+)`", text):
        tree = ast.parse((ROOT / path).read_text())
        assert name in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, (path, name)


def test_one_function_checks_run_lengths():
    """pycocotools gets what files hold through `io/rle.py` only."""
    package = ROOT / "igvg_d2"
    found = [p.name for p in package.rglob("*.py") if ".frPyObjects({" in p.read_text()]
    assert found == ["rle.py"]
    readers = ["data/datasets/instances.py", "evaluation/predictions.py", "evaluation/frames.py"]
    for name in (*readers, "data/mapper.py"):
        assert "igvg_d2.io.rle import" in (package / name).read_text(), name


def grows_by(function):
    """Bytes that a call adds to the peak of a process made for it, by the kernel's count."""
    gc.collect()
    child = os.fork()
    if child == 0:
        # Free memory that the parent still holds would be used without being counted.
        ctypes.CDLL(None).malloc_trim(0)
        # Counted anew from here on.
        Path("/proc/self/clear_refs").write_text("5")
        before = peak()
        try:
            function()
        except BaseException as error:  # noqa: B902  the process must end here
            print(repr(error), file=sys.stderr)
            os._exit(255)
        sys.stderr.flush()
        os._exit(min(254, (peak() - before) >> 20))
    status = os.waitpid(child, 0)[1]
    assert os.waitstatus_to_exitcode(status) not in (255, 254), "failed, or 254 MiB and more"
    return os.waitstatus_to_exitcode(status) << 20


def peak():
    """Bytes, since the process began or `clear_refs` was written."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


pytestmark = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc"
)


def test_growth_is_seen():
    assert 90 << 20 <= grows_by(lambda: np.ones(96 << 20, np.uint8)) <= 110 << 20


@pytest.mark.parametrize("kind", ["RGB", "P", "1", "I;16", "CMYK", "RGBA"])
def test_memory_of_an_image(tmp_path, kind):
    size = (2000, 1500)
    path = str(tmp_path / ("a.jpg" if kind == "CMYK" else "a.png"))
    Image.fromarray(np.zeros(size[::-1], np.uint16 if kind == "I;16" else np.uint8)).convert(
        kind
    ).save(path)
    assert os.path.getsize(path) < 1 << 20  # small files of large images
    assert grows_by(lambda: read_image(path, "RGB")) <= 16 * size[0] * size[1] + _SLACK


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_memory_of_weights(tmp_path, ending):
    path = str(tmp_path / f"w{ending}")
    write_checkpoint(path, {f"x{i}": torch.ones(1 << 20) for i in range(6)}, "me")
    assert grows_by(lambda: read_weights(path, mmap=False)) <= 4 * os.path.getsize(path) + _SLACK


def test_memory_of_annotations(tmp_path):
    # What takes most for its length: empty lists and objects of no use.
    content = {"images": [], "annotations": [], "expressions": [], "categories": []}
    text = json.dumps({**content, "x": [[]] * 200_000, "y": [[{}] * 50_000]})
    (tmp_path / "data.json").write_text(text)

    def read():
        with pytest.raises(ValueError, match="no valid expression"):
            load_expressions(str(tmp_path / "data.json"), "images")

    assert grows_by(read) <= 64 * len(text) + _SLACK


def test_memory_of_predictions(tmp_path):
    size, count = (24, 32), 1000
    mask = to_rle({"size": list(size), "counts": [100, 68, 600]}, *size)
    sample = dict(ref_id=1, sent_id=1, image_id=1, file_name="", height=size[0], width=size[1])
    annotation = dict(bbox=[0, 0, 9, 9], bbox_mode=1, category_id=0, segmentation=mask, iscrowd=0)
    samples = [{**sample, "sample_id": f"{i}", "annotations": [annotation]} for i in range(count)]
    path = tmp_path / "p.jsonl"
    with open(path, "w") as file:
        for item in samples:
            line = {
                "sample_id": item["sample_id"],
                "mask": {"size": size, "counts": [100, 68, 600]},
            }
            file.write(json.dumps({**line, "ignored": "x" * 100_000}) + "\n")
    assert path.stat().st_size > 100_000_000
    DatasetCatalog.register("test_memory", lambda: samples)
    MetadataCatalog.get("test_memory").set(evaluator_type="grefcoco")
    try:
        evaluator = GRefCOCOEvaluator(dataset_name="test_memory")
        evaluator.reset()
        assert len(evaluator.samples) == count
        assert grows_by(lambda: score_file(evaluator, str(path))) <= 2_000 * count + _SLACK
    finally:
        DatasetCatalog.remove("test_memory")
        MetadataCatalog.remove("test_memory")


def test_memory_of_masks():
    height, width = 1000, 1600
    pixels = height * width
    run = {"size": [height, width], "counts": [0, pixels]}
    single = {"size": [height, width], "counts": [1] * pixels}  # as many runs as there can be
    box = [0.0, 0.0, 2.0 * width, 0.0, 2.0 * width, 2.0 * height, 0.0, 2.0 * height]
    for segmentation in (run, [box], [box] * 20):
        limit = 16 * pixels + _SLACK
        assert grows_by(lambda item=segmentation: to_rle(item, height, width)) <= limit
    assert grows_by(lambda: runs_to_mask((height, width), np.array([0, pixels]))) <= 16 * pixels
    # The list itself is part of its file, 64 bytes for each byte.
    assert grows_by(lambda: to_rle(single, height, width)) <= 64 * 2 * pixels
    start = time.perf_counter()
    for size in ([2**32, 2**32], [10**9, 10**9], [height, 10**6]):
        with pytest.raises(ValueError, match="expected"):
            to_rle({"size": size, "counts": [size[0] * size[1]]}, height, width)
    far = [[0.0, 0.0, 1e9, 0.0, 1e9, 1e9]]
    with pytest.raises(ValueError, match="near the image"):
        to_rle(far, height, width)
    assert time.perf_counter() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 8 << 20  # KiB
