"""UNet pixel decoder (Section 3): coarse to fine, concatenating one pyramid level per stage."""

from typing import Dict, List

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from torch import nn

from .build import PIXEL_DECODER_REGISTRY

# Levels that join the running map, in this order; p5 starts it.
SKIPS = ("p4", "p3", "p2")


@PIXEL_DECODER_REGISTRY.register()
class UNetPixelDecoder(nn.Module):
    """Three stages of up-sampling, concatenation and two 3x3 convolutions."""

    @configurable
    def __init__(
        self,
        *,
        input_shape: Dict[str, ShapeSpec],
        conv_dims: List[int],
        norm: str,
        align_corners: bool,
    ):
        """
        Args:
            input_shape: channels and strides of p2, p3, p4, p5.
            conv_dims: widths of the stages at p4, p3 and p2.
            norm: name of the normalisation layer.
            align_corners: bilinear mode of the up-sampling.
        """
        super().__init__()
        self.align_corners = align_corners
        self.stages = nn.ModuleList()
        running = input_shape["p5"].channels
        for name, width in zip(SKIPS, conv_dims):
            in_channels = running + input_shape[name].channels
            self.stages.append(
                nn.Sequential(_conv(in_channels, width, norm), _conv(width, width, norm))
            )
            running = width
        self._output_shape = ShapeSpec(channels=running, stride=input_shape["p2"].stride)

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {
            "input_shape": input_shape,
            "conv_dims": cfg.MODEL.PIXEL_DECODER.CONV_DIMS,
            "norm": cfg.MODEL.PIXEL_DECODER.NORM,
            "align_corners": cfg.MODEL.IGVG.ALIGN_CORNERS,
        }

    def output_shape(self) -> ShapeSpec:
        """Channels (mask_dim) and stride of the mask features."""
        return self._output_shape

    def forward(self, features: Dict[str, torch.Tensor]) -> torch.Tensor:
        """
        Args:
            features: p2, p3, p4, p5, float (N, Ci, Hi, Wi).

        Returns:
            mask features S, float (N, mask_dim, H2, W2), non-negative.
        """
        x = features["p5"]
        for name, stage in zip(SKIPS, self.stages):
            skip = features[name]
            x = F.interpolate(
                x, size=skip.shape[-2:], mode="bilinear", align_corners=self.align_corners
            )
            x = stage(torch.cat([x, skip], dim=1))
        return x


def _conv(in_channels: int, out_channels: int, norm: str) -> Conv2d:
    return Conv2d(
        in_channels,
        out_channels,
        kernel_size=3,
        padding=1,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=F.relu,
    )
