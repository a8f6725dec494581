"""Key table of the released InstanceVG checkpoints: their tensors, and the parameters they become.

Letters: c encoder width, f its feed-forward width, d = 256 head width; the other sizes are the same
in all published files.
"""

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Tuple

import torch

Shape = Tuple[int, ...]

DIM = 256
DECODER_LAYERS = 3
# Released encoder sizes by width: (layers, feed-forward width, attention heads).
ENCODERS = {768: (12, 3072, 12), 1024: (24, 4096, 16)}

# Keys without any effect on the released model's outputs, and why they are not carried over.
DEAD_KEYS = {
    "vis_enc.beit3.vision_embed.mask_token": "only used in BEiT-3's pre-training",
    "head.query_embedding.weight": "its result is discarded by the released head",
    "head.proj_pixel_level_cons.vis.weight": "contrastive projector that is never called",
    "head.proj_pixel_level_cons.vis.bias": "contrastive projector that is never called",
    "head.proj_pixel_level_cons.txt.weight": "contrastive projector that is never called",
    "head.proj_pixel_level_cons.txt.bias": "contrastive projector that is never called",
    "head.query_generation.query_embed.weight": "learned queries that AQG replaces",
    "head.decoder_transformer.level_embeds": "only added in an encoder that does not exist",
    "head.detrloss.criterion.empty_weight": "MODEL.GROUNDING_HEAD.NO_OBJECT_WEIGHT",
}
# Parts of carried-over tensors without effect; they are cut off.
DEAD_PARTS = {
    "vis_enc.beit3.encoder.embed_positions.A.weight": "rows 0 and 1 are never looked up",
    "vis_enc.beit3.encoder.embed_positions.B.weight": "rows 0 and 1 are never looked up",
    "head.query_generation.T2I_decoder.layers.0.attentions.0.attn.in_proj_weight": (
        "its input is zero: only the value bias reaches the output"
    ),
    "head.query_generation.T2I_decoder.layers.0.attentions.0.attn.in_proj_bias": (
        "query and key biases act on a softmax over equal values"
    ),
}


@dataclass(frozen=True)
class ModelSize:
    """What differs between the published models.

    Attributes:
        embed_dim, depth, ffn_dim, num_heads: size of the encoder.
        num_queries: N_q.
        image_size: (height, width) in pixels that the position table covers.
        vocab_size, text_rows, patch_size: rows of the word table, of the text positions (the two
            unused ones included), and side of a patch; those of the published files by default.
    """

    embed_dim: int
    depth: int
    ffn_dim: int
    num_heads: int
    num_queries: int
    image_size: Tuple[int, int]
    vocab_size: int = 64010
    text_rows: int = 1024
    patch_size: int = 16

    def config_options(self) -> List[Any]:
        """KEY VALUE pairs a config must agree with, for ``cfg.merge_from_list``."""
        return [
            *("MODEL.BEIT3.EMBED_DIM", self.embed_dim),
            *("MODEL.BEIT3.DEPTH", self.depth),
            *("MODEL.BEIT3.FFN_DIM", self.ffn_dim),
            *("MODEL.BEIT3.NUM_HEADS", self.num_heads),
            *("MODEL.BEIT3.PRETRAIN_IMAGE_SIZE", self.image_size),
            *("MODEL.QUERY_GENERATOR.NUM_OBJECT_QUERIES", self.num_queries),
        ]


@dataclass(frozen=True)
class Rule:
    """One parameter here, made from one or several released tensors.

    Attributes:
        target: our parameter name.
        sources: released key -> its shape, in the order ``make`` takes them.
        make: released tensors -> our tensor, a view of one of them unless ``packed``.
        packed: our tensor concatenates equal released ones.
    """

    target: str
    sources: Dict[str, Shape]
    make: Callable[..., torch.Tensor]
    packed: bool = False


def released_rules(size: ModelSize) -> List[Rule]:
    """The whole key table for one size of the released model; every target appears once."""
    return [*encoder_rules(size), *_dense_rules(size), *_query_rules(), *_decoder_rules()]


def unchanged(tensor: torch.Tensor) -> torch.Tensor:
    """The making of parameters that are only renamed."""
    return tensor


def _copy(target: str, source: str, *shape: int) -> Rule:
    return Rule(target, {source: shape}, unchanged)


def _affine(target: str, source: str, *weight_shape: int, out: int = 0) -> List[Rule]:
    """Weight and bias; the bias has ``out`` channels, by default the weight's first dimension."""
    return [
        _copy(f"{target}.weight", f"{source}.weight", *weight_shape),
        _copy(f"{target}.bias", f"{source}.bias", out or weight_shape[0]),
    ]


