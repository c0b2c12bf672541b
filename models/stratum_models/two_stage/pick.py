"""Which patches are looked at again: how unsure each pixel is, each patch, and the choice among them.

Every measure lies in 0..1: 0 where one class has probability 1, 1 where nothing is known.

Shapes: ``K`` classes, ``H`` and ``W`` the size of the image, ``n`` chosen cells of a grid.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from stratum_models.two_stage.patches import Grid

Uncertainty = Literal["entropy", "margin", "distance"]
Reduction = Literal["mean", "max"]
Rule = Literal["count", "share", "threshold"]


def uncertainty(probabilities: Tensor, measure: Uncertainty) -> Tensor:
    """How unsure each pixel of ``[K, H, W]`` is, float32 ``[H, W]``.

    - ``entropy``: divided by that of equal probabilities.
    - ``margin``: 1 minus the lead of the most probable class over the next.
    - ``distance``: 1 minus twice the distance from 0.5 of the class that comes nearest to it. For two classes that is ``margin`` again.
    """
    probabilities = probabilities.float()
    if measure == "entropy":
        return -torch.xlogy(probabilities, probabilities).sum(0) / math.log(len(probabilities))
    if measure == "distance" or len(probabilities) == 2:
        planes = probabilities[:1] if len(probabilities) == 2 else probabilities
        return 1 - 2 * (planes - 0.5).abs().amin(0)
    first, second = torch.maximum(*probabilities[:2]), torch.minimum(*probabilities[:2])
    for plane in probabilities[2:]:  # ten times as fast as topk along the first dimension
        first, second = torch.maximum(first, plane), torch.maximum(second, torch.minimum(first, plane))
    return 1 - (first - second)


def patch_scores(unsure: Tensor, grid: Grid, reduction: Reduction) -> Tensor:
    """The mean or the maximum of a map ``[H, W]`` over each cell, float32 ``[rows * columns]``; at the edge, over the pixels there are."""
    missing = (0, grid.columns * grid.side - grid.width, 0, grid.rows * grid.side - grid.height)
    cells = F.pad(unsure, missing).view(grid.rows, grid.side, grid.columns, grid.side)  # zeros raise neither sum nor maximum
    if reduction == "max":
        return cells.amax((1, 3)).flatten()
    heights, widths = _lengths(grid.height, grid.side, unsure), _lengths(grid.width, grid.side, unsure)
    return (cells.sum((1, 3)) / (heights[:, None] * widths)).flatten()


def _lengths(length: int, side: int, like: Tensor) -> Tensor:
    """The lengths of the cells along one side of the image."""
    starts = torch.arange(0, length, side, device=like.device)
    return (length - starts).clamp(max=side).to(like.dtype)


def ranked(scores: Tensor) -> Tensor:
    """The cells int64 from the least sure to the surest; of equals, the one further up, then further left."""
    return scores.sort(descending=True, stable=True).indices


def how_many(scores: Tensor, rule: Rule, *, count: int, share: float, threshold: float, cap: int | None) -> int:
    """The number of cells to refine, never more than there are.

    Args:
        scores: of all cells of an image.
        rule: ``count``: as many as ``count`` says. ``share``: that share of the cells, to the nearest number (a half counts up).
            ``threshold``: those whose confidence, 1 minus the score, is below ``threshold``; of scores without values (on the meta
            device, where costs are counted) all, the most there can be.
        count: see ``rule``.
        share: see ``rule``.
        threshold: see ``rule``.
        cap: at most so many; None for no cap.
    """
    if rule == "count":
        wanted = count
    elif rule == "share":
        wanted = math.floor(share * len(scores) + 0.5)
    elif scores.is_meta:
        wanted = len(scores)
    else:
        wanted = int((1 - scores < threshold).sum())
    return min(wanted, len(scores), len(scores) if cap is None else cap)


def choose(scores: Tensor, number: int) -> Tensor:
    """The ``number`` least sure cells, int64 ``[n]``, in the order of their positions."""
    return ranked(scores)[:number].sort().values


def choose_for_training(scores: Tensor, number: int, *, random: float, easy: float) -> Tensor:
    """Cells int64 ``[n]`` to learn from: the least sure, as at inference, with others among them; each once, ordered by position.

    Args:
        scores: of all cells of an image.
        number: how many; fewer where there are fewer cells.
        random: share of them that is drawn from all that is left, by torch's global generator.
        easy: share of them that is the surest.
    """
    order = ranked(scores)
    number = min(number, len(order))
    easy_ones, drawn = round(number * easy), round(number * random)
    hard = max(number - easy_ones - drawn, 0)
    middle = order[hard : len(order) - easy_ones]
    lot = middle[torch.randperm(len(middle), device="cpu").to(middle.device)[: number - hard - easy_ones]]
    return torch.cat([order[:hard], lot, order[len(order) - easy_ones :]]).sort().values
