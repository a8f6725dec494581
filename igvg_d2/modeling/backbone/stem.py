"""A convolutional stem that already reads the words, for encoders trained from scratch.

Not part of BEiT-3, which comes pretrained; off unless ``MODEL.BEIT3.STEM_CHANNELS`` is set. Small
encoders learn much faster with convolutions (Xiao et al., NeurIPS 2021), and faster again when the
words modulate them (Perez et al., FiLM, AAAI 2018).
"""

from typing import Dict, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from torch import nn

from .build import SceneObjects
from .role_reasoning import RoleReasoner
from .scene_objects import ObjectFinder

# Heads that pool the words for a modulation, and word maps given to the features.
_POOL_HEADS = 4
_WORD_MAPS = 8
# A new modulation must be felt: with 0.02 the words stay without effect for thousands of samples.
_MODULATION_STD = 0.2


class WordStem(nn.Module):
    """Stride-2 stages of residual convolutions; from one stage on the words take part.

    Up to the first block of that stage the features know the picture only. There they are mapped
    into the space of the word embeddings ("stem_words"), compared with every word of the
    expression, and the comparisons are added to them as maps. All later blocks are modulated by the
    words. With ``num_objects``, the objects of the picture are found there too, and what the
    expression says of each is added to its cells.
    """

    def __init__(
        self,
        channels: Sequence[int],
        blocks: Sequence[int],
        text_stage: int,
        embed_dim: int,
        num_objects: int = 0,
        num_roles: int = 4,
    ):
        """
        Args:
            channels: width of each stage; 2 to their number is the patch size.
            blocks: residual blocks of each stage.
            text_stage: index of the stage where the words come in, after its first block.
            embed_dim: C, width of the tokens.
            num_objects: K, slots for objects; 0 for a stem without them.
            num_roles: H, see :class:`RoleReasoner`.

        Raises:
            ValueError: lengths differ, or the text stage has no block.
        """
        super().__init__()
        if len(blocks) != len(channels):
            raise ValueError(
                f"MODEL.BEIT3.STEM_BLOCKS has {len(blocks)} entries and STEM_CHANNELS "
                f"{len(channels)}; both need one per stage."
            )
        if not 0 <= text_stage < len(blocks) or blocks[text_stage] < 1:
            raise ValueError(
                f"MODEL.BEIT3.STEM_TEXT_STAGE = {text_stage} must be a stage with at least one "
                f"block; MODEL.BEIT3.STEM_BLOCKS is {list(blocks)}."
            )
        self.channels = list(channels)
        self.text_stage = text_stage
        self.embed_dim = embed_dim
        widths = [3, *channels]
        self.stages = nn.ModuleList(
            _conv(widths[i], widths[i + 1], stride=2) for i in range(len(channels))
        )
        self.blocks = nn.ModuleList(
            nn.ModuleList(_conv(width, width, stride=1) for _ in range(count))
            for width, count in zip(channels, blocks)
        )
        self.modulations = nn.ModuleList()
        for stage, (width, count) in enumerate(zip(channels, blocks)):
            modulated = count - 1 if stage == text_stage else count
            if stage < text_stage:
                modulated = 0
            self.modulations.append(
                nn.ModuleList(WordModulation(embed_dim, width) for _ in range(modulated))
            )
        self.word_maps = WordMaps(channels[text_stage], embed_dim)
        self.object_maps = None
        if num_objects > 0:
            self.object_maps = ObjectMaps(channels[text_stage], embed_dim, num_objects, num_roles)
        self.proj = nn.Conv2d(channels[-1], embed_dim, kernel_size=1)

    def output_shape(self) -> Dict[str, ShapeSpec]:
        """Channels and strides (input pixels) of the features."""
        shapes = {
            f"stem_{2 ** (stage + 1)}": ShapeSpec(channels=width, stride=2 ** (stage + 1))
            for stage, width in enumerate(self.channels)
        }
        shapes["stem_words"] = ShapeSpec(channels=self.embed_dim, stride=2 ** (self.text_stage + 1))
        return shapes

    def forward(
        self,
        images: torch.Tensor,
        words: torch.Tensor,
        text: torch.Tensor,
        text_padding_mask: torch.Tensor,
    ) -> Tuple[torch.Tensor, Dict[str, torch.Tensor], Optional[SceneObjects], torch.Tensor]:
        """
        Args:
            images: float (N, 3, H, W).
            words: float (N, L, C), embeddings of the words alone.
            text: float (N, L, C), words with positions and, if there are text layers, context.
            text_padding_mask: bool (N, L), True = padding.

        Returns:
            float (N, C, H / patch, W / patch), the features of :meth:`output_shape`, the objects or
            None, and a summary of them to be added to the CLS token, float (N, 1, C) or 0.0.
        """
        features, objects, summary = {}, None, 0.0
        x = images
        for stage, (down, blocks) in enumerate(zip(self.stages, self.blocks)):
            x = down(x)
            blocks = list(blocks)
            if stage <= self.text_stage:
                plain = blocks[:1] if stage == self.text_stage else blocks
                for block in plain:
                    x = x + block(x)
                blocks = blocks[len(plain) :]
            if stage == self.text_stage:
                seen = x
                x, features["stem_words"] = self.word_maps(x, words, text, text_padding_mask)
                if self.object_maps is not None:
                    maps, objects, summary = self.object_maps(
                        seen,
                        features["stem_words"],
                        words,
                        text,
                        text_padding_mask,
                        self.word_maps.similarity,
                    )
                    x = x + maps
            for block, modulation in zip(blocks, self.modulations[stage]):
                x = x + block(modulation(x, text, text_padding_mask))
            features[f"stem_{2 ** (stage + 1)}"] = x
        return self.proj(x), features, objects, summary


