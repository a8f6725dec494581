"""What the machine can do, measured in the same turns: matrix products, memory, other encoders."""

import contextlib
import importlib.util
import statistics
import sys
import types

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from .clock import Clock, seconds_of, sum_spans, timed_modules

# Products below this share of all operations of the encoder do not decide on the rate.
_SMALLEST_SHARE = 0.02
# A product is repeated until it has done as much as this, or as often as that.
_OPERATIONS, _REPEATS = 2e9, 100
_BANDWIDTH_BYTES = 2**26
# Tokens to which the release pads every text.
_RELEASED_TEXT = 20


def _attention(q, k, v, *args, out_shape=None, **kwargs):
    return sdpa_flop_count(q, k, v)


def _attention_backward(grad, q, k, v, *args, out_shape=None, **kwargs):
    return sdpa_backward_flop_count(grad, q, k, v)


# The counter of PyTorch knows the attention of GPUs only.
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class _Products(TorchDispatchMode):
    """Counts (M, K, N) of the matrix products that run while it is on."""

    def __init__(self, is_wanted):
        super().__init__()
        self.is_wanted, self.counts = is_wanted, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        operands = {torch.ops.aten.addmm.default: args[1:3], torch.ops.aten.mm.default: args[:2]}
        if func in operands and self.is_wanted():
            left, right = operands[func]
            shape = (*left.shape, right.shape[1])
            self.counts[shape] = self.counts.get(shape, 0) + 1
        return func(*args, **(kwargs or {}))


def count_operations(work, stages=None):
    """What products and convolutions do in one call of ``work``, which gets a clock to switch.

    Args:
        work: called once, with the clock; not in inference mode, which would hide the products.
        stages: {module: label}, whose labels are pushed and popped.

    Returns:
        {label: floating-point operations, two per multiply-add}, and {(M, K, N): count} of the
        matrix products under the label "encoder".
    """
    counter = FlopCounterMode(display=False, custom_mapping=_ATTENTION)
    clock = Clock(now=counter.get_total_flops)
    products = _Products(lambda: "encoder" in clock.labels)
    with timed_modules(stages or {}, clock), counter, products:
        clock.start()
        work(clock)
    return sum_spans(clock.stop()), products.counts


class Gemm:
    """The rate of matrix products at an encoder's shapes.

    Args:
        products: of :func:`count_operations`.
        dtype, device: of the factors.
    """

    def __init__(self, products, dtype, device):
        self.device, self.cases = device, []
        operations = {shape: 2.0 * count * m * k * n for shape, count in products.items()
                      for m, k, n in [shape]}  # fmt: skip
        total = sum(operations.values())
        for (m, k, n), amount in operations.items():
            if amount >= _SMALLEST_SHARE * total:
                factors = (torch.randn(s, k, dtype=dtype, device=device) for s in (m, n))
                # As often as they are in the encoder, and as often as a clock can see.
                repeats = min(_REPEATS, max(1, round(_OPERATIONS / (2.0 * m * k * n))))
                self.cases.append((*factors, amount, repeats, 2.0 * m * k * n * repeats))
        self.rates = []

    def measure(self):
        """One more measurement of the rate."""
        seconds = total = 0.0
        for x, weight, amount, repeats, operations in self.cases:
            wall, _ = seconds_of(lambda: [F.linear(x, weight) for _ in range(repeats)], self.device)
            seconds += wall * amount / operations
            total += amount
        if self.cases:
            self.rates.append(total / seconds)

    @property
    def rate(self):
        """Operations per second, the median; None if there was no product."""
        return statistics.median(self.rates) if self.rates else None


def memory_rate(device):
    """Bytes per second that a copy reads and writes, the best of five."""
    source = torch.zeros(_BANDWIDTH_BYTES // 4, device=device)
    target = torch.empty_like(source)
    times = [seconds_of(lambda: target.copy_(source), device)[0] for _ in range(6)]
    return 2 * _BANDWIDTH_BYTES / min(times[1:])


@contextlib.contextmanager
def _stand_ins():
    """Names that torchscale imports and does not call in a pass, where they are not installed.

    It asks for exact old versions of fairscale and timm, which do not build everywhere.
    """
    names = {"fairscale.nn": ("checkpoint_wrapper", "wrap"), "timm.models.layers": ("drop_path",)}
    made = []
    for name, attributes in names.items():
        parts = name.split(".")
        if importlib.util.find_spec(parts[0]) is not None:
            continue
        for end in range(1, len(parts) + 1):
            made.append(".".join(parts[:end]))
            sys.modules[made[-1]] = types.ModuleType(made[-1])
        for attribute in attributes:
            # Layers are wrapped by "wrap", of one layer it is the layer.
            setattr(sys.modules[name], attribute, lambda x, *_, **__: x)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


def torchscale_encoder(encoder, images, text_ids):
    """Callables {name: pass} of torchscale's BEiT3 of the same size, {} without torchscale.

    Args:
        encoder: the encoder of the model; only a BEiT3 has a counterpart.
        images: float (N, 3, H, W), square.
        text_ids: int64 (N, L).
    """
    height, width = images.shape[-2:]
    is_known = type(encoder).__name__ == "BEiT3" and height == width
    if not is_known or importlib.util.find_spec("torchscale") is None:
        return {}
    with _stand_ins():
        from torchscale.architecture.config import EncoderConfig
        from torchscale.model.BEiT3 import BEiT3

    first = encoder.encoder.layers[0]
    config = EncoderConfig(
        img_size=height,
        patch_size=encoder.patch_size,
        vocab_size=encoder.vocab_size,
        multiway=True,
        no_output_layer=True,
        encoder_embed_dim=encoder.embed_dim,
        encoder_attention_heads=first.num_heads,
        encoder_ffn_embed_dim=first.vision.fc1.out_features,
        encoder_layers=len(encoder.encoder.layers),
    )
    model = BEiT3(config).eval().to(images.device)
    padded = max(_RELEASED_TEXT, text_ids.shape[1])

    def run(length):
        ids = F.pad(text_ids, (0, length - text_ids.shape[1]), value=1)
        mask = torch.arange(length, device=ids.device)[None] >= text_ids.shape[1]
        mask = mask.expand(len(ids), -1) if length > text_ids.shape[1] else None
        return model(textual_tokens=ids, visual_tokens=images, text_padding_position=mask)

    return {
        f"torchscale, text padded to {padded}": lambda: run(padded),
        "torchscale, equal text": lambda: run(text_ids.shape[1]),
    }
