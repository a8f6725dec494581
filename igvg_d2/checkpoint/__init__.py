"""Checkpoints: strict loading, safetensors in and out, conversion of the released model."""

from .checkpointer import GroundingCheckpointer, export_safetensors, read_metadata
from .instancevg_conversion import ConversionReport, convert_instancevg, is_instancevg

__all__ = [
    "ConversionReport",
    "GroundingCheckpointer",
    "convert_instancevg",
    "export_safetensors",
    "is_instancevg",
    "read_metadata",
]
