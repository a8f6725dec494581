"""LayerNorm over the channels of a feature map."""

import torch
import torch.nn.functional as F
from torch import nn


class LayerNorm2d(nn.LayerNorm):
    """Normalises each pixel over its channels, eps 1e-6.

    The same function as Detectron2's channel-first ``LayerNorm``, by PyTorch's fused kernel: on
    channels-last maps nothing is copied, and a training step needs no intermediate maps.
    """

    def __init__(self, num_channels: int):
        """
        Args:
            num_channels: C.
        """
        super().__init__(num_channels, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float (N, C, H, W) -> float (N, C, H, W)."""
        x = F.layer_norm(
            x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps
        )
        return x.permute(0, 3, 1, 2)
