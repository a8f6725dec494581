"""On two GPUs, over NCCL: two processes have the gradient of one, and a run trains."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from igvg_d2.engine.guards import LossGuard
from igvg_d2.engine.train_step import GroundingStepTrainer, split_batch
from igvg_d2.testing import random_batch, tiny_cfg

ROOT = Path(__file__).resolve().parents[2]
EXACT = ["MODEL.PIXEL_DECODER.NORM", "SyncBN", "MODEL.BEIT3.DROP_PATH", 0.0,
         "MODEL.QUERY_GENERATOR.DROPOUT", 0.0, "MODEL.GROUNDING_HEAD.DROPOUT", 0.0,
         "MODEL.DEVICE", "cuda"]  # fmt: skip
COUNTS = [(1, 0, 2, 6), (0, 0, 0, 2), (0, 0, 0, 0)]


def gradients(model, batch, parts):
    """Gradients by name, on the CPU."""
    trainer = GroundingStepTrainer(model, [], torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.accumulate(split_batch(batch, parts))
    named = model.named_parameters()
    return {name.removeprefix("module."): p.grad.cpu() for name, p in named}


def work(rank, address, path):
    """One of two processes."""
    torch.cuda.set_device(rank)
    torch.distributed.init_process_group("nccl", init_method=address, rank=rank, world_size=2)
    results = []
    for counts in COUNTS:
        for parts in (1, 2):
            torch.manual_seed(0)
            model = nn.parallel.DistributedDataParallel(
                build_model(tiny_cfg(EXACT)), device_ids=[rank], broadcast_buffers=False
            )
            LossGuard(model.module)
            half = split_batch(random_batch(counts), 2)[rank]
            results.append(gradients(model, half, parts))
    if rank == 0:
        torch.save(results, path)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_gpus_have_the_gradient_of_one(two_gpus, tmp_path):
    path = tmp_path / "gradients.pth"
    address = f"file://{tmp_path}/rendezvous"
    torch.multiprocessing.spawn(work, (address, path), nprocs=2)
    found = iter(torch.load(path))
    for counts in COUNTS:
        for parts in (1, 2):
            gradient = next(found)
            if parts == 2:
                # BatchNorm sees micro-batches, so only the parts after it can be compared.
                continue
            torch.manual_seed(0)
            expected = gradients(build_model(tiny_cfg(EXACT)), random_batch(counts), parts)
            norm = torch.stack([x.norm() for x in expected.values()]).norm()
            off = torch.stack([(gradient[k] - x).norm() for k, x in expected.items()]).norm()
            assert off < 1e-3 * norm, counts


@pytest.mark.parametrize("start", ["launch", "torchrun"])
def test_a_run_on_two_gpus_trains_and_ends(two_gpus, tmp_path, start):
    data = str(tmp_path / "shapes")
    prepare = [sys.executable, "datasets/prepare_synthetic.py", "--output", data, "--scale", "0.05"]
    subprocess.run(prepare, cwd=ROOT, check=True)
    command = [sys.executable, "train_net.py", "--num-gpus", "2"]
    if start == "torchrun":
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
                   "train_net.py"]  # fmt: skip
    command += ["--config-file", "configs/Shapes/igvg_tiny.yaml", "SOLVER.MAX_ITER", "20"]
    command += ["DATASETS.TEST", "()", "OUTPUT_DIR", str(tmp_path / "run")]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=600)
    assert (tmp_path / "run" / "model_final.pth").is_file()
