"""The trained encoder as a file of BEiT-3, which every config of the library can start from."""

from typing import Dict

import torch

from igvg_d2.checkpoint.beit3_conversion import MASK_TOKEN, POSITIONS, TEXT_POSITIONS
from igvg_d2.checkpoint.instancevg_keys import ModelSize, encoder_rules
from igvg_d2.modeling.backbone import BEiT3


def beit3_state(backbone: BEiT3) -> Dict[str, torch.Tensor]:
    """Weights under the names of BEiT-3's files.

    Args:
        backbone: the library's encoder, of any size, with a square position table.

    Returns:
        float32 tensors; ``convert_beit3`` gives the weights back to the bit. What our encoder does
        not have (rows 0 and 1 of the positions, the mask token) is zero.
    """
    ours = {f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}
    words, patches = backbone.text_embed.tokens.weight, backbone.vision_embed.proj.weight
    layers = backbone.encoder.layers
    text_positions = backbone.text_embed.positions
    size = ModelSize(
        backbone.embed_dim,
        len(layers),
        layers[0].vision.fc1.out_features,
        layers[0].num_heads,
        num_queries=0,
        image_size=tuple(side * patches.shape[-1] for side in backbone.vision_embed.grid),
        vocab_size=len(words),
        text_rows=2 + text_positions.shape[1],
        patch_size=patches.shape[-1],
    )
    unused = words.new_zeros(2, backbone.embed_dim)
    embed = backbone.vision_embed
    tables = {
        POSITIONS: torch.cat([unused, embed.cls_position[0], embed.positions[0]]),
        TEXT_POSITIONS: torch.cat([unused, text_positions[0]]),
        MASK_TOKEN: unused[:1, None],
    }
    state = {}
    for rule in encoder_rules(size, old="beit3"):
        parts = ours[rule.target].chunk(len(rule.sources))
        state.update({key: part for key, part in zip(rule.sources, parts) if key not in tables})
    return {key: tensor.detach().clone() for key, tensor in {**state, **tables}.items()}
