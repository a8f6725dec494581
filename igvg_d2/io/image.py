"""The one reader of images."""

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps


def read_image(path: str, image_format: str) -> np.ndarray:
    """An image after EXIF rotation, as Detectron2's ``read_image`` gives it.

    Args:
        path: file in any format that PIL reads.
        image_format: "RGB" or "BGR".

    Returns:
        uint8 (height, width, 3).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be decoded, or has pixels that are NaN or infinite.
    """
    try:
        with PathManager.open(path, "rb") as file:
            image = ImageOps.exif_transpose(Image.open(file))
            # The conversion to bytes would turn NaN into any value.
            is_finite = image.mode != "F" or np.isfinite(np.asarray(image)).all()
            pixels = convert_PIL_to_numpy(image, image_format)
    except FileNotFoundError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and more
        raise ValueError(
            f"cannot decode the image '{path}': {error!r}; download or write it again"
        ) from error
    if not is_finite:
        raise ValueError(f"the image '{path}' has pixels that are NaN or infinite; write it again")
    return pixels
