"""Which device a config means, and whether this machine can use it."""

import glob
import logging
import warnings

import torch
from detectron2.config import CfgNode

logger = logging.getLogger(__name__)

# Where Linux shows NVIDIA GPUs, whether PyTorch can use them or not.
_GPU_FILES = ("/dev/nvidia[0-9]*", "/proc/driver/nvidia/gpus/*")


def find_device(wanted: str, num_processes: int = 1, is_default: bool = True) -> str:
    """The device that a run takes for ``MODEL.DEVICE``.

    Args:
        wanted: "cpu", "cuda", "mps", or one with an index.
        num_processes: of the job on this machine.
        is_default: nobody asked for "cuda", so that a machine without a GPU takes its CPU.

    Returns:
        ``wanted``, or "cpu" for "cuda" on a machine without a usable GPU. A warning says so when
        the machine has GPUs, or when "cuda" was asked for.

    Raises:
        ValueError: no device, or not usable here; several processes in a case of such a warning.
    """
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ValueError(
            f"MODEL.DEVICE: expected 'cpu', 'cuda', 'cuda:<number>' or 'mps', found {wanted!r}"
        ) from None
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("MODEL.DEVICE 'mps': PyTorch cannot use it here; set 'cuda' or 'cpu'")
    if device.type != "cuda":
        return "cpu" if device.type == "cpu" else wanted
    with warnings.catch_warnings(record=True) as reasons:
        warnings.simplefilter("always")
        usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) < usable:
        return wanted
    has_gpu = any(map(glob.glob, _GPU_FILES)) or torch.cuda.device_count() > 0 or reasons
    reason = (
        f"MODEL.DEVICE {wanted!r}: PyTorch {torch.__version__} can use {usable} GPUs of this "
        f"machine, which {'has some' if has_gpu else 'seems to have none'}"
    )
    if has_gpu:
        reason += " (see `nvidia-smi`: an old driver, a container, CUDA_VISIBLE_DEVICES)"
    reason += "".join(f": {' '.join(str(warning.message).split())}" for warning in reasons[:1])
    if device.index is not None or (num_processes > 1 and (has_gpu or not is_default)):
        raise ValueError(f"{reason}; choose another, or set MODEL.DEVICE cpu to run on the CPU")
    log = logger.warning if has_gpu or not is_default else logger.info
    log("%s; it runs on the CPU", reason)
    return "cpu"


def with_usable_device(cfg: CfgNode) -> CfgNode:
    """A copy of a config made in Python, with :func:`find_device` of its device."""
    new = cfg.clone()
    new.defrost()
    new.MODEL.DEVICE = find_device(cfg.MODEL.DEVICE)
    if cfg.is_frozen():
        new.freeze()
    return new
