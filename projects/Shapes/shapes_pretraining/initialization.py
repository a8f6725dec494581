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
def initialize_locally(backbone: BEiT3) -> None:
    """Positions as sines and cosines, and image tokens that attend to like ones, as near ones are.

    Everything stays trainable. Attention begins with neighbours instead of everywhere (Beyer et
    al., "Better plain ViT baselines", 2022; Trockman and Kolter, "Mimetic initialization", 2023).
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
    for layer in backbone.encoder.layers:
        weight = layer.vision.qkv.weight
        weight[:dim] *= SHARPNESS
        weight[dim : 2 * dim] = weight[:dim]


@torch.no_grad()
def flatten_attention(backbone: BEiT3, factor: float) -> None:
    """Scale the queries of image tokens in all layers but the first, in place.

    After training on images mostly, patches look at patches with logits so far above those of text
    that no gradient leads back to the words.
    """
    dim = backbone.embed_dim
    for layer in backbone.encoder.layers[1:]:
        layer.vision.qkv.weight[:dim] *= factor
        layer.vision.qkv.bias[:dim] *= factor
