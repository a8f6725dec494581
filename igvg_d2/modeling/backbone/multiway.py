"""Multiway transformer of BEiT-3: attention over image and text together, weights per modality.

The two modalities stay in two tensors; they meet only inside the attention. So nothing is split or
concatenated per layer but the attention's own inputs.
"""

from typing import Callable, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

# Standard deviation of the truncated normal that initialises tables and linear layers.
INIT_STD = 0.02
# BEiT-3 uses PyTorch's default epsilon everywhere.
LAYER_NORM_EPS = 1e-5


class ModalityExpert(nn.Module):
    """All weights that one modality owns in one layer (pre-norm, with sub-LN)."""

    def __init__(self, dim: int, ffn_dim: int, recompute: bool = False):
        """
        Args:
            dim: C.
            ffn_dim: width of the feed-forward layer.
            recompute: norms and GELU, not products, are computed again in the backward pass, which
                halves what a layer keeps of the forward pass.
        """
        super().__init__()
        self.recompute = recompute
        self.attn_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.inner_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.out_proj = nn.Linear(dim, dim)
        self.ffn_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.fc1 = nn.Linear(dim, ffn_dim)
        self.ffn_inner_norm = nn.LayerNorm(ffn_dim, eps=LAYER_NORM_EPS)
        self.fc2 = nn.Linear(ffn_dim, dim)

    def project_in(self, x: torch.Tensor) -> torch.Tensor:
        """float (N, S, C) -> packed queries, keys, values (N, S, 3C)."""
        return self._run(lambda x: self.qkv(self.attn_norm(x)), x)

    def project_out(self, heads: torch.Tensor) -> torch.Tensor:
        """Concatenated heads (N, S, C) -> residual branch of the attention (N, S, C)."""
        return self._run(lambda x: self.out_proj(self.inner_norm(x)), heads)

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """float (N, S, C) -> residual branch of the feed-forward layer (N, S, C)."""
        x = self._run(lambda x: self.fc1(self.ffn_norm(x)), x)
        return self._run(lambda x: self.fc2(self.ffn_inner_norm(F.gelu(x))), x)

    def _run(self, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor):
        """Of the product that a function ends with, only the input is computed again."""
        if not (self.training and self.recompute):
            return function(x)
        return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)


class MultiwayBlock(nn.Module):
    """One encoder layer (Wang et al., BEiT-3, CVPR 2023, Fig. 2)."""

    def __init__(
        self, dim: int, num_heads: int, ffn_dim: int, drop_path: float, recompute: bool = False
    ):
        """
        Args:
            dim: C.
            num_heads: heads of dimension C / num_heads.
            ffn_dim: width of the feed-forward layer.
            drop_path: probability that a sample skips a residual branch in training.
            recompute: see :class:`ModalityExpert`; of the image, of which most tokens are.
        """
        super().__init__()
        self.num_heads = num_heads
        self.drop_path = drop_path
        self.vision = ModalityExpert(dim, ffn_dim, recompute)
        self.text = ModalityExpert(dim, ffn_dim)

    def forward(
        self, image: torch.Tensor, text: torch.Tensor, attn_mask: Optional[torch.Tensor]
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            image: float (N, 1 + Hi * Wi, C), CLS first.
            text: float (N, L, C).
            attn_mask: bool (N, 1, 1, 1 + Hi * Wi + L), True = may be attended to; None = all.

        Returns:
            the two inputs after this layer, same shapes.
        """
        split = [image.shape[1], text.shape[1]]
        qkv = torch.cat([self.vision.project_in(image), self.text.project_in(text)], dim=1)
        n, s, _ = qkv.shape
        q, k, v = qkv.view(n, s, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        heads_image, heads_text = heads.transpose(1, 2).reshape(n, s, -1).split(split, dim=1)
        keep = self._keep_factor(image)
        image = _add(image, self.vision.project_out(heads_image), keep)
        text = _add(text, self.text.project_out(heads_text), keep)
        keep = self._keep_factor(image)
        text = _add(text, self.text.feed_forward(text), keep)
        # Last, because a checkpoint computes everything again but its last product.
        image = _add(image, self.vision.feed_forward(image), keep)
        return image, text

    def _keep_factor(self, x: torch.Tensor) -> Optional[torch.Tensor]:
        """Stochastic depth: 0 or 1 / keep per sample, of both its modalities; None for all 1."""
        if not self.training or self.drop_path == 0.0:
            return None
        keep = 1.0 - self.drop_path
        return x.new_empty(len(x), 1, 1).bernoulli_(keep) / keep


def _add(x: torch.Tensor, branch: torch.Tensor, keep: Optional[torch.Tensor]) -> torch.Tensor:
    """The residual sum, with the branch's factor."""
    return x + (branch if keep is None else keep * branch)


class MultiwayEncoder(nn.Module):
    """Stack of :class:`MultiwayBlock` with a final LayerNorm per modality."""

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        ffn_dim: int,
        drop_path: float,
        checkpointing: bool,
    ):
        """
        Args:
            dim, depth, num_heads, ffn_dim: size of the encoder.
            drop_path: stochastic depth of the last layer, linear from 0 at the first.
            checkpointing: recompute all activations in the backward pass.

        Raises:
            ValueError: dim is not divisible by num_heads.
        """
        super().__init__()
        if dim % num_heads:
            raise ValueError(
                f"MODEL.BEIT3.EMBED_DIM = {dim} is not divisible by NUM_HEADS = {num_heads}."
            )
        self.checkpointing = checkpointing
        rates = [drop_path * layer / max(depth - 1, 1) for layer in range(depth)]
        self.layers = nn.ModuleList(
            MultiwayBlock(dim, num_heads, ffn_dim, rate, not checkpointing) for rate in rates
        )
        self.vision_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.text_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=INIT_STD)
                nn.init.zeros_(layer.bias)

    def forward(
        self, image: torch.Tensor, text: torch.Tensor, attn_mask: Optional[torch.Tensor]
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Inputs and outputs as :meth:`MultiwayBlock.forward`."""
        for layer in self.layers:
            if self.checkpointing and self.training:
                options = {"use_reentrant": False, "preserve_rng_state": layer.drop_path > 0}
                image, text = checkpoint(layer, image, text, attn_mask, **options)
            else:
                image, text = layer(image, text, attn_mask)
        return self.vision_norm(image), self.text_norm(text)
