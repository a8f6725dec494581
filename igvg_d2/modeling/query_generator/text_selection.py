"""Score Text Selector (Section 3.1.1): the text tokens that query the image."""

from typing import Tuple

import torch
import torch.nn.functional as F


def select_text(
    text: torch.Tensor, text_padding_mask: torch.Tensor, num_tokens: int, score: str
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Keep the highest-scoring valid tokens.

    A text with at least Q valid tokens gives its top Q by descending score; a shorter one gives all
    of them in reading order, filled up with zero vectors.

    Args:
        text: float (N, L, D).
        text_padding_mask: bool (N, L), True = padding; padding is a suffix.
        num_tokens: Q.
        score: "l2" norm of a token (the paper) or "mean" of its channels (the release).

    Returns:
        float (N, Q, D), zero where invalid, and bool (N, Q), True = valid.

    Raises:
        ValueError: unknown score.
    """
    if score not in ("l2", "mean"):
        raise ValueError(f"TEXT_SCORE must be 'l2' or 'mean', got {score!r}.")
    # Q places more than the text has: a test of its length would fix it in an exported graph.
    text = F.pad(text, (0, 0, 0, num_tokens))
    text_padding_mask = F.pad(text_padding_mask, (0, num_tokens), value=True)
    valid = ~text_padding_mask
    values = text.detach().float()
    scores = values.norm(dim=-1) if score == "l2" else values.mean(dim=-1)
    scores = scores.masked_fill(text_padding_mask, float("-inf"))
    # Descending "-position" is reading order, so one top-k serves both cases.
    reading_order = -torch.arange(text.shape[1], device=text.device, dtype=scores.dtype)
    enough = valid.sum(dim=1, keepdim=True) >= num_tokens
    order = torch.where(enough, scores, reading_order).topk(num_tokens, dim=1).indices
    kept = valid.gather(1, order)
    selected = text.gather(1, order[..., None].expand(-1, -1, text.shape[-1]))
    return selected * kept[..., None], kept


def select_channels(text: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """The release with its selector switched off: every channel picks its own top tokens.

    Padding takes part, as in the release, so the answer depends on the longest text of the batch.
    The release pads every text to 50 tokens; here it is padded to the longest.

    Args:
        text: float (N, L, D), padding included.
        num_tokens: Q.

    Returns:
        float (N, Q, D).
    """
    length = text.shape[1]
    places = torch.arange(length + num_tokens, device=text.device)
    # Zeros fill a text up to Q tokens, as above without a test of its length.
    is_beyond = (places >= length) & (places >= num_tokens)
    text = F.pad(text, (0, 0, 0, num_tokens)).masked_fill(is_beyond[:, None], float("-inf"))
    return text.topk(num_tokens, dim=1).values
