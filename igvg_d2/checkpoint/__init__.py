"""Checkpoints: strict loading, safetensors in and out."""

from .checkpointer import GroundingCheckpointer, export_safetensors, read_metadata

__all__ = ["GroundingCheckpointer", "export_safetensors", "read_metadata"]
