"""Passes and training steps: how long, on which parts, and how near to what the machine can do."""

import contextlib
import json
import os
import tempfile
from dataclasses import dataclass, field

import torch
from detectron2.engine import create_ddp_model
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from igvg_d2.data import build_grounding_train_loader
from igvg_d2.engine.launch import launch
from igvg_d2.engine.setup import set_num_threads
from igvg_d2.engine.train_step import PRECISIONS, build_step_trainer, split_batch
from igvg_d2.inference import GroundingPredictor
from igvg_d2.modeling.meta_arch import optimize_for_inference
from igvg_d2.solver import build_optimizer
from igvg_d2.testing import random_batch

from .clock import (
    TRAINING_PARTS,
    Clock,
    find_stages,
    memory_mib,
    seconds_of,
    sum_spans,
    timed_losses,
    timed_modules,
    use_clock,
)
from .reference import Gemm, count_operations, memory_rate, torchscale_encoder

# Targets of random samples: like gRefCOCO, some expressions have none or several.
_TARGETS = (1, 0, 2, 1, 1, 3, 1, 0)


@dataclass
class Result:
    """What one process has measured.

    Attributes:
        samples: of one pass, step or batch, over all processes.
        seconds, cpu_seconds: of each timed one; CPU time is that of this process alone.
        parts: {part: seconds of each}; measured in passes of their own.
        floors: {part: least seconds}: operations / rate of products, bytes / rate of copies.
        operations: {part: floating-point operations}, two per multiply-add.
        rates: "gemm_gflops" and "memory_gb_per_second" of this process, in the same turns.
        others: {name: seconds of each}, in the same turns.
        before_mib, peak_mib: memory before the first pass, and its peak.
        notes: what a reader has to know.
    """

    samples: int
    seconds: list = field(default_factory=list)
    cpu_seconds: list = field(default_factory=list)
    parts: dict = field(default_factory=dict)
    floors: dict = field(default_factory=dict)
    operations: dict = field(default_factory=dict)
    rates: dict = field(default_factory=dict)
    others: dict = field(default_factory=dict)
    before_mib: float = 0.0
    peak_mib: float = 0.0
    notes: list = field(default_factory=list)

    def add(self, seconds, parts=()):
        """One more timing: (wall, CPU) seconds, and those of its parts."""
        self.seconds.append(seconds[0])
        self.cpu_seconds.append(seconds[1])
        for name, value in dict(parts).items():
            self.parts.setdefault(name, []).append(value)


def make_batch(cfg, size, tokens, training=False):
    """Random images, texts of ``tokens`` tokens in turn, and in training targets."""
    longest = cfg.INPUT.TOKENIZER.MAX_TOKENS
    lengths = [min(tokens[i % len(tokens)], longest) for i in range(size)]
    counts = [_TARGETS[i % len(_TARGETS)] if training else 0 for i in range(size)]
    return random_batch(counts, tuple(cfg.INPUT.IMAGE_SIZE), lengths)


def inference(cfg, case, args):
    """A :class:`Result` of passes without gradients, from network inputs to masks of photos."""
    torch.manual_seed(0)
    device, precision = cfg.MODEL.DEVICE, case["precision"] or "fp32"
    inputs = make_batch(cfg, case["batch"], args.tokens)
    for x in inputs:
        x["height"], x["width"] = args.photo
        x.pop("instances")
    model = build_backend(cfg, case["backend"])
    context = _Context(device, precision)
    result = Result(case["batch"], before_mib=memory_mib(device, peak=False))

    def run():
        with context.inference():
            model(inputs)

    for _ in range(args.warmup + 1):
        run()
    result.peak_mib = memory_mib(device, peak=True)
    # As it was written, whatever a backend makes of it.
    plain = model if case["backend"] == "eager" else build_model(cfg).eval()
    result.operations, products, captured = _count_pass(plain, inputs, context)
    del plain
    gemm = Gemm(products, context.dtype or torch.float32, device)
    clock, timed, others = Clock(device), find_stages(model), {}
    encoder = next((module for module, stage in timed.items() if stage == "encoder"), None)
    if not args.no_torchscale and captured and encoder is not None:
        call = captured[0]
        others = torchscale_encoder(encoder, *call[:2])
        if others:
            others = {"encoder alone": lambda: encoder(*call), **others}
    for _ in range(args.steps):
        with context.tf32():
            gemm.measure()
        whole = seconds_of(run, device)
        with timed_modules(timed, clock):
            clock.start()
            run()
            result.add(whole, sum_spans(clock.stop()))
        for name, other in others.items():
            with context.inference():
                result.others.setdefault(name, []).append(seconds_of(other, device)[0])
    result.rates = {"gemm_gflops": gemm.rate and gemm.rate / 1e9}
    if gemm.rate:
        result.floors = {k: v / gemm.rate for k, v in result.operations.items() if v}
    return result


