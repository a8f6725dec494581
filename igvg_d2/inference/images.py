"""Images as a caller has them: files, Pillow, numpy and torch."""

import os
from typing import Union
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import torch
from PIL import Image

from igvg_d2.io.image import read_image, to_pixels

ImageLike = Union[str, os.PathLike, Image.Image, np.ndarray, torch.Tensor]


def to_rgb(image: ImageLike, channel_order: str = "RGB") -> np.ndarray:
    """An image as uint8 (height, width, 3) in RGB order.

    Args:
        image: path, ``file://`` URL or any address of ``PathManager``; ``PIL.Image`` of any mode;
            numpy uint8 (height, width, 3) or grey (height, width); torch uint8 (3, height, width).
        channel_order: "RGB" or "BGR", of arrays and tensors.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the file is no image, or the array has another shape or type.
    """
    check_channel_order(channel_order)
    if isinstance(image, (str, os.PathLike)):
        return read_image(local_path(image), "RGB")
    if isinstance(image, Image.Image):
        return to_pixels(image)
    array, layout = image, "(height, width, 3) or (height, width)"
    if isinstance(image, torch.Tensor):
        layout = "(3, height, width)"
        # Some of the other types numpy does not have.
        array = image.detach().cpu().numpy() if image.dtype == torch.uint8 else np.zeros(0)
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array[..., None]
    if not isinstance(array, np.ndarray):
        raise ValueError(
            "image must be a path, a PIL.Image, a numpy array or a tensor, got "
            f"{type(image).__name__}."
        )
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        raise ValueError(
            f"image must be uint8 of shape {layout}, got {image.dtype} of shape "
            f"{tuple(image.shape)}."
        )
    return array if channel_order == "RGB" else array[..., ::-1]


def check_channel_order(order: str) -> None:
    """Refuse, by ValueError, what is none."""
    if order not in ("RGB", "BGR"):
        raise ValueError(f"channel_order must be 'RGB' or 'BGR', got {order!r}.")


def local_path(path: Union[str, os.PathLike]) -> str:
    """A path as text; of a ``file://`` URL that of the file."""
    path = os.fspath(path)
    return url2pathname(urlsplit(path).path) if path.startswith("file://") else path
