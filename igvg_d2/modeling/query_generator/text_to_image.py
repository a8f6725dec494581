"""Text-to-image attention of the query generator (Eq. 1)."""

from typing import Optional, Tuple

import torch
from torch import nn

from ..transformer.layers import FeedForward


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
