"""Initial values that let a small plain encoder see beyond a patch early."""

import torch
from torch import nn

from igvg_d2.modeling.backbone import BEiT3

# Longest wavelength of the positions in cells, and their size relative to that of patches.
LONGEST_WAVE = 60.0
POSITION_SCALE = 0.5
# Factor on the projections of queries and keys of image tokens.
SHARPNESS = 1.4
# Standard deviations 0.05 of linear layers and 0.1 of tables, where BEiT-3 has 0.02 for both.
LINEAR_SCALE = 2.5
TABLE_SCALE = 5.0


@torch.no_grad()
def initialize_locally(backbone: BEiT3, listening: int = 0) -> None:
    """Positions as sines and cosines, and image tokens that attend to like ones, as near ones are.

    Everything stays trainable. Attention begins with neighbours instead of everywhere (Beyer et
    al., "Better plain ViT baselines", 2022; Trockman and Kolter, "Mimetic initialization", 2023).

    Args:
        backbone: as it was built.
        listening: number of last layers that begin with attention to everything and pass their
            input on unchanged. Patches that learned to look at patches hardly ever look at words
            again; such layers do from their first step, and do no harm to a trained encoder that
            they are put upon.
    """
    embed = backbone.vision_embed
    for layer in backbone.encoder.modules():
        if isinstance(layer, nn.Linear):
            layer.weight *= LINEAR_SCALE
    text = backbone.text_embed
    tables = (embed.cls_token, embed.cls_position, embed.positions)
    for table in (*tables, text.tokens.weight, text.positions):
        table *= TABLE_SCALE
    rows, columns = embed.grid
    quarter = backbone.embed_dim // 4
    waves = LONGEST_WAVE ** (-torch.arange(quarter) / max(quarter - 1, 1)) * torch.pi
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    parts = []
    for axis in (x, y):
        angles = axis.flatten()[:, None] * waves
        parts += [angles.sin(), angles.cos()]
    table = torch.cat(parts, dim=1) * POSITION_SCALE
    embed.positions[..., : table.shape[1]].copy_(table)
    dim = backbone.embed_dim
    layers = backbone.encoder.layers
    first = len(layers) - listening
    for layer in layers[first:]:
        for branch in (layer.vision, layer.text):
            branch.out_proj.weight.zero_()
            branch.fc2.weight.zero_()
    for layer in layers[:first]:
        weight = layer.vision.qkv.weight
        weight[:dim] *= SHARPNESS
        weight[dim : 2 * dim] = weight[:dim]
