"""What makes loading fast changes no bit; what may change one is an option with a bound."""

import math

import cv2
import numpy as np
import pytest
from detectron2.config import get_cfg
from PIL import Image

from igvg_d2.config import add_igvg_config
from igvg_d2.data import GroundingDatasetMapper
from igvg_d2.data.resize import (
    _EXACT_SCALES,
    AntialiasedResize,
    FastResize,
    ReleasedResize,
    build_resize,
)
from igvg_d2.data.tokenizer import ShapesTokenizer
from igvg_d2.io.image import read_image, read_reduced_image


def noise(height, width, rng):
    """The hardest image for rounding."""
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def pil_resize(pixels, size):
    return np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.BILINEAR))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "turned"])
@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_the_mapper_resizes_what_read_image_reads(tmp_path, mode, image_format):
    image = Image.fromarray(noise(30, 44, np.random.default_rng(0)))
    path, exif = str(tmp_path / f"x.{'tif' if mode == 'CMYK' else 'png'}"), image.getexif()
    if mode == "turned":
        path, exif[0x0112] = str(tmp_path / "x.jpg"), 6
    else:
        image = image.convert(mode)
    image.save(path, exif=exif)
    resize = AntialiasedResize(image_size=(16, 12))
    mapper = GroundingDatasetMapper(
        False, tokenizer=ShapesTokenizer(), image_format=image_format, resize=resize
    )
    sample = {"file_name": path, "expression": "the circle", "sample_id": "1", "image_id": 1}
    mapped = mapper(sample)["image"].numpy().transpose(1, 2, 0)
    whole = read_image(path, image_format)
    assert np.array_equal(mapped, pil_resize(np.ascontiguousarray(whole), (16, 12)))
    found, size = read_reduced_image(path, None)
    assert isinstance(found, Image.Image) == (mode in ("RGB", "turned"))
    assert size == whole.shape[:2] == ((44, 30) if mode == "turned" else (30, 44))


def rounds_alike(source, target):
    """Whether a line resized with weights of 14 bits is, to the byte, that with exact weights.

    A value is a sum of bytes times whole weights, over the sum of the weights. Over a power of two
    few bits are exact; over an odd number it is too far from where rounding changes.
    """
    if source == target:
        return True
    pixels = 2 * np.arange(source) + 1
    for center in 2 * np.arange(target) + 1:
        distances = np.abs(pixels * target - center * source)
        weights = 2 * max(source, target) - distances
        weights = weights[weights > 0]
        total = int(weights.sum()) // math.gcd(*weights.tolist())
        error = 255 * len(weights) / 2**15
        is_exact = total & (total - 1) == 0 and total <= 1 << 14
        if not is_exact and not (total % 2 and error < 0.5 / total):
            return False
    return True


@pytest.mark.parametrize("target", [12, 96, 300, 384])
def test_proof_of_the_exact_scales(target):
    # Longer lines repeat the periods of these.
    for scale in _EXACT_SCALES:
        assert rounds_alike(round(scale * target), target), scale
    for scale in (4 / 3, 5 / 4, 5 / 2):
        assert not rounds_alike(round(scale * target), target)


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (320, 240), (160, 640)])
def test_torch_resizes_to_the_byte_where_it_is_asked_to(size):
    resize, rng = AntialiasedResize(image_size=(320, 320)), np.random.default_rng(0)
    assert resize._takes_torch(size)
    blocks = rng.integers(0, 2, (size[0] // 4, size[1] // 4, 3), dtype=np.uint8) * 255
    for pixels in (noise(*size, rng), blocks.repeat(4, axis=0).repeat(4, axis=1)):
        expected = pil_resize(pixels, (320, 320))
        assert np.array_equal(resize.resize_image(pixels), expected)
        assert np.array_equal(resize.resize_image(Image.fromarray(pixels)), expected)


def test_pil_resizes_where_torch_rounds_otherwise():
    # 427 / 320 has weights that 15 bits do not hold, and sums on the border of two bytes.
    assert not rounds_alike(427, 320) and not rounds_alike(500, 320)
    assert rounds_alike(640, 320) and rounds_alike(480, 320) and rounds_alike(77, 77)
    pixels = noise(427, 640, np.random.default_rng(0))
    exact, fast = (x(image_size=(320, 320)) for x in (AntialiasedResize, FastResize))
    assert not exact._takes_torch((427, 640)) and not exact._takes_torch((640, 500))
    expected = pil_resize(pixels, (320, 320)).astype(int)
    assert np.array_equal(exact.resize_image(pixels), expected)
    difference = np.abs(fast.resize_image(pixels) - expected)
    assert 0 < difference.sum() and difference.max() == 1


@pytest.mark.parametrize("size", [(480, 640), (96, 80), (61, 100), (30, 20), (60, 24)])
@pytest.mark.parametrize("rule", [AntialiasedResize, ReleasedResize])
def test_the_part_of_a_mask_is_resized_as_the_whole(size, rule):
    rng, resize = np.random.default_rng(0), rule(image_size=(32, 40))
    masks = np.zeros((*size, 9), np.uint8, order="F")
    for i in range(1, 8):
        (top, bottom), (left, right) = (np.sort(rng.integers(0, side + 1, 2)) for side in size)
        masks[top:bottom, left:right, i] = rng.random((bottom - top, right - left)) < i / 7
    # One pixel, which keeps what it touches.
    masks[size[0] // 3, size[1] // 2, 8] = 1
    found = resize.resize_masks(masks)
    for mask, resized in zip(masks.transpose(2, 0, 1), found):
        assert np.array_equal(resize.resize_mask(mask, (32, 40)), resized)
    assert not found[0].any() and (found[8].any() or rule is ReleasedResize)


def test_the_fast_rule_decodes_half_of_a_jpeg(tmp_path):
    cfg = get_cfg()
    add_igvg_config(cfg)
    cfg.INPUT.RESIZE, cfg.INPUT.IMAGE_SIZE, path = "fast", (32, 32), str(tmp_path / "x.jpg")
    blurred = cv2.GaussianBlur(noise(150, 200, np.random.default_rng(0)), (0, 0), 2)
    Image.fromarray(blurred).save(path, quality=90)
    resize = build_resize(cfg)
    reduced, size = read_reduced_image(path, resize.least_side, resize.large)
    assert size == (150, 200) and reduced.size == (100, 75)
    expected = AntialiasedResize(image_size=(32, 32)).resize_image(read_image(path, "RGB"))
    assert np.abs(expected.astype(int) - resize.resize_image(reduced)).mean() < 1
