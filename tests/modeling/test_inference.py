"""A model that is optimized for inference: the same answers, weights and training."""

import copy
import io
import threading

import pytest
import torch
from detectron2.layers import Conv2d
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from igvg_d2.modeling.meta_arch import inference, optimize_for_inference
from igvg_d2.modeling.transformer.deformable_decoder import MSDeformAttn
from igvg_d2.testing import random_batch, tiny_cfg
from tests.modeling.test_igvg import VARIANTS

# 32 x 24 cells at 1/4: convolutions there are Winograd's, those of other levels are not.
SIZE = (128, 96)
CASES = {**VARIANTS, "two_norms": ["MODEL.PIXEL_DECODER.NORM", "GN"]}


def make_model(opts=()):
    """As after some training: nothing is zero, statistics are not those of the start."""
    torch.manual_seed(0)
    model = build_model(tiny_cfg(["MODEL.PIXEL_DECODER.CONV_DIMS", [32, 32, 32], *opts]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def inputs():
    return random_batch([1, 0, 3], SIZE, [7, 3, 9])


def outputs(model, batch):
    """Everything that a model says before post-processing."""
    images, text = model.preprocess_image(batch), model.preprocess_text(batch)
    return model.predict(model.backbone(images, *text))[0]


def assert_close(found, expected):
    """Within 1e-4 of the largest value of each output."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if value is not None:
            bound = 1e-4 * float(value.abs().max())
            assert torch.allclose(found[key], value, rtol=0, atol=bound), key


@pytest.fixture
def fast_calls(monkeypatch):
    """How often modules found that nothing but an answer is wanted."""
    found, is_fast = [], inference._is_fast
    monkeypatch.setattr(
        inference, "_is_fast", lambda *args: found.append(is_fast(*args)) or found[-1]
    )
    return found


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_equal(name, fast_calls):
    model = make_model(CASES[name])
    fast = copy.deepcopy(model).optimize_for_inference()
    with torch.inference_mode():
        expected, found = outputs(model, inputs()), outputs(fast, inputs())
        answers = model(inputs()), fast(inputs())
    assert all(fast_calls) and fast_calls
    assert_close(found, expected)
    for one, other in zip(*answers):
        assert one["no_target"] == other["no_target"]
        assert (one["mask"] != other["mask"]).float().mean() < 1e-2
        if "instances" in one:
            assert torch.allclose(one["candidates"].scores, other["candidates"].scores, atol=1e-4)


def test_what_is_replaced():
    model = make_model().optimize_for_inference()
    kinds = [type(module) for module in model.modules()]
    for kind, fast in inference._CLASSES.items():
        assert fast in kinds and kind not in kinds and issubclass(fast, kind)
    assert optimize_for_inference(model) is model and [type(m) for m in model.modules()] == kinds
    other = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))
    assert str(optimize_for_inference(other)) == str(nn.Sequential(nn.Conv2d(3, 3, 3), other[1]))


@pytest.mark.parametrize("has_nnpack", [True, False])
def test_convolutions_of_large_maps_are_nnpacks(has_nnpack, monkeypatch):
    monkeypatch.setattr(torch, "_nnpack_available", lambda: has_nnpack)
    sizes, convolve = [], torch._nnpack_spatial_convolution
    monkeypatch.setattr(
        torch,
        "_nnpack_spatial_convolution",
        lambda x, *args: sizes.append(tuple(x.shape)) or convolve(x, *args),
    )
    with torch.inference_mode():
        make_model().optimize_for_inference()(inputs())
    # The neck's output and two of the pixel decoder, for each of 3 samples; p3 has 16 x 12 cells.
    of_p2 = [(1, 32, 32, 24)] * 3
    wanted = of_p2 + [(1, 64, 32, 24)] * 3 + of_p2
    assert sizes == (wanted if has_nnpack else [])


def test_without_onednn_the_others_are_replaced(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    model = make_model()
    fast = copy.deepcopy(model).optimize_for_inference()
    kinds = {type(module) for module in fast.modules()}
    assert nn.Linear in kinds and not {inference._Linear, inference._Expert} & kinds
    with torch.inference_mode():
        expected, found = outputs(model, inputs()), outputs(fast, inputs())
    assert_close(found, expected)


def test_samples_outside_of_a_map_count_as_zero():
    torch.manual_seed(0)
    plain = MSDeformAttn(16, num_levels=2, num_heads=4, num_points=3).eval()
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    fast = optimize_for_inference(copy.deepcopy(plain))
    memory, query = torch.randn(2, 6 * 4 + 3 * 2, 16), torch.randn(2, 5, 16)
    points = torch.rand(2, 5, 2) * 1.4 - 0.2
    with torch.inference_mode():
        expected, found = (m(query, points, memory, [(6, 4), (3, 2)]) for m in (plain, fast))
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_a_norm_without_weights_is_not_folded():
    plain = Conv2d(3, 8, 3, padding=1, norm=nn.BatchNorm2d(8, affine=False)).eval()
    fast = optimize_for_inference(copy.deepcopy(plain))
    with torch.inference_mode():
        x = torch.rand(2, 3, 24, 24)
        assert_close({"x": fast(x)}, {"x": plain(x)})


def test_weights_and_training_stay_as_they_are(fast_calls):
    model = make_model()
    fast = copy.deepcopy(model).optimize_for_inference()
    with torch.inference_mode():
        fast(inputs())
    file = io.BytesIO()
    torch.save(fast.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    fast_calls.clear()
    gradients = []
    for one in (model, fast):
        torch.manual_seed(1)
        with EventStorage():
            sum(one.train()(inputs()).values()).backward()
        gradients.append([p.grad for p in one.parameters()])
    assert not any(fast_calls)
    assert all(torch.equal(a, b) for a, b in zip(*gradients))
    for one in (model, fast):
        torch.manual_seed(1)
        with torch.no_grad():
            # Running statistics of BatchNorm are made anew like this.
            one(inputs())
    assert not any(fast_calls)
    buffers = [list(one.buffers()) for one in (model, fast)]
    assert all(torch.equal(a, b) for a, b in zip(*buffers))


def test_new_weights_count_at_once():
    fast = make_model().optimize_for_inference()
    other = make_model(["MODEL.PIXEL_DECODER.NORM", "BN"])
    for parameter in other.parameters():
        # Without PyTorch's notice of a change.
        parameter.data *= 1.1
    with torch.inference_mode():
        fast(inputs())
        fast.load_state_dict(other.state_dict())
        expected, found = outputs(other, inputs()), outputs(fast, inputs())
    assert_close(found, expected)


def test_other_types_compute_as_before(fast_calls):
    model = make_model()
    fast = copy.deepcopy(model).optimize_for_inference()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected, found = outputs(model, inputs()), outputs(fast, inputs())
    assert fast_calls and not any(fast_calls)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    # As for attention maps by gradients: of an answer, with a graph.
    fast.eval()
    assert outputs(fast, inputs())["sem_seg"].requires_grad


def test_threads_share_a_model():
    fast, answers = make_model().optimize_for_inference(), {}
    sizes = [(128, 96), (96, 128), (64, 64)]

    def ask(number):
        batch = random_batch([1], sizes[number % 3], [5])
        with torch.inference_mode():
            answers[number] = [outputs(fast, batch)["sem_seg"] for _ in range(3)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == list(range(6))
    for number, found in answers.items():
        assert all(torch.equal(x, answers[number % 3][0]) for x in found)
