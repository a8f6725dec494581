"""Large JPEGs are decoded smaller, for the evaluation and the predictor alike."""

import numpy as np
import pytest
from PIL import Image

from igvg_d2.data import GroundingDatasetMapper
from igvg_d2.data.resize import AntialiasedResize, LetterboxResize, ReleasedResize
from igvg_d2.data.tokenizer import ShapesTokenizer
from igvg_d2.inference import GroundingPredictor
from igvg_d2.io.image import read_image, read_reduced_image


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch):
    monkeypatch.setattr(AntialiasedResize, "large", 100)


@pytest.fixture
def photo(tmp_path):
    """Smooth, 803 x 602 pixels."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(80, 170, (9, 12, 3), dtype=np.uint8))
    path = tmp_path / "photo.jpg"
    small.resize((803, 602), Image.BILINEAR).save(path, quality=95)
    return path


def test_a_large_jpeg_is_decoded_smaller(photo):
    image, size = read_reduced_image(str(photo), 150, 100)
    assert size == (602, 803) and image.size == (201, 151)
    whole = read_image(str(photo), "RGB")
    assert whole.shape == (602, 803, 3)
    # None may be decoded smaller; more than half of the sides is wanted; it is not that large.
    for least_side, large in ((None, 100), (302, 100), (150, 803 * 602)):
        assert np.array_equal(read_reduced_image(str(photo), least_side, large)[0], whole)


@pytest.mark.parametrize("orientation, size", [(3, (602, 803)), (6, (803, 602))])
def test_the_size_is_that_after_a_turn(photo, orientation, size):
    image = Image.open(photo)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(photo, exif=exif)
    image, found = read_reduced_image(str(photo), 150, 100)
    assert found == size
    assert image.size[::-1] == tuple(-(-side // 4) for side in size)


def test_other_formats_are_read_as_they_are(photo):
    png = photo.with_suffix(".png")
    Image.open(photo).save(png)
    assert read_reduced_image(str(png), 150, 100)[0].size == (803, 602)


def test_the_network_input_stays_as_it_is(photo):
    resize = AntialiasedResize(image_size=(32, 32))
    mapper = GroundingDatasetMapper(
        False, tokenizer=ShapesTokenizer(), image_format="RGB", resize=resize
    )
    pixels, _ = mapper.read_image(str(photo))
    assert pixels.size == (201, 151)
    full = resize.resize_image(read_image(str(photo), "RGB")).astype(int)
    # Of photographs of 48 million pixels at 320 x 320, 0.15 of 255 in the mean and 2 at most.
    assert np.abs(full - resize.resize_image(pixels)).mean() < 1
    sample = {"file_name": str(photo), "expression": "the circle", "sample_id": "1", "image_id": 1}
    mapped = mapper({**sample, "height": 602, "width": 803})
    assert np.array_equal(mapped["image"].numpy().transpose(1, 2, 0), resize.resize_image(pixels))
    assert (mapped["height"], mapped["width"]) == (602, 803)


def test_resizes_that_need_all_pixels_get_them(photo):
    for resize in (ReleasedResize(image_size=(32, 32)), LetterboxResize(image_size=(32, 32))):
        assert resize.least_side is None


def test_the_predictor_answers_in_the_frame_of_the_file(photo):
    predictor = GroundingPredictor.from_pretrained("shapes-tiny", device="cpu")
    result = predictor(photo, "the red circle")
    assert result.orig_shape == result.mask.shape == result.plot().shape[:2] == (602, 803)
    assert result["candidates"].image_size == (602, 803)
