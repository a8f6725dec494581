"""Pixel decoders: feature pyramid to mask features."""

from .build import PIXEL_DECODER_REGISTRY, build_pixel_decoder
from .unet import UNetPixelDecoder

__all__ = ["PIXEL_DECODER_REGISTRY", "UNetPixelDecoder", "build_pixel_decoder"]
