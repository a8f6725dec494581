"""Attention-guided query generation (AQG, Section 3.1.1, Fig. 3)."""

from typing import Dict, Optional, Tuple

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import nn

from ..backbone.build import VLFeatures
from ..losses import dice_loss, mask_bce_loss
from ..targets import GroundingTargets
from ..transformer import MLP, PositionEmbeddingSine
from ..transformer.layers import FeedForward
from .build import QUERY_GENERATOR_REGISTRY, GroundingQueries
from .selection import (
    cell_centers,
    select_channels,
    select_points,
    select_text,
    select_top_points,
)


class TextToImageAttention(nn.Module):
    """Text tokens attend to the image and keep what they looked at.

    Eq. 1 is multi-head cross-attention. With ``decoder_layer`` it sits inside the full post-norm
    decoder layer of the release. That layer's self-attention runs on all-zero content, so its
    output is one constant vector; only the parameters that shape this constant exist here.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        dropout: float,
        decoder_layer: bool,
        with_output: bool = True,
        ffn_dim: int = 512,
    ):
        """
        Args:
            dim: D.
            num_heads: M.
            dropout: of the attention weights and residual branches.
            decoder_layer: the release's layer instead of plain cross-attention.
            with_output: compute F_q; False keeps only what the attention map needs.
            ffn_dim: inner width of the feed-forward layer (``decoder_layer`` only).

        Raises:
            ValueError: dim is not divisible by num_heads.
        """
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"HIDDEN_DIM = {dim} is not divisible by NHEADS = {num_heads}.")
        self.num_heads = num_heads
        self.query_proj = nn.Linear(dim, dim)
        self.key_proj = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.decoder_layer = decoder_layer
        self.with_output = with_output
        projections = [self.query_proj, self.key_proj]
        if decoder_layer:
            self.self_value_bias = nn.Parameter(torch.zeros(dim))
            self.self_out_proj = nn.Linear(dim, dim)
            self.self_norm = nn.LayerNorm(dim)
        if with_output:
            self.value_proj = nn.Linear(dim, dim)
            self.out_proj = nn.Linear(dim, dim)
            self.norm = nn.LayerNorm(dim)
            projections += [self.value_proj, self.out_proj]
        if decoder_layer and with_output:
            self.ffn = FeedForward(dim, ffn_dim, dropout)
            self.final_norm = nn.LayerNorm(dim)
        for layer in projections:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, text: torch.Tensor, image: torch.Tensor, image_pos: torch.Tensor
    ) -> Tuple[Optional[torch.Tensor], torch.Tensor, torch.Tensor]:
        """
        Args:
            text: float (N, Q, D), selected tokens.
            image: float (N, H * W, D).
            image_pos: float (H * W, D), added to the keys.

        Returns:
            F_q float (N, Q, D), None without output; softmax weights and scaled dot products,
            both float (N, Q, H * W), averaged over the heads.
        """
        content = text
        query = text
        if self.decoder_layer:
            content = self.self_norm(self.self_out_proj(self.self_value_bias))
            query = text + content
        q = self._split(self.query_proj(query))
        k = self._split(self.key_proj(image + image_pos))
        # In float32, because points are selected by small differences.
        logits = q @ k.transpose(-1, -2)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * q.shape[-1] ** -0.5
        weights = self.dropout(logits.softmax(dim=-1))
        out = None
        if self.with_output:
            v = self._split(self.value_proj(image))
            out = self.out_proj((weights.to(v.dtype) @ v).transpose(1, 2).flatten(2))
            out = self.norm(content + self.dropout(out))
            if self.decoder_layer:
                out = self.final_norm(self.ffn(out))
        return out, weights.mean(dim=1), logits.mean(dim=1)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """float (N, S, D) -> (N, M, S, D / M)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


