"""Frozen parts, and BatchNorm over all processes."""

import pytest
import torch
from detectron2.layers import get_norm
from detectron2.modeling import build_model
from torch import nn

import igvg_d2.modeling  # noqa: F401
from igvg_d2.modeling.training_options import SyncBatchNorm, replace_sync_batch_norm
from igvg_d2.testing import random_batch, tiny_cfg


def make_layer(kind="BN"):
    """A layer with weights that are not those of the start."""
    torch.manual_seed(0)
    layer = replace_sync_batch_norm(get_norm(kind, 3))
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


def step(layer, x):
    """Output, gradients and buffers of one training step with a loss that mixes all elements."""
    x = x.clone().requires_grad_()
    y = layer(x)
    y.square().mul(torch.linspace(0.5, 1.5, y.shape[-1])).sum().backward()
    named = [*layer.named_buffers(), *((f"{n}.grad", p.grad) for n, p in layer.named_parameters())]
    return {"y": y.detach(), "x.grad": x.grad, **{name: value.clone() for name, value in named}}


def test_two_cpu_processes_equal_one_with_the_whole_batch(in_two_processes):
    x = 5 + 2 * torch.randn(8, 3, 4, 5, generator=torch.Generator().manual_seed(1))

    def work(rank):
        layer = make_layer("SyncBN")
        # PyTorch's own layer is refused here.
        torch.nn.parallel.DistributedDataParallel(layer)
        return {k: v.numpy() for k, v in step(layer, x.chunk(2)[rank]).items()}

    expected = step(make_layer(), x)
    parts = in_two_processes(work)
    for name, value in expected.items():
        found = [torch.from_numpy(parts[rank][name]) for rank in (0, 1)]
        if name in ("y", "x.grad"):
            found = torch.cat(found)
        elif name.endswith(".grad"):
            found = found[0] + found[1]
        else:
            torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
            found = found[0]
        torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-5, msg=name)


def test_one_process_is_plain_batch_norm():
    x = torch.randn(4, 3, 5, 6)
    expected = step(make_layer(), x)
    layer = make_layer("SyncBN")
    assert isinstance(layer, SyncBatchNorm)
    found = step(layer, x)
    for name in ("y", "x.grad", "running_mean", "running_var", "weight.grad", "bias.grad"):
        torch.testing.assert_close(found[name], expected[name])
    plain, half = make_layer().eval(), x.bfloat16()
    torch.testing.assert_close(make_layer("SyncBN").eval()(half), plain(half))


@pytest.mark.parametrize(
    "opts, expected",
    [
        ([], {"BatchNorm2d"}),
        (["MODEL.PIXEL_DECODER.NORM", "SyncBN"], {"SyncBatchNorm"}),
    ],
)
def test_models_train_with_it_on_the_cpu(opts, expected):
    model = build_model(tiny_cfg(opts))
    plain = build_model(tiny_cfg())
    kinds = (nn.modules.batchnorm._BatchNorm,)
    found = [m for m in model.modules() if isinstance(m, kinds)]
    assert {type(m).__name__ for m in found} == expected
    assert not any(type(m) is nn.SyncBatchNorm for m in found)
    assert model.state_dict().keys() == plain.state_dict().keys()
    sum(model(random_batch([1, 0])).values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_get_norm_alone_would_stop_on_the_cpu():
    """Why layers of this name are exchanged: the original needs a GPU in several processes."""
    assert type(get_norm("SyncBN", 3)) is nn.SyncBatchNorm
    replaced = replace_sync_batch_norm(nn.Sequential(get_norm("SyncBN", 3), nn.BatchNorm2d(3)))
    assert [type(layer) for layer in replaced] == [SyncBatchNorm, nn.BatchNorm2d]


def test_frozen_parts_do_not_move():
    prefixes = ["backbone.vision_embed.", "pixel_decoder.stages.0"]
    model = build_model(tiny_cfg(["MODEL.FREEZE", prefixes]))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sum(model(random_batch([1, 0])).values()).backward()
    optimizer.step()
    model.eval()
    model.train()
    sum(model(random_batch([1, 0])).values()).backward()
    for name, value in model.state_dict().items():
        frozen = name.startswith(tuple(prefixes))
        if frozen:
            assert torch.equal(value, before[name]), name
    moved = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
    assert any("pixel_decoder" in k and "running_mean" in k for k in moved)
    assert any(k.startswith("backbone.encoder") for k in moved)


def test_a_prefix_without_a_parameter_is_named():
    with pytest.raises(ValueError, match="MODEL.FREEZE: no parameter begins with 'encoder.'.*neck"):
        build_model(tiny_cfg(["MODEL.FREEZE", ["encoder."]]))
