"""The one reader of images, which gives them as a person sees them."""

import functools
import importlib
import importlib.util
import logging
import os
import stat
import unicodedata
import urllib.error
from typing import BinaryIO, Dict, Optional, Tuple, Union

import numpy as np
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n
from PIL import Image, ImageOps, UnidentifiedImageError

# What is opened, whatever the ending of a file; of the others that PIL knows, EPS starts a program.
# HEIF is that of the package pillow-heif, AVIF that of Pillow since 11.3.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "HEIF")
_LONGEST_NAME = 255
_ORIENTATION = 0x0112  # EXIF tag; from 5 on, height and width are exchanged
# Pixels that are converted at a time: an image of 108 million pixels takes 0.8 GB instead of 1.9.
_STRIP = 1 << 18
# Pixels from which a JPEG may be decoded smaller; all of 108 million take 3 s, a 16th 0.5 s.
LARGE = 1 << 25

RGBImage = Union[Image.Image, np.ndarray]


class _Unfit(Exception):
    """Why an image is refused that is not damaged."""


def read_image(path: str, image_format: str) -> np.ndarray:
    """An image as a person sees it: turned by its EXIF tag, its transparent parts over white.

    Others than that it gives as Detectron2's ``read_image`` does. Grey values of 16 bits are
    scaled to 8; those without a known range are refused. Of an animation, or a file of several
    pages, the first is read, which is logged.

    Args:
        path: file in one of ``FORMATS``, as far as Pillow has them, whatever its ending.
        image_format: "RGB" or "BGR".

    Returns:
        uint8 (height, width, 3).

    Raises:
        FileNotFoundError: see :func:`missing_image`; or an address does not answer.
        ValueError: it is no regular file, cannot be decoded, has values without a known range, or
            more pixels than Pillow's limit, 2 * ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    image = read_reduced_image(path, None)[0]
    pixels = _to_pixels(image) if isinstance(image, Image.Image) else image
    return pixels if image_format == "RGB" else pixels[:, :, ::-1]


def read_reduced_image(
    path: str, least_side: Optional[int], large: int = LARGE
) -> Tuple[RGBImage, Tuple[int, int]]:
    """As :func:`read_image`, but a large JPEG may be decoded smaller, and nothing is copied.

    Args:
        path: see there.
        least_side: pixels that both sides keep when the decoder takes means of 2 x 2, 4 x 4 or
            8 x 8 pixels; None reads all.
        large: a JPEG of more pixels than these is.

    Returns:
        the image of mode "RGB", or, of files of other modes, uint8 (rows, columns, 3), and (height,
        width) of the whole image.
    """
    try:
        local = PathManager.get_local_path(path)
    except urllib.error.URLError as error:
        raise FileNotFoundError(f"image '{path}' was not downloaded: {error}") from error
    try:
        if not stat.S_ISREG(os.stat(local).st_mode):
            raise _Unfit("it is not a regular file")
        with open(local, "rb") as file, _open(file) as image:
            # A phone's JPEG may hold a preview or a depth map beside the photo, in format MPO.
            if getattr(image, "is_animated", False) and image.format != "MPO":
                text = f"image '{path}' has several frames or pages, of which the first is read"
                log_first_n(logging.WARNING, text, name=__name__, key="message")
            size = None
            if least_side and image.format in ("JPEG", "MPO") and np.prod(image.size) > large:
                # Width and height, or after a turn by 90 degrees the reverse.
                size = image.size[:: 1 if image.getexif().get(_ORIENTATION, 1) > 4 else -1]
                image.draft(None, (least_side, least_side))
            image = _upright(image)
            size = size or (image.height, image.width)
            if image.mode == "RGB" and "transparency" not in image.info:
                image.load()
            else:
                image = _to_pixels(image)
    except FileNotFoundError:
        raise FileNotFoundError(missing_image(path)) from None
    except _Unfit as error:
        raise ValueError(f"image '{path}': {error}") from None
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"image '{path}': {error} If you trust it, set PIL.Image.MAX_IMAGE_PIXELS to half of "
            "its pixels or more; demo.py: --max-pixels"
        ) from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and more
        raise ValueError(
            f"cannot decode the image '{path}': {error!r}; download or write it again"
        ) from error
    return image, size


def to_pixels(image: Image.Image) -> np.ndarray:
    """An image in memory as :func:`read_image` gives it, RGB uint8 (height, width, 3).

    Raises:
        ValueError: it cannot be decoded, has no pixels, or values without a known range.
    """
    try:
        # Turned into a copy, of which nothing is closed.
        is_turned = image.getexif().get(_ORIENTATION, 1) != 1
        return _to_pixels(ImageOps.exif_transpose(image) if is_turned else image)
    except Exception as error:  # see read_reduced_image
        raise ValueError(f"the image cannot be used: {error}") from error


def _open(file: BinaryIO) -> Image.Image:
    """``Image.open`` of the formats that are known here."""
    head = file.read(64)
    is_heic = head[4:8] == b"ftyp" and b"hei" in head[8:]
    if is_heic and "HEIF" not in Image.OPEN and importlib.util.find_spec("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener()
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]
    try:
        return Image.open(file, formats=known)
    except UnidentifiedImageError:
        if is_heic and "HEIF" not in known:
            reason = "a HEIC file, which needs 'pip install pillow-heif'; or save it as JPEG"
            raise _Unfit(reason) from None
        raise UnidentifiedImageError(f"none of the formats {', '.join(known)}") from None


def _upright(image: Image.Image) -> Image.Image:
    """An opened file after its EXIF turn."""
    # exif_transpose copies also what it need not turn.
    if image.getexif().get(_ORIENTATION, 1) == 1:
        return image
    turned = ImageOps.exif_transpose(image)
    turned.format = image.format
    image.close()
    return turned


def _to_pixels(image: Image.Image) -> np.ndarray:
    """RGB uint8 (height, width, 3), not turned."""
    width, height = image.size
    if not width * height:
        raise _Unfit("it has no pixels")
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        strip = _to_8_bits(image.crop((0, top, width, min(top + rows, height))), image.format)
        if strip.mode in ("LA", "PA", "RGBA") or "transparency" in strip.info:
            white = Image.new("RGBA", strip.size, "white")
            strip = Image.alpha_composite(white, strip.convert("RGBA"))
        pixels[top : top + rows] = np.asarray(strip.convert("RGB"))
    return pixels


def _to_8_bits(image: Image.Image, file_format: str) -> Image.Image:
    """Grey values of 16 bits over 257; refuses those whose black and white are not known."""
    # PIL opens a PGM of 16 bits, and older releases also a PNG, as one of 32.
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        kind = "whole numbers of 32 bits" if image.mode == "I" else "floating point numbers"
        raise _Unfit(f"its pixels are {kind}, of which no range is known; save it with 8 bits")
    return image


def missing_image(path: str) -> str:
    """Message about an image that is not there, with the name of one that is called almost so.

    Args:
        path: of the image, local or as ``PathManager`` takes it.
    """
    return f"image file '{path}' does not exist{_similar_name(PathManager.get_local_path(path))}"


def _similar_name(path: str) -> str:
    """ "; there is ..." about a name with another separator, Unicode form or case; or ""."""
    folder, name = os.path.split(path)
    if "\\" in path and os.path.exists(path.replace("\\", "/")):
        return "; there is one with '/' in place of '\\'"
    if len(name) > _LONGEST_NAME or not os.path.isdir(folder or "."):
        return ""
    folder = folder or "."
    found = _names_by_letters(folder, os.stat(folder).st_mtime_ns).get(_letters(name))
    if found is None:
        return ""
    if unicodedata.normalize("NFC", found) != unicodedata.normalize("NFC", name):
        return f"; there is '{found}'"
    form = "NFC" if unicodedata.is_normalized("NFC", found) else "NFD"
    return f"; there is one of the same letters in another Unicode normal form ({form}); rename it"


@functools.lru_cache(maxsize=4)
def _names_by_letters(folder: str, changed: int) -> Dict[str, str]:
    """Names in a folder, kept until it changes: a data set may miss all of its images there."""
    return {_letters(name): name for name in sorted(os.listdir(folder), reverse=True)}


def _letters(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def size_mismatch(path: str, found: Tuple[int, int], stated: Tuple[int, int]) -> str:
    """Message about an image whose size differs from that of its annotations.

    Args:
        path: of the image, which exists.
        found, stated: (height, width) in pixels, after EXIF rotation and in the annotations.
    """
    reason = ""
    if found == stated[::-1]:
        with open(PathManager.get_local_path(path), "rb") as file, _open(file) as image:
            turns = image.getexif().get(_ORIENTATION, 1) > 4
        if turns:
            reason = (
                "; its EXIF tag turns it, and the annotations are of the image as stored: remove "
                "the tag, or annotate the image as it is shown"
            )
    return f"the file has height, width = {found}, the annotations say {stated}{reason}"
