"""Small models, batches and contract checks for tests, also of projects outside this package.

A contract check takes a freshly built component and raises AssertionError with a reason when the
component would not work inside IGVG. See the registries' docstrings for the contracts in words.
"""

from contextlib import contextmanager
from typing import Dict, Iterator, List, Sequence, Tuple

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.structures import BitMasks, Boxes, Instances
from torch import nn

from igvg_d2.config import add_igvg_config
from igvg_d2.data import model_input
from igvg_d2.modeling import (
    GroundingQueries,
    GroundingTargets,
    VisionLanguageBackbone,
    VLFeatures,
)


def tiny_cfg(opts: Sequence = ()) -> CfgNode:
    """Config of a model that runs in milliseconds: 64 x 64 pixels, 4 x 4 tokens, width 32.

    Args:
        opts: KEY, VALUE, KEY, VALUE, ... overrides.
    """
    cfg = get_cfg()
    add_igvg_config(cfg)
    small = {
        "MODEL.META_ARCHITECTURE": "IGVG",
        "MODEL.BACKBONE.NAME": "BEiT3",
        "MODEL.DEVICE": "cpu",
        "MODEL.BEIT3.EMBED_DIM": 32,
        "MODEL.BEIT3.DEPTH": 2,
        "MODEL.BEIT3.NUM_HEADS": 2,
        "MODEL.BEIT3.FFN_DIM": 48,
        "MODEL.BEIT3.VOCAB_SIZE": 64,
        "MODEL.BEIT3.MAX_TEXT_POSITIONS": 24,
        "MODEL.BEIT3.PRETRAIN_IMAGE_SIZE": (64, 64),
        "MODEL.IGVG.HIDDEN_DIM": 32,
        "MODEL.NECK.OUT_CHANNELS": [32, 32, 32, 32],
        "MODEL.PIXEL_DECODER.CONV_DIMS": [32, 32, 16],
        "MODEL.QUERY_GENERATOR.NUM_OBJECT_QUERIES": 4,
        "MODEL.QUERY_GENERATOR.NHEADS": 2,
        "MODEL.GROUNDING_HEAD.NHEADS": 2,
        "MODEL.GROUNDING_HEAD.DIM_FEEDFORWARD": 32,
        "MODEL.GROUNDING_HEAD.DEC_LAYERS": 2,
        "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
        "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
        "INPUT.FORMAT": "RGB",
        "INPUT.IMAGE_SIZE": (64, 64),
    }
    cfg.merge_from_list([x for item in small.items() for x in item])
    cfg.merge_from_list(list(opts))
    return cfg


def random_batch(
    num_targets: Sequence[int], size=(64, 64), lengths: Sequence[int] = (), seed: int = 0
) -> List[Dict]:
    """Training inputs in the mapper's format, with random images, texts and box-shaped masks.

    Args:
        num_targets: targets of each sample; 0 for no target.
        size: (H, W) in pixels.
        lengths: tokens of each text; 5, 6, 7, ... by default.
        seed: of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    batch = []
    for i, count in enumerate(num_targets):
        length = lengths[i] if lengths else 5 + i
        corner = torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) / 2
        boxes = torch.cat([corner, corner + 16], dim=1).round()
        masks = torch.zeros(count, height, width, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist()):
            mask[y1:y2, x1:x2] = True
        instances = Instances(size)
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.zeros(count, dtype=torch.int64)
        instances.gt_masks = BitMasks(masks)
        instances.gt_has_mask = torch.ones(count, dtype=torch.bool)
        image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
        text_ids = torch.randint(4, 60, (length,), generator=generator)
        sample = model_input(image, text_ids, f"sample {i}", tuple(size), tuple(size))
        sample.update(sample_id=str(i), file_name="", image_id=i, instances=instances)
        batch.append(sample)
    return batch


def random_targets(
    num_targets: Sequence[int], size: Tuple[int, int] = (64, 64), seed: int = 0
) -> GroundingTargets:
    """Ground truth of :func:`random_batch` as the components receive it.

    Args:
        num_targets, size, seed: see :func:`random_batch`.
    """
    batch = random_batch(num_targets, size, seed=seed)
    return GroundingTargets.from_instances([x["instances"] for x in batch], torch.device("cpu"))


def random_vl_features(
    dim: int, grid: Tuple[int, int] = (4, 6), lengths: Sequence[int] = (3, 9, 5), seed: int = 0
) -> VLFeatures:
    """Features of a backbone after the projections; padded tokens hold noise, not zeros.

    Args:
        dim: D.
        grid: (Hi, Wi) of "last_feat".
        lengths: valid tokens of each text.
        seed: of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    n, longest = len(lengths), max(lengths)
    return VLFeatures(
        image={"last_feat": torch.randn(n, dim, *grid, generator=generator)},
        text=torch.randn(n, longest, dim, generator=generator),
        text_padding_mask=torch.arange(longest)[None] >= torch.tensor(lengths)[:, None],
        pooled=torch.randn(n, dim, generator=generator),
    )


