#!/usr/bin/env python
"""Memory of a training step, counted without a GPU and without computing anything.

    python dev/estimate_memory.py --config-file configs/gRefCOCO/igvg_beit3_base_320_24gb.yaml \\
        --variant "MODEL.BEIT3.CHECKPOINTING False"

Counted are parameters, gradients, the optimizer's averages, and the largest sum of all other
tensors that are alive at one time in forward and backward pass of one micro-batch. Tensors have
shapes and no numbers (PyTorch's FakeTensorMode), so a model of any size takes seconds. Not counted
are the CUDA context (0.3 to 0.8 GiB), workspaces of kernels and fragmentation; allow a quarter.
"""

import argparse
import shlex
import weakref
from unittest import mock

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
import torch
import torch.nn.functional as F
from detectron2.modeling import META_ARCH_REGISTRY
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from igvg_d2.engine import setup_config
from igvg_d2.engine.train_step import PRECISIONS
from igvg_d2.modeling import IGVG
from igvg_d2.modeling.grounding_head import PointGuidedMatcher
from igvg_d2.testing import random_batch

# As in tools/benchmark.py: like gRefCOCO, some expressions have no target or several.
TARGETS = (1, 0, 2, 1, 1, 3, 1, 0)
WORDS = 20


class AliveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operators make, while they are alive."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak, self._known = 0, 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self._add(value.untyped_storage())
        return result

    def _add(self, storage):
        key = storage._cdata
        if key in self._known:
            return

        def remove(_):
            self.alive -= size
            del self._known[key]

        size = storage.nbytes()
        self._known[key] = weakref.ref(storage, remove)
        self.alive += size
        self.peak = max(self.peak, self.alive)


def layer_norm(x, *args, _layer_norm=F.layer_norm):
    """In 32 bits, as under autocast of CUDA; that of the CPU leaves it in 16."""
    return _layer_norm(x.float(), *args)


def estimate(cfg):
    """GiB of a step by what they are for, "total" last."""
    size = cfg.SOLVER.IMS_PER_BATCH // cfg.SOLVER.ACCUMULATION_STEPS
    counts = [TARGETS[i % len(TARGETS)] for i in range(size)]
    length = min(WORDS, cfg.INPUT.TOKENIZER.MAX_TOKENS)
    batch = random_batch(counts, tuple(cfg.INPUT.IMAGE_SIZE), [length - i % 2 for i in range(size)])
    alive = AliveBytes()
    precision = PRECISIONS[cfg.SOLVER.AMP.PRECISION] if cfg.SOLVER.AMP.ENABLED else None
    text = torch.ones(size, length, dtype=torch.int64), torch.zeros(size, length, dtype=torch.bool)
    # What looks at numbers.
    match = mock.patch.object(
        PointGuidedMatcher, "forward", lambda _, logits, *__: torch.full(logits.shape[:3], -1)
    )
    read = mock.patch.object(IGVG, "preprocess_text", lambda *_: (*text, True))
    start = mock.patch.object(torch.nn.init, "trunc_normal_", lambda tensor, **_: tensor)
    like_cuda = mock.patch.object(F, "layer_norm", layer_norm)
    with match, read, start, like_cuda, FakeTensorMode(allow_non_fake_inputs=True):
        # build_model() would also move it, which tensors without numbers refuse.
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg).train()
        parameters = [p for p in model.parameters() if p.requires_grad]
        for p in parameters:
            # Of the micro-batches before, and therefore not counted as activations.
            p.grad = torch.zeros_like(p)
        enabled = precision is not None
        with alive, torch.autocast("cpu", dtype=precision, enabled=enabled):
            losses = sum(model(batch).values())
        with alive:
            losses.backward()
    gradients = sum(p.nbytes for p in parameters)
    weights = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    parts = {
        "weights": weights * (1 + cfg.SOLVER.EMA.ENABLED),
        "gradients": gradients,
        "optimizer": (2 + cfg.SOLVER.AMSGRAD) * gradients,
        "activations": alive.peak,
    }
    parts["total"] = sum(parts.values())
    return {key: value / 2**30 for key, value in parts.items()}


def main(argv=None):
    """Print a line per variant."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="config to measure")
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar='"KEY VALUE ..."',
        help="a variant: options on top of the config; may be repeated",
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="options of all variants")
    args = parser.parse_intermixed_args(argv)
    for variant in ["", *args.variant]:
        cfg = setup_config(args.config_file, [*args.opts, *shlex.split(variant)])
        cfg.MODEL.DEVICE = "cpu"
        parts = estimate(cfg)
        numbers = ", ".join(f"{key} {value:.2f}" for key, value in parts.items())
        print(f"{variant or 'as configured'}: {numbers} GiB", flush=True)


if __name__ == "__main__":
    main()
