"""Our encoder computes what ``torchscale.model.BEiT3`` computes, without looking at padding.

torchscale's own code runs, as PyPI has it. Of its two requirements it only needs a name each in
evaluation, so that stand-ins do; neither fairscale nor timm has to be installed.
"""

import os
import sys
import types

import pytest
import torch

from igvg_d2.checkpoint import convert_beit3
from igvg_d2.checkpoint.instancevg_conversion import apply_rules
from igvg_d2.checkpoint.instancevg_keys import ENCODERS, ModelSize, encoder_rules
from igvg_d2.modeling.backbone import BEiT3

TOLERANCE = 1e-4
LENGTHS = (3, 17, 50)
MAX_TOKENS = 50
# Minutes and 6 GiB of memory; the whole of both encoders at the size of the release.
FULL_SIZE = pytest.mark.skipif(
    "IGVG_FULL_SIZE_TESTS" not in os.environ, reason="set IGVG_FULL_SIZE_TESTS=1 to run it"
)


def not_called(*args, **kwargs):
    raise AssertionError("the encoder must be compared without this")


def drop_path(x, probability, training):
    """timm's stochastic depth, in evaluation."""
    return not_called() if training else x


@pytest.fixture(scope="module")
def torchscale_class():
    """(BEiT3, EncoderConfig) of torchscale."""
    pytest.importorskip("torchscale")
    stand_ins = {
        "fairscale.nn": {"checkpoint_wrapper": not_called, "wrap": lambda module: module},
        "timm.models.layers": {"drop_path": drop_path},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, attributes in stand_ins.items():
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                parent = ".".join(parts[:end])
                if parent not in sys.modules:
                    patch.setitem(sys.modules, parent, types.ModuleType(parent))
            for attribute, value in attributes.items():
                patch.setattr(sys.modules[name], attribute, value, raising=False)
        from torchscale.architecture.config import EncoderConfig
        from torchscale.model.BEiT3 import BEiT3 as TorchscaleBEiT3

        yield TorchscaleBEiT3, EncoderConfig


def build_pair(torchscale_class, width, depth, side):
    """The same random encoder twice, theirs and ours, in evaluation mode."""
    _, ffn_dim, num_heads = ENCODERS[width]
    model_class, config_class = torchscale_class
    config = config_class(
        img_size=side, patch_size=16, vocab_size=64010, multiway=True, layernorm_embedding=False,
        normalize_output=True, no_output_layer=True, drop_path_rate=0.1, encoder_layers=depth,
        encoder_embed_dim=width, encoder_attention_heads=num_heads, encoder_ffn_embed_dim=ffn_dim,
    )  # fmt: skip
    theirs = model_class(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise / (parameter.numel() / len(parameter)) ** 0.5)
            else:
                parameter.copy_(0.1 * noise + float(name.endswith(".weight")))
    state = theirs.state_dict()
    if depth == ENCODERS[width][0]:
        converted = convert_beit3({"model": state}, (side, side))[0]
    else:
        size = ModelSize(width, depth, ffn_dim, num_heads, 0, (side, side))
        beit3 = {f"beit3.{key}": tensor for key, tensor in state.items()}
        converted = apply_rules(encoder_rules(size, old="beit3"), beit3)
    with torch.device("meta"):
        ours = BEiT3(
            embed_dim=width, depth=depth, num_heads=num_heads, ffn_dim=ffn_dim, patch_size=16,
            pretrain_image_size=(side, side), vocab_size=64010, max_text_positions=1022,
            drop_path=0.1,
        )  # fmt: skip
    converted = {key.removeprefix("backbone."): tensor for key, tensor in converted.items()}
    ours.load_state_dict(converted, strict=True, assign=True)
    return theirs, ours.eval()


@pytest.mark.parametrize(
    "width, depth, side",
    [
        pytest.param(768, 12, 160, id="base"),
        pytest.param(1024, 2, 160, id="large-2-layers"),
        pytest.param(768, 12, 320, marks=FULL_SIZE, id="base-320"),
        pytest.param(1024, 24, 320, marks=FULL_SIZE, id="large-320"),
    ],
)
@torch.no_grad()
def test_real_tokens_are_those_of_torchscale(torchscale_class, assert_within, width, depth, side):
    theirs, ours = build_pair(torchscale_class, width, depth, side)
    generator = torch.Generator().manual_seed(1)
    n = len(LENGTHS)
    images = torch.randn(n, 3, side, side, generator=generator)
    text_ids = torch.randint(4, 64002, (n, MAX_TOKENS), generator=generator)
    padding = torch.arange(MAX_TOKENS)[None] >= torch.tensor(LENGTHS)[:, None]
    text_ids[padding] = 1
    expected = theirs(text_ids, images, padding)["encoder_out"]
    expected_image, expected_text = expected[:, :-MAX_TOKENS], expected[:, -MAX_TOKENS:]

    def largest_difference(features, sample, rows):
        image = features.image["last_feat"][rows].flatten(1).T
        image = torch.cat([features.pooled[rows, None].T.reshape(1, -1), image])
        length = LENGTHS[sample]
        return max(
            (image - expected_image[sample]).abs().max().item(),
            (features.text[rows, :length] - expected_text[sample, :length]).abs().max().item(),
        )

    batch = ours(images, text_ids, padding)
    mixed = max(largest_difference(batch, sample, sample) for sample in range(n))
    single = 0.0
    for sample, length in enumerate(LENGTHS):
        one = slice(sample, sample + 1)
        # As the model calls it for one sample: no padding at all, and no attention mask.
        alone = ours(images[one], text_ids[one, :length], padding[one, :length], False)
        single = max(single, largest_difference(alone, sample, 0))
        same_image = batch.image["last_feat"][one] - alone.image["last_feat"]
        same_text = batch.text[one, :length] - alone.text
        assert max(same_image.abs().max(), same_text.abs().max()) <= TOLERANCE
    name = f"torchscale, width {width}, {depth} layers, {side} pixels"
    assert_within(f"{name}, mixed batch", mixed, TOLERANCE)
    assert_within(f"{name}, single samples", single, TOLERANCE)