class ObjectMaps(nn.Module):
    """Finds the objects, reads the expression, and tells the cells of each what it says of it."""

    def __init__(self, width: int, embed_dim: int, num_objects: int, num_roles: int):
        """
        Args:
            width: channels of the features.
            embed_dim: C.
            num_objects: K.
            num_roles: H, see :class:`RoleReasoner`.
        """
        super().__init__()
        self.finder = ObjectFinder(width, embed_dim, num_objects)
        self.reasoner = RoleReasoner(embed_dim, num_roles)
        self.out = nn.Linear(embed_dim, width)
        self.summary = nn.Linear(embed_dim + 1, embed_dim)

    def forward(self, x, cells, words, text, text_padding_mask, similarity):
        """
        Args:
            x: float (N, width, h, w), features that know the picture only.
            cells: float (N, C, h, w), the same in the words' space.
            words, text, text_padding_mask: see :meth:`WordStem.forward`.
            similarity: compares objects and words, see :meth:`WordMaps.similarity`.

        Returns:
            float (N, width, h, w) to be added to the features, :class:`SceneObjects`, and a summary
            float (N, 1, C).
        """
        objects = self.finder(x, cells)
        likeness = similarity(objects.features, words)
        objects, found = self.reasoner(objects, likeness, text, text_padding_mask)
        exists = objects.exists_logits.sigmoid()[..., None]
        maps = objects.assignment @ self.out(found * exists)
        wanted = exists * objects.target_logits.sigmoid()[..., None]
        mean = (wanted * found).sum(dim=1, keepdim=True) / (1 + wanted.sum(dim=1, keepdim=True))
        best = torch.minimum(objects.target_logits, objects.exists_logits).amax(dim=1)
        best = 3 * (best / 9).tanh()[:, None, None]
        summary = self.summary(torch.cat([mean, best], dim=-1))
        return maps.transpose(1, 2).unflatten(2, x.shape[-2:]), objects, summary


class WordMaps(nn.Module):
    """Where does the picture look like the words? A few weighted sums of word-to-cell products."""

    def __init__(self, width: int, embed_dim: int):
        """
        Args:
            width: channels of the features.
            embed_dim: C.
        """
        super().__init__()
        self.proj = nn.Conv2d(width, embed_dim, kernel_size=1)
        self.norm = nn.LayerNorm(embed_dim)
        self.scale = nn.Parameter(torch.tensor(embed_dim**-0.5))
        self.text_norm = nn.LayerNorm(embed_dim)
        self.weights = nn.Linear(embed_dim, _WORD_MAPS)
        self.out = nn.Conv2d(_WORD_MAPS, width, kernel_size=1)

    def similarity(self, features: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """float (..., S, C) in the words' space and float (..., L, C) -> float (..., S, L)."""
        return features @ words.transpose(-1, -2) * self.scale

    def forward(
        self,
        x: torch.Tensor,
        words: torch.Tensor,
        text: torch.Tensor,
        text_padding_mask: torch.Tensor,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            x: float (N, width, h, w).
            words, text, text_padding_mask: see :meth:`WordStem.forward`.

        Returns:
            x with the maps added, and the features in the words' space, float (N, C, h, w), which
            do not depend on the text.
        """
        grid = x.shape[-2:]
        cells = self.norm(self.proj(x).flatten(2).transpose(1, 2))
        weights = _softmax_over_words(self.weights(self.text_norm(text)), text_padding_mask)
        maps = (self.similarity(cells, words) @ weights).transpose(1, 2).unflatten(2, grid)
        return x + self.out(maps), cells.transpose(1, 2).unflatten(2, grid)


class WordModulation(nn.Module):
    """Scale and shift of the channels, read from the words by learned attention (FiLM)."""

    def __init__(self, embed_dim: int, width: int):
        """
        Args:
            embed_dim: C.
            width: channels that are modulated.
        """
        super().__init__()
        self.text_norm = nn.LayerNorm(embed_dim)
        self.score = nn.Linear(embed_dim, _POOL_HEADS)
        self.value = nn.Linear(embed_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)
        self.scale_shift = nn.Linear(embed_dim, 2 * width)
        nn.init.normal_(self.score.weight, std=0.1)
        nn.init.normal_(self.scale_shift.weight, std=_MODULATION_STD)
        nn.init.zeros_(self.scale_shift.bias)

    def forward(
        self, x: torch.Tensor, text: torch.Tensor, text_padding_mask: torch.Tensor
    ) -> torch.Tensor:
        """float (N, width, h, w), float (N, L, C), bool (N, L) -> float (N, width, h, w)."""
        text = self.text_norm(text)
        weights = _softmax_over_words(self.score(text), text_padding_mask)
        values = self.value(text).unflatten(-1, (_POOL_HEADS, -1))
        pooled = (weights[..., None] * values).sum(dim=1).flatten(1)
        scale, shift = self.scale_shift(self.norm(pooled))[..., None, None].chunk(2, dim=1)
        return x * (1 + scale) + shift


def _softmax_over_words(scores: torch.Tensor, text_padding_mask: torch.Tensor) -> torch.Tensor:
    """float (N, L, heads) -> weights that sum to 1 over the words that are no padding."""
    return scores.masked_fill(text_padding_mask[..., None], float("-inf")).softmax(dim=1)


def _conv(in_channels: int, out_channels: int, stride: int) -> Conv2d:
    """3x3 convolution, batch normalisation, GELU."""
    return Conv2d(
        in_channels,
        out_channels,
        kernel_size=3,
        stride=stride,
        padding=1,
        bias=False,
        norm=get_norm("BN", out_channels),
        activation=F.gelu,
    )
