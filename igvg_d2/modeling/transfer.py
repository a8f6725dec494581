"""Tensors of the host to the device of the model, without a wait."""

import torch


def to_device(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on ``device`` that the host does not wait for; on the CPU the tensor itself.

    Args:
        value: of the host, or already on the device.
        device: of the model. A GPU copies without the host from pinned memory only.
    """
    if device.type == "cuda" and value.device.type == "cpu":
        value = value.pin_memory()
    return value.to(device, non_blocking=True)