def encoder_rules(size: ModelSize, old: str = "vis_enc.beit3") -> List[Rule]:
    """Encoder: A is vision, B language; positions carry two unused rows.

    Args:
        size: of the model.
        old: prefix of the encoder's keys; "beit3" in BEiT-3's own files.
    """
    c, new = size.embed_dim, "backbone"
    patch = size.patch_size
    grid = [side // patch for side in size.image_size]
    vision = {f"{old}.encoder.embed_positions.A.weight": (3 + grid[0] * grid[1], c)}
    text = {f"{old}.encoder.embed_positions.B.weight": (size.text_rows, c)}
    rules = [
        _copy(f"{new}.text_embed.tokens.weight", f"{old}.text_embed.weight", size.vocab_size, c),
        Rule(f"{new}.text_embed.positions", text, lambda x: x[None, 2:]),
        _copy(f"{new}.vision_embed.cls_token", f"{old}.vision_embed.cls_token", 1, 1, c),
        Rule(f"{new}.vision_embed.cls_position", vision, lambda x: x[None, 2:3]),
        Rule(f"{new}.vision_embed.positions", vision, lambda x: x[None, 3:]),
        *_affine(f"{new}.vision_embed.proj", f"{old}.vision_embed.proj", c, 3, patch, patch),
        *_affine(f"{new}.encoder.vision_norm", f"{old}.encoder.layer_norm.A", c),
        *_affine(f"{new}.encoder.text_norm", f"{old}.encoder.layer_norm.B", c),
    ]
    for layer in range(size.depth):
        for expert, suffix in (("vision", "A"), ("text", "B")):
            rules += _expert_rules(
                f"{new}.encoder.layers.{layer}.{expert}",
                f"{old}.encoder.layers.{layer}",
                suffix,
                c,
                size.ffn_dim,
            )
    return rules


def _expert_rules(new: str, old: str, suffix: str, c: int, f: int) -> List[Rule]:
    """One modality of one encoder layer; query, key and value become one linear layer."""

    def packed(name: str, *shape: int) -> Rule:
        sources = {f"{old}.self_attn.{p}_proj.{suffix}.{name}": shape for p in "qkv"}
        return Rule(f"{new}.qkv.{name}", sources, lambda *x: torch.cat(x), packed=True)

    return [
        packed("weight", c, c),
        packed("bias", c),
        *_affine(f"{new}.attn_norm", f"{old}.self_attn_layer_norm.{suffix}", c),
        *_affine(f"{new}.inner_norm", f"{old}.self_attn.inner_attn_ln.{suffix}", c),
        *_affine(f"{new}.out_proj", f"{old}.self_attn.out_proj.{suffix}", c, c),
        *_affine(f"{new}.ffn_norm", f"{old}.final_layer_norm.{suffix}", c),
        *_affine(f"{new}.fc1", f"{old}.ffn.{suffix}.fc1", f, c),
        *_affine(f"{new}.ffn_inner_norm", f"{old}.ffn.{suffix}.ffn_layernorm", f),
        *_affine(f"{new}.fc2", f"{old}.ffn.{suffix}.fc2", c, f),
    ]


def _dense_rules(size: ModelSize) -> List[Rule]:
    """Projections, SimFPN, UNet, global mask and no-target branch."""
    c, d = size.embed_dim, DIM
    rules = [
        _copy("image_projection.weight", "head.img_embedding.weight", d, c, 1, 1),
        _copy("text_projection.weight", "head.lan_embedding.weight", d, c),
        *_affine("neck.scale_p2.0", "head.neck.fpn1.0", d, d // 2, 2, 2, out=d // 2),
        *_affine("neck.scale_p2.1", "head.neck.fpn1.1", d // 2),
        *_affine("neck.scale_p2.3", "head.neck.fpn1.3", d // 2, d // 4, 2, 2, out=d // 4),
        *_affine("neck.scale_p3", "head.neck.fpn2.0", d, d // 2, 2, 2, out=d // 2),
        *_affine("global_head.predictor", "head.seg_branch.predict", 1, d, 1, 1),
    ]
    for level, width in enumerate((d // 4, d // 2, d, d)):
        for new, old, kernel, channels in (
            (f"neck.lateral.{level}", f"head.neck.lateral_convs.{level}", 1, width),
            (f"neck.output.{level}", f"head.neck.fpn_convs.{level}", 3, d),
        ):
            rules.append(_copy(f"{new}.weight", f"{old}.conv.weight", d, channels, kernel, kernel))
            rules += _affine(f"{new}.norm", f"{old}.norm_layer", d)
    # Released stages count down from the coarse one; each has two convolutions.
    for stage, name in enumerate((4, 3, 2)):
        for conv, channels in enumerate((2 * d, d)):
            new, old = f"pixel_decoder.stages.{stage}.{conv}", "head.unet_decoder"
            norm = f"{old}.bn{conv + 1}_{name}"
            rules.append(
                _copy(f"{new}.weight", f"{old}.conv{conv + 1}_{name}.weight", d, channels, 3, 3)
            )
            rules += _affine(f"{new}.norm", norm, d)
            for buffer in ("running_mean", "running_var"):
                rules.append(_copy(f"{new}.norm.{buffer}", f"{norm}.{buffer}", d))
            counter = "num_batches_tracked"
            rules.append(_copy(f"{new}.norm.{counter}", f"{norm}.{counter}"))
    for layer, width in enumerate((d, d, 2)):
        rules += _affine(
            f"global_head.no_target.layers.{layer}", f"head.nt_embed.layers.{layer}", width, d
        )
    return rules


def _query_rules() -> List[Rule]:
    """AQG. Its self-attention acts on zeros, so of the input projection only a bias is left."""
    d, new = DIM, "query_generator.attention"
    old = "head.query_generation.T2I_decoder"
    layer = f"{old}.layers.0"
    rules = [
        Rule(
            f"{new}.self_value_bias",
            {
                f"{layer}.attentions.0.attn.in_proj_bias": (3 * d,),
                f"{layer}.attentions.0.attn.in_proj_weight": (3 * d, d),
            },
            lambda bias, weight: bias[2 * d :],
        ),
        *_affine(f"{new}.self_out_proj", f"{layer}.attentions.0.attn.out_proj", d, d),
        *_affine(f"{new}.out_proj", f"{layer}.attentions.1.attn.out_proj", d, d),
        *_affine(f"{new}.self_norm", f"{layer}.norms.0", d),
        *_affine(f"{new}.norm", f"{layer}.norms.1", d),
        *_affine(f"{new}.ffn.norm", f"{layer}.norms.2", d),
        *_affine(f"{new}.ffn.linear1", f"{layer}.ffns.0.layers.0.0", 2 * d, d),
        *_affine(f"{new}.ffn.linear2", f"{layer}.ffns.0.layers.1", d, 2 * d),
        *_affine(f"{new}.final_norm", f"{old}.post_norm_layer", d),
    ]
    for part, name in enumerate(("query", "key", "value")):
        for kind, shape in (("weight", (3 * d, d)), ("bias", (3 * d,))):
            source = {f"{layer}.attentions.1.attn.in_proj_{kind}": shape}
            rules.append(
                Rule(f"{new}.{name}_proj.{kind}", source, lambda x, part=part: x.chunk(3)[part])
            )
    for index, width in enumerate((2 * d, d, d)):
        name = f"mlp.layers.{index}"
        rules += _affine(f"query_generator.{name}", f"head.query_generation.{name}", d, width)
    return rules


def _decoder_rules() -> List[Rule]:
    """Query position, reference shift, deformable decoder and the shared predictors."""
    d, head = DIM, "grounding_head"
    transformer = "head.decoder_transformer"
    rules = [
        *_affine(f"{head}.query_pos", "head.query_pos_embedding", d, 2),
        *_affine(f"{head}.reference.shift", f"{transformer}.reference_points", 2, d),
        *_affine(f"{head}.predictor.class_embed", "head.class_embed.0", 2, d),
    ]
    for index, width in enumerate((d, d, 4)):
        name = f"layers.{index}"
        rules += _affine(
            f"{head}.predictor.box_embed.{name}", f"head.bbox_embed.0.{name}", width, d
        )
    for layer in range(DECODER_LAYERS):
        new, old = f"{head}.decoder.layers.{layer}", f"{transformer}.decoder.layers.{layer}"
        attn, deformable = f"{old}.attentions.0.attn", f"{old}.attentions.1"
        rules += [
            _copy(f"{new}.self_attn.attn.in_proj_weight", f"{attn}.in_proj_weight", 3 * d, d),
            _copy(f"{new}.self_attn.attn.in_proj_bias", f"{attn}.in_proj_bias", 3 * d),
            *_affine(f"{new}.self_attn.attn.out_proj", f"{attn}.out_proj", d, d),
            *_affine(f"{new}.self_attn.norm", f"{old}.norms.0", d),
            *_affine(f"{new}.norm", f"{old}.norms.1", d),
            *_affine(f"{new}.ffn.norm", f"{old}.norms.2", d),
            *_affine(f"{new}.ffn.linear1", f"{old}.ffns.0.layers.0.0", 4 * d, d),
            *_affine(f"{new}.ffn.linear2", f"{old}.ffns.0.layers.1", d, 4 * d),
        ]
        # 8 heads, 4 levels, 4 points; offsets have two coordinates each.
        for name, width in (
            ("sampling_offsets", 256),
            ("attention_weights", 128),
            ("value_proj", d),
            ("output_proj", d),
        ):
            rules += _affine(f"{new}.cross_attn.{name}", f"{deformable}.{name}", width, d)
    return rules


def released_aliases() -> Dict[str, str]:
    """Class and box layers are stored once per decoder layer, but are one tensor."""
    names = [f"class_embed.{{}}.{kind}" for kind in ("weight", "bias")]
    names += [f"bbox_embed.{{}}.layers.{i}.{k}" for i in range(3) for k in ("weight", "bias")]
    return {
        "head." + name.format(layer): "head." + name.format(0)
        for name in names
        for layer in range(1, DECODER_LAYERS)
    }


def dead_shapes(size: ModelSize) -> Dict[str, Shape]:
    """Tensor shapes of ``DEAD_KEYS``, in the same order."""
    c, d = size.embed_dim, DIM
    projector = [(d // 2, d, 1, 1), (d // 2,), (d // 2 + 1, d), (d // 2 + 1,)]
    shapes = [(1, 1, c), (d, c), *projector, (size.num_queries, d), (4, d), (2,)]
    return dict(zip(DEAD_KEYS, shapes))
