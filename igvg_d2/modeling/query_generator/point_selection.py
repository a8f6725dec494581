"""Choice of reference points from a score map: Algorithm 1 of the paper, and plain top-k."""

import torch


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
