"""What the query generator selects: text tokens (Section 3.1.1) and points (Algorithm 1, top-k)."""

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


def select_points(
    heatmap: torch.Tensor, num_points: int, dist_weight: float, dist_unit: str = "cells"
) -> torch.Tensor:
    """Dist-Score Point Selector (Algorithm 1): high scores, far from the points already chosen.

    Greedy over the points, vectorised over samples and cells; no device synchronisation.

    Args:
        heatmap: float (N, H, W) logits; the sigmoid is applied here (line 1).
        num_points: Q.
        dist_weight: W_dist, the weight of the distance to the nearest chosen point.
        dist_unit: "cells" measures the distance in cells (the paper), "diagonal" divides it by the
            grid's diagonal (the release).

    Returns:
        int64 (N, Q), row-major cell indices in the order of selection, distinct per sample.

    Raises:
        ValueError: more points than cells, or an unknown unit.
    """
    n, height, width = heatmap.shape
    _check_count(num_points, height, width)
    if dist_unit not in ("cells", "diagonal"):
        raise ValueError(f"dist_unit must be 'cells' or 'diagonal', got {dist_unit!r}.")
    scores = heatmap.detach().sigmoid().flatten(1)
    scale = dist_weight if dist_unit == "cells" else dist_weight / (height**2 + width**2) ** 0.5
    cells = torch.arange(height * width, device=heatmap.device)
    rows, columns = cells // width, cells % width
    chosen = [scores.argmax(dim=1)]
    taken = torch.zeros_like(scores, dtype=torch.bool)
    squared = torch.full_like(scores, float("inf"))
    for _ in range(num_points - 1):
        last = chosen[-1][:, None]
        taken = taken | (cells == last)
        step = (rows - last // width) ** 2 + (columns - last % width) ** 2
        squared = torch.minimum(squared, step.to(scores.dtype))
        combined = scores + scale * squared.sqrt()
        chosen.append(combined.masked_fill(taken, float("-inf")).argmax(dim=1))
    return torch.stack(chosen, dim=1)


def select_top_points(heatmap: torch.Tensor, num_points: int) -> torch.Tensor:
    """The cells of the highest scores, the baseline of Fig. 4 and Table 6.

    Args:
        heatmap: float (N, H, W).
        num_points: Q.

    Returns:
        int64 (N, Q), row-major cell indices by descending score.
    """
    _check_count(num_points, *heatmap.shape[1:])
    return heatmap.detach().flatten(1).topk(num_points, dim=1).indices


def cell_centers(indices: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Centers of grid cells.

    Args:
        indices: int64 (N, Q), row-major.
        height, width: size of the grid in cells.

    Returns:
        float (N, Q, 2), (x, y) in (0, 1).
    """
    x = (indices % width + 0.5) / width
    y = (indices // width + 0.5) / height
    return torch.stack([x, y], dim=-1)


def _check_count(num_points: int, height: int, width: int) -> None:
    if num_points > height * width:
        raise ValueError(
            f"{num_points} points asked of a grid of {height} x {width} cells; lower "
            "MODEL.QUERY_GENERATOR.NUM_OBJECT_QUERIES or enlarge INPUT.IMAGE_SIZE."
        )