def build_backend(cfg, backend):
    """What answers: the model with random weights, or the network of a file of tools/export.py."""
    if backend.endswith(".onnx"):
        size = ["INPUT.IMAGE_SIZE", str(tuple(cfg.INPUT.IMAGE_SIZE))]  # refused if it is another
        return GroundingPredictor.from_pretrained(backend, cfg.MODEL.DEVICE, opts=size).model
    model = build_model(cfg).eval()
    if backend == "optimized":
        return optimize_for_inference(model)
    if backend == "compile":
        # Stage by stage, so that each can still be timed.
        for module in find_stages(model):
            module.forward = torch.compile(module.forward)
    return model


class _Context:
    """Precision of a device as context managers."""

    def __init__(self, device, precision):
        self.device_type = torch.device(device).type
        self.dtype, self.allow_tf32 = PRECISIONS.get(precision), precision == "tf32"

    @contextlib.contextmanager
    def tf32(self):
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        torch.set_float32_matmul_precision("high" if self.allow_tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = self.allow_tf32
        yield
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]

    @contextlib.contextmanager
    def inference(self, mode=torch.inference_mode):
        enabled = self.dtype is not None
        with self.tf32(), mode():
            with torch.autocast(self.device_type, dtype=self.dtype, enabled=enabled):
                yield


def _count_pass(model, inputs, context):
    """Of :func:`count_operations` of a pass, and the inputs of an encoder of images and texts."""
    stages, found = find_stages(model), []
    keep = lambda _, inputs: found.append(inputs) if len(inputs) > 1 else None  # noqa: E731
    encoders = [module for module, stage in stages.items() if stage == "encoder"]
    handles = [encoder.register_forward_pre_hook(keep) for encoder in encoders]

    def run(_):
        with context.inference(torch.no_grad):
            model(inputs)

    operations, products = count_operations(run, stages)
    for handle in handles:
        handle.remove()
    return operations, products, found


def training(cfg, case, args):
    """A :class:`Result` of optimizer steps, in ``case["processes"]`` processes."""
    if case["processes"] == 1:
        return _train(cfg, args)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "result.json")
        launch(_train_rank, case["processes"], args=(cfg, args, path), device=cfg.MODEL.DEVICE)
        with open(path, encoding="utf-8") as file:
            return Result(**json.load(file))


def _train_rank(cfg, args, path):
    """Of several processes, each on its share of the batch; the first writes its numbers."""
    use_clock(args.clock)
    result = _train(cfg, args)
    if comm.is_main_process():
        with open(path, "w", encoding="utf-8") as file:
            json.dump(vars(result), file)


