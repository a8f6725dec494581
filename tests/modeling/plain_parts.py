"""Losses, matching and other formulas of the release, for :mod:`tests.modeling.plain_igvg`."""

import math

import torch
from scipy.optimize import linear_sum_assignment


def segmentation_losses(logits, targets):
    """Dice and BCE, each a mean over a list of masks (H, W)."""
    dice, bce = [], []
    for x, g in zip(logits, targets):
        p = 1 / (1 + (-x).exp())
        dice.append(1 - (2 * (p * g).sum() + 1) / (p.sum() + g.sum() + 1))
        bce.append(-(g * p.log() + (1 - g) * (1 - p).log()).mean())
    return sum(dice) / len(dice), sum(bce) / len(bce)


def match_queries(logits, predicted, points, targets):
    """(query, target) pairs of one sample with the least cost."""
    if len(targets) == 0:
        return []
    present = logits.exp()[:, 0] / logits.exp().sum(-1)
    cost = torch.zeros(len(predicted), len(targets), dtype=torch.float64)
    for q, box in enumerate(predicted):
        for t, target in enumerate(targets):
            cost[q, t] = 5 * (box - target).abs().sum() - present[q] - 2 * giou(box, target)
            cost[q, t] += 2 * (points[q] - target[:2]).abs().sum()
    return list(zip(*linear_sum_assignment(cost.detach().numpy())))


def detection_losses(logits, predicted, targets, matches, num_boxes):
    """Cross-entropy, L1 and GIoU of one layer, unweighted."""
    logs = logits - logits.exp().sum(-1, keepdim=True).log()
    entropy, weight, l1, overlap = 0.0, 0.0, 0.0, 0.0
    for sample, pairs in enumerate(matches):
        matched = dict(pairs)
        for q in range(logits.shape[1]):
            w, label = (1.0, 0) if q in matched else (0.1, 1)
            entropy, weight = entropy - w * logs[sample, q, label], weight + w
        for q, t in pairs:
            box, target = predicted[sample, q], targets[sample][t]
            l1 = l1 + (box - target).abs().sum()
            overlap = overlap + 1 - giou(box, target)
    return entropy / weight, l1 / num_boxes, overlap / num_boxes


def to_centers(boxes):
    """XYXY to (cx, cy, w, h)."""
    return torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], dim=1)


def giou(a, b):
    """Generalised IoU of two boxes (cx, cy, w, h)."""
    low_a, high_a, low_b, high_b = (
        a[:2] - a[2:] / 2, a[:2] + a[2:] / 2, b[:2] - b[2:] / 2, b[:2] + b[2:] / 2
    )  # fmt: skip
    shared = (torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)).clamp(min=0).prod()
    union = a[2:].prod() + b[2:].prod() - shared
    hull = (torch.maximum(high_a, high_b) - torch.minimum(low_a, low_b)).prod()
    return shared / (union + 1e-6) - (hull - union) / (hull + 1e-6)


def bilinear(value, pixel):
    """Map (C, H, W) at a continuous pixel (x, y), zero outside."""
    x0, y0 = (int(math.floor(c)) for c in pixel.tolist())
    total = value.new_zeros(len(value))
    for x in (x0, x0 + 1):
        for y in (y0, y0 + 1):
            if 0 <= x < value.shape[2] and 0 <= y < value.shape[1]:
                share = (1 - (pixel[0] - x).abs()) * (1 - (pixel[1] - y).abs())
                total = total + share * value[:, y, x]
    return total


def sine_positions(grid, dim):
    """DETR's sine embedding (grid * grid, dim): y, then x, sine and cosine in turn."""
    rows = []
    for cell in range(grid * grid):
        row = []
        for index in (cell // grid, cell % grid):
            angle = (index + 1) / (grid + 1e-6) * 2 * math.pi
            for i in range(dim // 2):
                phase = angle / 10000 ** (2 * (i // 2) / (dim // 2))
                row.append(math.sin(phase) if i % 2 == 0 else math.cos(phase))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)
