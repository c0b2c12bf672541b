"""Smaller and back: corners stay on corners, so that a pixel of the small image covers the same part of the large one in both directions.

Shapes: ``H`` and ``W`` the size of an image, ``h`` and ``w`` that of the scaled-down one, ``K`` classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def small_size(size: Sequence[int], scale: float) -> tuple[int, int]:
    """The size of a scaled-down image of ``(height, width)``; no side is below 1."""
    height, width = size
    return max(1, round(height / scale)), max(1, round(width / scale))


def shrunk(image: Tensor, scale: float) -> Tensor:
    """``[3, H, W]`` to ``[3, h, w]``, each pixel a weighted mean of all that it stands for."""
    size = small_size(image.shape[-2:], scale)
    if size == tuple(image.shape[-2:]):
        return image
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]


def shrunk_mask(mask: Tensor, scale: float) -> Tensor:
    """Labels int64 ``[H, W]`` to ``[h, w]``, each the label in the middle of what it stands for."""
    size = small_size(mask.shape, scale)
    return F.interpolate(mask[None, None].float(), size=size, mode="nearest-exact")[0, 0].to(torch.int64)


def at_size(probabilities: Tensor, height: int, width: int) -> Tensor:
    """``[K, h, w]`` to ``[K, H, W]``, bilinear."""
    if probabilities.shape[-2:] == (height, width):
        return probabilities
    return F.interpolate(probabilities[None], size=(height, width), mode="bilinear", align_corners=False)[0]
