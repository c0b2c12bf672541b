"""Efficient multi-scale attention (section 2.4, figure 4; Ouyang et al., ICASSP 2023).

Shapes: ``B`` images, ``C`` channels, ``G`` groups of ``c = C / G`` channels each, ``H`` and ``W`` the size of the features.
"""

import torch
from torch import Tensor, nn

from stratum_models.errors import UserError


class EfficientMultiScaleAttention(nn.Module):
    """Weighs every cell of every group of channels by two branches that look at each other.

    The weights are shared by the groups: ``c = 40`` channels (320 in 8 groups) have 16,160 parameters.

    - 1x1 branch: means along each row and along each column, mixed by one 1x1 convolution, gate the input; GroupNorm follows, with each
      channel a group of its own.
    - 3x3 branch: a 3x3 convolution of the input, neither pooled nor normalised.
    - Each branch's descriptor, the softmax over the channels of its global means (Eq. 2), weighs the channels of the other branch; the two
      maps add up to one logit per cell, whose sigmoid multiplies the input.

    Args:
        channels: ``C``.
        groups: ``G``, a divisor of ``C``.

    Raises:
        UserError: ``C`` cannot be divided so.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        if channels % groups:
            some = [g for g in range(1, channels + 1) if channels % g == 0][:10]
            raise UserError(f"option ema_groups={groups}: {channels} channels cannot be divided so; possible are {some} and so on")
        self.groups = groups
        inner = channels // groups
        self.mix = nn.Conv2d(inner, inner, 1)
        self.norm = nn.GroupNorm(inner, inner)
        self.local = nn.Conv2d(inner, inner, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same shape."""
        size = x.shape
        height, width = size[-2:]
        x = x.reshape(size[0] * self.groups, size[1] // self.groups, height, width)  # [B G, c, H, W]
        wide, tall = self._gated(x), self.local(x)
        weights = _across(wide, tall) + _across(tall, wide)  # [B G, 1, H, W]
        return (x * weights.sigmoid()).reshape(size)

    def _gated(self, x: Tensor) -> Tensor:
        """The 1x1 branch: ``[B G, c, H, W]`` to the same shape."""
        height, width = x.shape[-2:]
        rows, columns = x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)  # [B G, c, H, 1], [B G, c, W, 1]
        rows, columns = self.mix(torch.cat([rows, columns], dim=2)).sigmoid().split([height, width], dim=2)
        gated: Tensor = self.norm(x * rows * columns.transpose(2, 3))
        return gated


def _across(described: Tensor, weighed: Tensor) -> Tensor:
    """The channels ``[B G, c, H, W]`` of one branch, weighed by the descriptor of the other: ``[B G, 1, H, W]``."""
    descriptor = described.mean((2, 3), keepdim=True).softmax(1)  # Eq. 2
    return (descriptor * weighed).sum(1, keepdim=True)
