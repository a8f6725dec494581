"""What the encoder computes again in the backward pass: the same bits in less memory."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from igvg_d2.modeling.backbone.multiway import MultiwayEncoder
from igvg_d2.modeling.meta_arch import optimize_for_inference

DEPTH, PRODUCTS = 3, 8  # layers, and products of a layer, of both modalities


class ProductCounter(TorchDispatchMode):
    """Counts linear layers of the forward kind."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.addmm.default
        return func(*args, **(kwargs or {}))


def train_once(drop_path=0.0, checkpointing=False, change=lambda encoder: encoder):
    """Gradients, bytes that autograd keeps, and products that the backward pass computes again."""
    torch.manual_seed(0)
    encoder = MultiwayEncoder(32, DEPTH, 4, 128, drop_path, checkpointing).train()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.1)
    change(encoder)
    kept, known = {}, {p.untyped_storage().data_ptr() for p in encoder.parameters()}

    def pack(x):
        if x.untyped_storage().data_ptr() not in known:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    image, text = torch.randn(4, 50, 32, requires_grad=True), torch.randn(4, 3, 32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        outputs = encoder(image, text, None)
    with ProductCounter() as counter:
        sum(x.square().sum() for x in outputs).backward()
    gradients = [image.grad, *(p.grad for p in encoder.parameters())]
    return gradients, sum(kept.values()), counter.count


def keep_everything(encoder):
    for layer in encoder.layers:
        assert layer.vision.recompute and not layer.text.recompute
        layer.vision.recompute = False


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_norms_and_gelu_are_computed_again(drop_path):
    expected, all_bytes, products = train_once(drop_path, change=keep_everything)
    assert products == 0
    for change in (lambda encoder: encoder, optimize_for_inference):
        found, fewer_bytes, products = train_once(drop_path, change=change)
        assert all(torch.equal(a, b) for a, b in zip(found, expected))
        assert products == 0
        assert fewer_bytes < 0.65 * all_bytes


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_checkpointing_computes_all_but_one_product_again(drop_path):
    expected, all_bytes, _ = train_once(drop_path, change=keep_everything)
    found, fewer_bytes, products = train_once(drop_path, checkpointing=True)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    # Stochastic depth keeps a factor, from the second layer on, that comes after the last product.
    assert products == DEPTH * (PRODUCTS - 1) + (0 if drop_path == 0 else DEPTH - 1)
    assert fewer_bytes < 0.2 * all_bytes