def assert_losses_contract(
    mixed: Dict[str, torch.Tensor], empty: Dict[str, torch.Tensor], without_targets: Dict
) -> None:
    """Check the losses of a component.

    Args:
        mixed: losses of a batch that has samples with and without targets.
        empty: losses of a batch without any target.
        without_targets: losses of a call with ``targets=None``.
    """
    assert without_targets == {}, f"losses without targets: {sorted(without_targets)}"
    assert mixed.keys() == empty.keys(), (
        f"loss keys must not depend on the data: {sorted(mixed)} with targets, {sorted(empty)} "
        "without any"
    )
    for key, value in [*mixed.items(), *empty.items()]:
        assert key.startswith("loss_"), f"loss key {key!r} must start with 'loss_'"
        assert value.ndim == 0, f"{key} must be a scalar, has shape {tuple(value.shape)}"
        assert value.dtype == torch.float32, f"{key} must be float32, is {value.dtype}"
        assert torch.isfinite(value), f"{key} is {float(value)}"


def assert_all_parameters_used(module: nn.Module, total: torch.Tensor) -> None:
    """Check that every parameter is in the graph of ``total``; DDP fails otherwise.

    Args:
        module: its gradients are reset.
        total: float scalar computed by ``module`` from losses and outputs.
    """
    module.zero_grad()
    total.backward()
    unused = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused, f"parameters without a gradient: {unused}"