@QUERY_GENERATOR_REGISTRY.register()
class PointGuidedQueryGenerator(nn.Module):
    """Text tokens attend to the image; points chosen on the pooled attention become queries."""

    @configurable
    def __init__(
        self,
        *,
        dim: int,
        num_queries: int,
        text_selection: str,
        text_score: str,
        attention: TextToImageAttention,
        score_map: str,
        pool: str,
        selector: str,
        dist_weight: float,
        dist_unit: str,
        inject_text: bool,
        minimap_weight: float,
        minimap_target: str,
    ):
        """
        Args:
            dim: D.
            num_queries: N_q.
            text_selection: "topk", "off" or "channel" (see ``MODEL.QUERY_GENERATOR``).
            text_score: "l2" or "mean".
            attention: the text-to-image attention.
            score_map: the map pools softmax "weights" or "logits".
            pool: "mean" or "max" over the text queries.
            selector: "dsps" or "topk".
            dist_weight, dist_unit: see :func:`select_points`.
            inject_text: concatenate F_q to Q_filter (ITQ).
            minimap_weight: weight of the score map's supervision.
            minimap_target: "area" or "nearest".

        Raises:
            ValueError: an unknown value of an option, or nothing would train the attention.
        """
        super().__init__()
        _check_choice("TEXT_SELECTION", text_selection, ("topk", "off", "channel"))
        _check_choice("MAP", score_map, ("weights", "logits"))
        _check_choice("POOL", pool, ("mean", "max"))
        _check_choice("SELECTOR", selector, ("dsps", "topk"))
        _check_choice("MINIMAP_TARGET", minimap_target, ("area", "nearest"))
        if not inject_text and minimap_weight <= 0:
            raise ValueError(
                "Nothing would train the text-to-image attention: set "
                "MODEL.QUERY_GENERATOR.INJECT_TEXT to True or MINIMAP_WEIGHT above 0."
            )
        self.num_queries = num_queries
        self.text_selection = text_selection
        self.text_score = text_score
        self.attention = attention
        self.score_map = score_map
        self.pool = pool
        self.selector = selector
        self.dist_weight = dist_weight
        self.dist_unit = dist_unit
        self.inject_text = inject_text
        self.minimap_weight = minimap_weight
        self.minimap_target = minimap_target
        self.position = PositionEmbeddingSine(dim)
        self.mlp = MLP(2 * dim if inject_text else dim, dim, dim, num_layers=3)

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.QUERY_GENERATOR
        dim = cfg.MODEL.IGVG.HIDDEN_DIM
        _check_choice("ATTENTION", node.ATTENTION, ("cross", "decoder_layer"))
        return {
            "dim": dim,
            "num_queries": node.NUM_OBJECT_QUERIES,
            "text_selection": node.TEXT_SELECTION,
            "text_score": node.TEXT_SCORE,
            "attention": TextToImageAttention(
                dim,
                node.NHEADS,
                node.DROPOUT,
                decoder_layer=node.ATTENTION == "decoder_layer",
                with_output=node.INJECT_TEXT,
            ),
            "score_map": node.MAP,
            "pool": node.POOL,
            "selector": node.SELECTOR,
            "dist_weight": node.DIST_WEIGHT,
            "dist_unit": node.DIST_UNIT,
            "inject_text": node.INJECT_TEXT,
            "minimap_weight": node.MINIMAP_WEIGHT,
            "minimap_target": node.MINIMAP_TARGET,
        }

    def forward(
        self, vl_features: VLFeatures, targets: Optional[GroundingTargets] = None
    ) -> Tuple[GroundingQueries, Dict[str, torch.Tensor]]:
        """See ``QUERY_GENERATOR_REGISTRY``. The loss key is ``loss_point_heatmap``."""
        image = vl_features.image["last_feat"]
        height, width = image.shape[-2:]
        tokens = image.flatten(2).transpose(1, 2)
        text, valid = self._select_text(vl_features)
        text_queries, weights, logits = self.attention(text, tokens, self.position(height, width))
        heatmap = self._pool(weights if self.score_map == "weights" else logits, valid)
        heatmap = heatmap.unflatten(1, (height, width))
        indices = self._select_points(heatmap)
        features = tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[-1]))
        if self.inject_text:
            features = torch.cat([self._per_query(text_queries, valid), features], dim=-1)
        queries = GroundingQueries(
            features=self.mlp(features),
            reference_points=cell_centers(indices, height, width),
            attention_map=heatmap if self.score_map == "weights" else heatmap.sigmoid(),
        )
        losses = {}
        if targets is not None and self.minimap_weight > 0:
            losses["loss_point_heatmap"] = self.minimap_weight * self._minimap_loss(
                heatmap, targets
            )
        return queries, losses

    def _select_text(self, vl_features: VLFeatures) -> Tuple[torch.Tensor, torch.Tensor]:
        """Tokens that attend to the image, float (N, K, D), and which are valid, bool (N, K)."""
        text, padding = vl_features.text, vl_features.text_padding_mask
        if self.text_selection == "topk":
            return select_text(text, padding, self.num_queries, self.text_score)
        if self.text_selection == "off":
            return text, ~padding
        selected = select_channels(text, self.num_queries)
        return selected, selected.new_ones(selected.shape[:2], dtype=torch.bool)

    def _pool(self, maps: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Score map float (N, H * W) from per-token maps (N, K, H * W)."""
        if self.pool == "max":
            return maps.masked_fill(~valid[..., None], float("-inf")).amax(dim=1)
        return _mean_over_valid(maps, valid)

    def _select_points(self, heatmap: torch.Tensor) -> torch.Tensor:
        if self.selector == "topk":
            return select_top_points(heatmap, self.num_queries)
        return select_points(heatmap, self.num_queries, self.dist_weight, self.dist_unit)

    def _per_query(self, text_queries: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """F_q for each point: the i-th token for the i-th point, or the mean without STS."""
        if self.text_selection != "off":
            return text_queries
        mean = _mean_over_valid(text_queries, valid)
        return mean[:, None].expand(-1, self.num_queries, -1)

    def _minimap_loss(self, heatmap: torch.Tensor, targets: GroundingTargets) -> torch.Tensor:
        """Dice and BCE of the score map, read as logits, against the union mask on the grid."""
        size = heatmap.shape[-2:]
        target = F.interpolate(targets.union_masks, size=size, mode=self.minimap_target)[:, 0]
        return targets.mean_over_whole(dice_loss(heatmap, target) + mask_bce_loss(heatmap, target))


def _mean_over_valid(x: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """float (N, K, ...) and bool (N, K) -> float (N, ...); a text has at least one valid token."""
    weight = valid[..., None].to(x.dtype)
    return (x * weight).sum(dim=1) / weight.sum(dim=1)


def _check_choice(key: str, value: str, choices: Tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"MODEL.QUERY_GENERATOR.{key} must be one of {choices}, got {value!r}.")
