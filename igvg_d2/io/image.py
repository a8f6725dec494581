"""The one reader of images."""

import functools
import os
import stat
import unicodedata
from typing import Dict, Tuple

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps

# What is opened, whatever the ending of a file; of the others that PIL knows, EPS starts a program.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")
_LONGEST_NAME = 255
_ORIENTATION = 0x0112  # EXIF tag; from 5 on, height and width are exchanged


def read_image(path: str, image_format: str) -> np.ndarray:
    """An image after EXIF rotation, as Detectron2's ``read_image`` gives it.

    Grey values of 16 bits are scaled to 8; those of other ranges are refused.

    Args:
        path: file in one of ``FORMATS``, whatever its ending.
        image_format: "RGB" or "BGR".

    Returns:
        uint8 (height, width, 3).

    Raises:
        FileNotFoundError: see :func:`missing_image`.
        ValueError: it is no regular file, cannot be decoded, or has values without a known range.
    """
    local = PathManager.get_local_path(path)
    try:
        if not stat.S_ISREG(os.stat(local).st_mode):
            raise ValueError("it is not a regular file")
        with open(local, "rb") as file:
            image = Image.open(file, formats=FORMATS)
            turned = ImageOps.exif_transpose(image)
            return convert_PIL_to_numpy(_to_8_bits(turned, image.format), image_format)
    except FileNotFoundError:
        raise FileNotFoundError(missing_image(path)) from None
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and more
        raise ValueError(
            f"cannot decode the image '{path}': {error!r}; download or write it again"
        ) from error


def _to_8_bits(image: Image.Image, file_format: str) -> Image.Image:
    """Grey values of 16 bits over 257; refuses those whose black and white are not known."""
    # Older releases of PIL open a PNG of 16 bits as one of 32.
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format == "PNG"):
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        kind = "whole numbers of 32 bits" if image.mode == "I" else "floating point numbers"
        raise ValueError(f"its pixels are {kind}, of which no range is known; save it with 8 bits")
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
        with open(PathManager.get_local_path(path), "rb") as file:
            turns = Image.open(file, formats=FORMATS).getexif().get(_ORIENTATION, 1) > 4
        if turns:
            reason = (
                "; its EXIF tag turns it, and the annotations are of the image as stored: remove "
                "the tag, or annotate the image as it is shown"
            )
    return f"the file has height, width = {found}, the annotations say {stated}{reason}"