def assert_backbone_contract(backbone: VisionLanguageBackbone) -> None:
    """Check a backbone on non-square images and texts of different lengths, and its losses.

    Args:
        backbone: freshly built, in training mode; knows 60 token ids at least.
    """
    assert isinstance(backbone, VisionLanguageBackbone)
    assert backbone.vocab_size >= 60, f"vocab_size is {backbone.vocab_size}, not 60 or more"
    height, width = 4 * backbone.size_divisibility, 6 * backbone.size_divisibility
    images = torch.randn(2, 3, height, width)
    text_ids = torch.randint(4, 60, (2, 9))
    padding = torch.arange(9)[None] >= torch.tensor([[4], [9]])
    features = backbone(images, text_ids, padding, True)
    shapes = backbone.output_shape()
    assert "last_feat" in shapes and features.image.keys() == shapes.keys()
    for name, shape in shapes.items():
        expected = (2, shape.channels, height // shape.stride, width // shape.stride)
        assert tuple(features.image[name].shape) == expected, f"{name}: not {expected}"
    assert tuple(features.text.shape) == (2, 9, backbone.embed_dim)
    assert tuple(features.pooled.shape) == (2, backbone.embed_dim)
    assert torch.equal(features.text_padding_mask, padding)
    # Without pooled, which heads may leave unread.
    total = features.text.sum() + sum(x.sum() for x in features.image.values())
    assert_all_parameters_used(backbone, total)
    mixed, empty = (
        backbone.losses(features, random_batch(counts, (height, width)), targets)
        for counts in ([2, 0], [0, 0])
        for targets in [random_targets(counts, (height, width))]
    )
    assert_losses_contract(mixed, empty, {})
    with _evaluation_mode(backbone):
        together = backbone(images, text_ids, padding, True)
        alone = backbone(images[:1], text_ids[:1, :4], padding[:1, :4], False)
    for name in shapes:
        _assert_close(together.image[name][:1], alone.image[name], f"{name} depends on padding")
    _assert_close(together.text[:1, :4], alone.text, "text depends on padding")
    _assert_close(together.pooled[:1], alone.pooled, "pooled depends on padding")


def assert_neck_contract(
    neck: nn.Module, input_shape: Dict[str, ShapeSpec], grid: Tuple[int, int] = (4, 6)
) -> None:
    """Check a neck.

    Args:
        neck: freshly built.
        input_shape: what it was built for; contains "last_feat".
        grid: (rows, columns) of the token grid, even numbers.
    """
    size = [cells * input_shape["last_feat"].stride for cells in grid]
    outputs = neck(_random_maps(input_shape, size))
    shapes = neck.output_shape()
    assert list(outputs) == list(shapes) == ["p2", "p3", "p4", "p5"], f"levels: {list(outputs)}"
    _assert_maps(outputs, shapes, size)
    assert_all_parameters_used(neck, sum(x.square().sum() for x in outputs.values()))


def assert_pixel_decoder_contract(
    pixel_decoder: nn.Module, input_shape: Dict[str, ShapeSpec]
) -> None:
    """Check a pixel decoder.

    Args:
        pixel_decoder: freshly built.
        input_shape: the neck's ``output_shape()`` it was built for.
    """
    size = [2 * input_shape["p5"].stride, 3 * input_shape["p5"].stride]
    output = pixel_decoder(_random_maps(input_shape, size))
    _assert_maps({"mask features": output}, {"mask features": pixel_decoder.output_shape()}, size)
    assert pixel_decoder.output_shape().stride == input_shape["p2"].stride
    assert_all_parameters_used(pixel_decoder, output.sum())


def assert_query_generator_contract(generator: nn.Module, dim: int, num_queries: int) -> None:
    """Check a query generator: shapes, ranges, losses, gradients, independence of padding.

    Args:
        generator: freshly built, in training mode.
        dim: D.
        num_queries: Q.
    """
    features = random_vl_features(dim)
    features.text.requires_grad_()
    queries, mixed = generator(features, random_targets([2, 0, 1], (64, 96)))
    n = len(features.text)
    assert tuple(queries.features.shape) == (n, num_queries, dim)
    assert tuple(queries.reference_points.shape) == (n, num_queries, 2)
    for name in ("reference_points", "attention_map"):
        value = getattr(queries, name)
        if value is not None:
            in_range = (value >= 0).all() and (value <= 1).all()
            assert in_range, f"{name} must lie in [0, 1]: {value.min():.3g} to {value.max():.3g}"
    total = queries.features.sum() + queries.reference_points.sum() + sum(mixed.values())
    assert_all_parameters_used(generator, total)
    assert features.text.grad is not None, "text has no gradient: see QUERY_GENERATOR_REGISTRY"
    empty = generator(features, random_targets([0, 0, 0], (64, 96)))[1]
    with _evaluation_mode(generator):
        together, without_targets = generator(features)
        alone = generator(_first_sample(features))[0]
    assert_losses_contract(mixed, empty, without_targets)
    _assert_close(together.features[:1], alone.features, "features depend on padding")
    _assert_close(together.reference_points[:1], alone.reference_points, "points depend on padding")


def assert_grounding_head_contract(
    head: nn.Module, input_shape: Dict[str, ShapeSpec], dim: int, mask_dim: int
) -> None:
    """Check a grounding head: shapes, ranges, losses and gradients.

    Args:
        head: freshly built, in training mode.
        input_shape: the neck's ``output_shape()`` it was built for.
        dim: D.
        mask_dim: channels of the mask features.
    """
    num_queries, size = 5, (2 * input_shape["p5"].stride, 3 * input_shape["p5"].stride)
    mask_size = tuple(side // input_shape["p2"].stride for side in size)
    features = _random_maps(input_shape, size, batch=3)
    mask_features = torch.randn(3, mask_dim, *mask_size)
    queries = GroundingQueries(torch.randn(3, num_queries, dim), torch.rand(3, num_queries, 2))
    outputs, mixed = head(queries, features, mask_features, random_targets([2, 0, 7], size))
    assert outputs.keys() >= {"pred_logits", "pred_boxes", "pred_masks", "pred_points"}
    assert tuple(outputs["pred_logits"].shape) == (3, num_queries, 2)
    assert tuple(outputs["pred_boxes"].shape) == (3, num_queries, 4)
    assert tuple(outputs["pred_points"].shape) == (3, num_queries, 2)
    if outputs["pred_masks"] is not None:
        assert tuple(outputs["pred_masks"].shape) == (3, num_queries, *mask_size)
    boxes = outputs["pred_boxes"]
    assert (boxes >= 0).all() and (boxes <= 1).all(), "pred_boxes must lie in [0, 1]"
    assert_all_parameters_used(head, sum(mixed.values()))
    empty = head(queries, features, mask_features, random_targets([0, 0, 0], size))[1]
    assert_losses_contract(mixed, empty, head(queries, features, mask_features)[1])


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the mode is restored."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)


def _first_sample(features: VLFeatures) -> VLFeatures:
    """The first sample of a batch without its padding."""
    length = int((~features.text_padding_mask[0]).sum())
    return VLFeatures(
        image={name: x[:1] for name, x in features.image.items()},
        text=features.text[:1, :length],
        text_padding_mask=features.text_padding_mask[:1, :length],
        pooled=features.pooled[:1],
    )


def _random_maps(shapes: Dict[str, ShapeSpec], size, batch: int = 2) -> Dict[str, torch.Tensor]:
    """float (batch, Ci, Hi, Wi) for an image of ``size`` (H, W)."""
    return {
        name: torch.randn(batch, s.channels, size[0] // s.stride, size[1] // s.stride)
        for name, s in shapes.items()
    }


def _assert_maps(maps, shapes, size) -> None:
    """Channels and sizes of maps agree with their ``ShapeSpec``."""
    for name, shape in shapes.items():
        expected = (shape.channels, size[0] // shape.stride, size[1] // shape.stride)
        found = tuple(maps[name].shape[1:])
        assert found == expected, f"{name}: shape {found}, output_shape() says {expected}"


def _assert_close(a: torch.Tensor, b: torch.Tensor, message: str) -> None:
    """Equal up to rounding."""
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=lambda text: f"{message}: {text}")
