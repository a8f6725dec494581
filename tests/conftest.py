"""Fixtures every test folder may use."""

import functools
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger
from huggingface_hub import constants
from PIL import Image
from torch.multiprocessing import start_processes

from igvg_d2.data.datasets import load_referring, register_grounding
from igvg_d2.data.synthetic import write_shapes
from igvg_d2.io.hub import HANDLER
from tests.io.hub_server import running_hub

SHARED = Path(__file__).resolve().parents[2] / "shared"
# As imports leave them.
_LOGGERS = [
    (logger, list(logger.handlers), logger.level, logger.propagate)
    for logger in map(logging.getLogger, ("igvg_d2", "detectron2", "fvcore"))
]


@pytest.fixture(scope="session")
def shared_dir():
    """Folder of reference data beside the repository; the test is skipped without it."""
    if not SHARED.is_dir():
        pytest.skip(f"reference data not found beside the repository: {SHARED}")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def forked_processes_can_train():
    """The first backward pass is one on the CPU, for which PyTorch starts no thread.

    After a first one on a device, or on tensors without numbers, forked processes make none.
    """
    torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(autouse=True)
def loggers_stay():
    """What ``setup_logger`` adds in a test, or in a fixture, goes: pytest closes its stream."""
    yield
    for logger, handlers, level, propagate in _LOGGERS:
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate
    # It remembers for which names it has added handlers.
    setup_logger.cache_clear()


def _new_data_sets_go():
    known = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - known:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


# What a test registers goes with it, what a fixture of a file registers with the file.
data_sets_of_a_file_go = pytest.fixture(_new_data_sets_go, scope="module", autouse=True)
data_sets_of_a_test_go = pytest.fixture(_new_data_sets_go, autouse=True)


@pytest.fixture
def assert_within(record_property):
    """Callable (quantity, difference, bound): asserts; dev/parity_table.py prints what it saw."""

    def check(quantity, difference, bound):
        record_property(quantity, (float(difference), float(bound)))
        assert difference <= bound, f"{quantity}: difference {difference:.1e} > {bound:.0e}"

    return check


@pytest.fixture
def in_two_processes(tmp_path):
    """Callable (work): runs work(rank) in two forked gloo processes; returns both results.

    What one of them raises is raised here, with its traceback. Results travel by pickle; tensors
    as numpy arrays, because a process takes its shared memory along when it ends.
    """

    def process(rank, work):
        address = f"file://{tmp_path}/rendezvous"
        torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
        (tmp_path / f"result{rank}").write_bytes(pickle.dumps(work(rank)))
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()

    def run(work):
        start_processes(process, (work,), nprocs=2, start_method="fork")
        return [pickle.loads((tmp_path / f"result{rank}").read_bytes()) for rank in (0, 1)]

    return run


@pytest.fixture
def image_samples(tmp_path):
    """Callable (count, form of the ids): dataset dicts without targets, all of one black image."""

    def make(count, sample_id="{}_0"):
        path = tmp_path / "image.png"
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path)
        shared = {"file_name": str(path), "height": 20, "width": 30, "annotations": []}
        return [
            {
                **shared,
                "image_id": i,
                "sample_id": sample_id.format(i),
                "expression": "the red circle",
            }
            for i in range(count)
        ]

    return make


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A running server that huggingface_hub takes for the real hub, with an empty cache."""
    with running_hub() as server:
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "ENDPOINT": server.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_URL_HOSTS": frozenset({server.endpoint.removeprefix("http://")}),
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(constants, name, value, raising=False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        # What this process has been told of another server.
        monkeypatch.setattr(HANDLER, "_paths", {})
        yield server


@pytest.fixture(scope="module")
def register_shapes(tmp_path_factory):
    """Callable (name, seed, scale): registers splits of a new Shapes set; returns their names.

    The shipped models have seen none of the seeds.
    """

    def make(name, seed, scale, splits=("val",)):
        root = tmp_path_factory.mktemp(name) / "shapes"
        write_shapes(str(root), seed=seed, scale=scale, num_workers=1)
        files = {
            "annotation_file": str(root / "grefcoco" / "grefs(unc).json"),
            "instances_file": str(root / "grefcoco" / "instances.json"),
            "image_root": str(root / "images" / "train2014"),
        }
        names = [f"{name}_{split}" for split in splits]
        for split, full_name in zip(splits, names):
            facts = {**files, "split": split}
            loader = functools.partial(load_referring, **facts)
            register_grounding(full_name, {**facts, "evaluator_type": "grefcoco"}, loader)
        return names

    return make
