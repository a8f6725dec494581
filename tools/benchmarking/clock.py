"""Where the time of a pass goes: clocks that switch between stages, and what switches them."""

import contextlib
import functools
import inspect
import sys
import time

import torch
from detectron2.modeling import BACKBONE_REGISTRY

from igvg_d2.modeling.grounding_head.build import GROUNDING_HEAD_REGISTRY
from igvg_d2.modeling.neck.build import NECK_REGISTRY
from igvg_d2.modeling.pixel_decoder.build import PIXEL_DECODER_REGISTRY
from igvg_d2.modeling.query_generator.build import QUERY_GENERATOR_REGISTRY
from igvg_d2.modeling.transformer.build import TRANSFORMER_DECODER_REGISTRY

# Whoever registers a component, also an outside project, gets it measured under this name.
STAGES = (
    (BACKBONE_REGISTRY, "encoder"),
    (NECK_REGISTRY, "neck and pixel decoder"),
    (PIXEL_DECODER_REGISTRY, "neck and pixel decoder"),
    (QUERY_GENERATOR_REGISTRY, "query generation"),
    (TRANSFORMER_DECODER_REGISTRY, "decoder"),
    (GROUNDING_HEAD_REGISTRY, "heads"),
)
# Before the first stage, between stages, after the last one.
BEFORE, BETWEEN, AFTER = "preparation", "other", "post-processing"
INFERENCE_PARTS = (BEFORE, *dict.fromkeys(name for _, name in STAGES), BETWEEN, AFTER)
TRAINING_PARTS = ("forward", "matching", "losses", "backward", "optimizer")

# Of this process, see use_clock.
_CHOSEN = ["wall"]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def use_clock(name):
    """Measure everything in "wall" seconds or, on a machine that others use, in "cpu" seconds."""
    _CHOSEN[0] = name


class Clock:
    """Adds up what passes under each label; labels nest, and the innermost one gets it.

    Args:
        device: on "cuda" events are recorded, so a stage has the time of its kernels, not that of
            their launch.
        now: reads another quantity than time, such as operations counted so far.
    """

    def __init__(self, device="cpu", now=None):
        self.is_cuda = now is None and torch.device(device).type == "cuda"
        self.now = now or (self._event if self.is_cuda else CLOCKS[_CHOSEN[0]])
        self.marks, self.labels = [], []

    @staticmethod
    def _event():
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _mark(self):
        self.marks.append((self.now(), self.labels[-1] if self.labels else None))

    def start(self, label=None):
        """Forget everything and begin."""
        self.marks, self.labels = [], [label]
        self._mark()

    def push(self, label):
        """Begin something inside of the present label."""
        self.labels.append(label)
        self._mark()

    def pop(self):
        """Go back to the label around the present one."""
        self.labels.pop()
        self._mark()

    def switch(self, label):
        """Give the present label up for another."""
        self.labels[-1] = label
        self._mark()

    def stop(self):
        """End; returns [(label, amount)] in order, which add up to the whole."""
        self._mark()
        if self.is_cuda:
            torch.cuda.synchronize()
        spans = []
        for (begin, label), (end, _) in zip(self.marks, self.marks[1:]):
            amount = begin.elapsed_time(end) / 1e3 if self.is_cuda else end - begin
            spans.append((label, amount))
        return spans


def sum_spans(spans):
    """{label: sum}; spans without a label lie before, between or after those that have one."""
    labelled = [i for i, (label, _) in enumerate(spans) if label is not None]
    if not labelled:
        return {"all": sum(amount for _, amount in spans)}
    first, last, sums = labelled[0], labelled[-1], {}
    for i, (label, amount) in enumerate(spans):
        if label is None:
            label = BEFORE if i < first else AFTER if i > last else BETWEEN
        sums[label] = sums.get(label, 0) + amount
    return sums


def find_stages(model):
    """{module: stage}: by the registry of its class; else a part of the model by its own name.

    Parts of one layer (projections) count to what lies between the stages. What is no module, as
    the network of an ONNX file, has none.
    """
    if not isinstance(model, torch.nn.Module):
        return {}
    known = {obj: stage for registry, stage in STAGES for _, obj in registry}
    stages = {}
    for module in model.modules():
        stage = next((known[base] for base in type(module).__mro__ if base in known), None)
        if stage:
            stages[module] = stage
    for name, module in model.named_children():
        if module not in stages and any(module.children()):
            stages[module] = "heads" if "head" in name else name
    return stages


@contextlib.contextmanager
def timed_modules(stages, clock):
    """Let modules push and pop their labels."""
    handles = []
    for module, label in stages.items():
        begin = functools.partial(lambda label, *_: clock.push(label), label)
        handles.append(module.register_forward_pre_hook(begin))
        handles.append(module.register_forward_hook(lambda *_: clock.pop(), always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def timed_losses(model, clock):
    """Let what computes losses push and pop "losses", and matchers "matching".

    Losses are modules called criterion, methods that end in "loss" or "losses", and functions that
    end in "_loss" in the files of the model's modules.
    """
    patched, labels = [], {}

    def wrap(function):
        @functools.wraps(function)
        def run(*args, **kwargs):
            clock.push("losses")
            try:
                return function(*args, **kwargs)
            finally:
                clock.pop()

        return run

    for module in model.modules():
        kind = type(module).__name__.lower()
        if "criterion" in kind or "matcher" in kind:
            labels[module] = "matching" if "matcher" in kind else "losses"
        for name, _ in inspect.getmembers(type(module), inspect.isfunction):
            if name.endswith(("loss", "losses")):
                patched.append((vars(module), name, None))
                vars(module)[name] = wrap(getattr(module, name))
    files = {type(m).__module__ for m in model.modules()} - {"torch.nn.modules.container"}
    for file in sorted(name for name in files if not name.startswith("torch.")):
        names = vars(sys.modules[file])
        for name, value in list(names.items()):
            if name.endswith("_loss") and inspect.isfunction(value):
                patched.append((names, name, value))
                names[name] = wrap(value)
    try:
        with timed_modules(labels, clock):
            yield
    finally:
        for names, name, value in reversed(patched):
            if value is None:
                del names[name]
            else:
                names[name] = value


def wait(device):
    """For a GPU to finish."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def seconds_of(work, device="cpu"):
    """Seconds of a call by the clock in use, and CPU seconds; a GPU's work included."""
    now = CLOCKS[_CHOSEN[0]]
    wait(device)
    start, cpu = now(), time.process_time()
    work()
    wait(device)
    return now() - start, time.process_time() - cpu


def memory_mib(device, peak):
    """Memory of the GPU's allocator, or of this process alone (Linux), in MiB."""
    if torch.device(device).type == "cuda":
        number = torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
        return number / 2**20
    # Not getrusage, whose peak begins with that of the process that started this one.
    with open("/proc/self/status", encoding="ascii") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines["VmHWM" if peak else "VmRSS"].split()[0]) / 2**10
