"""SimFPN: a feature pyramid from the single token grid of a plain ViT (Li et al., ECCV 2022)."""

from typing import Dict, List

import torch
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec
from torch import nn

from ..layer_norm import LayerNorm2d
from .build import NECK_REGISTRY

LEVELS = ("p2", "p3", "p4", "p5")


@NECK_REGISTRY.register()
class SimFPN(nn.Module):
    """Scales the token grid by 4, 2, 1 and 1/2; every level gets a 1x1 and a 3x3 convolution.

    There is no top-down path and no activation after the convolutions, as in the released neck.
    """

    @configurable
    def __init__(self, *, in_channels: int, stride: int, out_channels: List[int]):
        """
        Args:
            in_channels: channels of the token grid.
            stride: stride of the token grid in pixels.
            out_channels: channels of p2, p3, p4, p5.
        """
        super().__init__()
        half, quarter = in_channels // 2, in_channels // 4
        self.scale_p2 = nn.Sequential(
            nn.ConvTranspose2d(in_channels, half, kernel_size=2, stride=2),
            LayerNorm2d(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, kernel_size=2, stride=2),
        )
        self.scale_p3 = nn.ConvTranspose2d(in_channels, half, kernel_size=2, stride=2)
        self.scale_p5 = nn.MaxPool2d(kernel_size=2, stride=2)
        self.lateral = nn.ModuleList()
        self.output = nn.ModuleList()
        for width_in, width in zip((quarter, half, in_channels, in_channels), out_channels):
            self.lateral.append(_conv(width_in, width, kernel_size=1))
            self.output.append(_conv(width, width, kernel_size=3))
        strides = {"p2": stride // 4, "p3": stride // 2, "p4": stride, "p5": stride * 2}
        self._output_shape = {
            name: ShapeSpec(channels=width, stride=strides[name])
            for name, width in zip(LEVELS, out_channels)
        }

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {
            "in_channels": input_shape["last_feat"].channels,
            "stride": input_shape["last_feat"].stride,
            "out_channels": cfg.MODEL.NECK.OUT_CHANNELS,
        }

    def output_shape(self) -> Dict[str, ShapeSpec]:
        """Channels and strides (input pixels) of p2, p3, p4, p5."""
        return dict(self._output_shape)

    def forward(self, features: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
        """
        Args:
            features: "last_feat" float (N, D, h, w).

        Returns:
            p2 (N, C2, 4h, 4w), p3 (N, C3, 2h, 2w), p4 (N, C4, h, w), p5 (N, C5, h // 2, w // 2).
        """
        x = features["last_feat"]
        scaled = (self.scale_p2(x), self.scale_p3(x), x, self.scale_p5(x))
        levels = [
            output(lateral(level))
            for lateral, output, level in zip(self.lateral, self.output, scaled)
        ]
        return dict(zip(LEVELS, levels))


def _conv(in_channels: int, out_channels: int, kernel_size: int) -> Conv2d:
    """Same-size convolution without bias, followed by a LayerNorm over channels."""
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        padding=kernel_size // 2,
        bias=False,
        norm=LayerNorm2d(out_channels),
    )
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