def _train(cfg, args):
    """Steps of this process."""
    set_num_threads(cfg)
    torch.manual_seed(0)
    device = cfg.MODEL.DEVICE
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    batches, size = None, cfg.SOLVER.IMS_PER_BATCH
    if args.real:
        batches = iter(build_grounding_train_loader(cfg))
    batch = make_batch(cfg, size // comm.get_world_size(), args.tokens, training=True)
    device_ids = [torch.cuda.current_device()] if device.startswith("cuda") else None
    wrapped = create_ddp_model(model, broadcast_buffers=False, device_ids=device_ids)
    trainer = build_step_trainer(cfg, wrapped, [], optimizer)
    result = Result(size, before_mib=memory_mib(device, peak=False))
    clock = Clock(device)
    _switch_in_steps(trainer, model, clock)

    def run():
        # Waiting for data is not counted.
        data = next(batches) if batches else [dict(sample) for sample in batch]
        trainer._data_loader_iter_obj = iter([data])
        seconds = seconds_of(lambda: step(clock), device)
        return seconds, sum_spans(clock.stop())

    def step(clock):
        clock.start("optimizer")
        trainer.run_step()

    with EventStorage(), timed_losses(model, clock):
        trainer.iter = 0
        for _ in range(args.warmup + 1):
            first = run()
        result.peak_mib = memory_mib(device, peak=True)
        result.operations = _count_step(run, clock)
        part = split_batch(batch, trainer.accumulation_steps)[0]
        passed = count_operations(lambda _: _forward(trainer, model, part), find_stages(model))
        gemm = Gemm(passed[1], trainer.precision or torch.float32, device)
        for turn in range(args.steps):
            gemm.measure()
            trainer.iter = turn + 1
            result.add(*run())
    del first
    result.parts = {name: result.parts.get(name, [0.0]) for name in TRAINING_PARTS}
    _set_floors(result, gemm, optimizer, device)
    if comm.get_world_size() > 1:
        name = f"all-reduce of {_gradient_bytes(model) / 2**20:.0f} MiB of gradients"
        result.others[name] = [_all_reduce(model, device) for _ in range(args.steps)]
    return result


def _switch_in_steps(trainer, model, clock):
    """Let a step switch the clock to what it does."""
    accumulate = trainer.accumulate

    def begin(micro_batches):
        clock.switch("forward")
        return accumulate(micro_batches)

    trainer.accumulate = begin
    trainer.after_backward = lambda: clock.switch("optimizer")
    model.register_forward_pre_hook(lambda *_: clock.switch("forward"))
    model.register_forward_hook(lambda *_: clock.switch("backward"))


def _count_step(run, clock):
    """Operations of one step by part; the clock of the hooks is borrowed for it."""
    now = clock.now, clock.is_cuda

    def step(counting):
        clock.now, clock.is_cuda = counting.now, False
        run()
        counting.marks, counting.labels = clock.marks, clock.labels

    try:
        return count_operations(step)[0]
    finally:
        clock.now, clock.is_cuda = now


def _forward(trainer, model, batch):
    """A pass in training mode whose gradients nobody wants."""
    enabled = trainer.precision is not None
    with torch.no_grad(), torch.autocast(trainer.device.type, trainer.precision, enabled=enabled):
        model([dict(sample) for sample in batch])


def _set_floors(result, gemm, optimizer, device):
    """Least seconds of each part: products by their rate, the optimizer by that of memory."""
    bandwidth = memory_rate(device)
    result.rates["memory_gb_per_second"] = bandwidth / 1e9
    read = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    state = [
        value
        for p in read
        for value in optimizer.state[p].values()
        if isinstance(value, torch.Tensor) and value.shape == p.shape
    ]
    # Weights and averages are read and written, gradients read.
    moved = sum(2 * t.nbytes for t in [*read, *state]) + sum(p.grad.nbytes for p in read)
    result.floors["optimizer"] = moved / bandwidth
    if gemm.rate:
        result.rates["gemm_gflops"] = gemm.rate / 1e9
        for part, amount in result.operations.items():
            if amount:
                result.floors[part] = result.floors.get(part, 0.0) + amount / gemm.rate


def _gradient_bytes(model):
    return sum(p.nbytes for p in model.parameters() if p.requires_grad)


def _all_reduce(model, device):
    """Seconds of one exchange of all gradients, not hidden behind a backward pass."""
    buffer = torch.zeros(_gradient_bytes(model) // 4, device=device)
    comm.synchronize()
    return seconds_of(lambda: torch.distributed.all_reduce(buffer), device)[0]
