"""Checkpoints: strict loading, safetensors in and out, conversion of BEiT-3 and the release."""

from .beit3_conversion import convert_beit3, is_beit3
from .changed import NUM_QUERIES
from .checkpointer import GroundingCheckpointer, export_safetensors, find_weights
from .files import check_output, read_checkpoint, read_metadata, read_weights, write_checkpoint
from .instancevg_conversion import (
    ConversionReport,
    convert_instancevg,
    is_instancevg,
    restore_instancevg,
)
from .recovery import FINAL, is_numbered, list_checkpoints, named_checkpoint
from .released_files import ENCODER_ONLY
