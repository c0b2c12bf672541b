"""From feature maps of several sizes to logits: the multi-scale feature aggregation module (section 3.3, figure 4), or without it.

Shapes: ``B`` images, ``C_i`` channels of map ``i``, ``h`` and ``w`` the size of the first map, which is the largest, ``K`` classes.
"""

from collections.abc import Sequence
from math import gcd

import torch
from torch import Tensor, nn

from stratum_models.fm_hrnet.layers import BatchNorm, conv_norm, enlarged

KERNELS = (3, 5, 7, 9)
GROUPS = (1, 4, 8, 16)  # the larger the kernel, the more groups: the four together have no more weights than one 3x3 convolution


class PyConv(nn.Module):
    """Pyramid convolution: a quarter of the outputs for each of four kernel sizes.

    Args:
        channels: in and out, a multiple of 4.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        part = channels // len(KERNELS)
        self.scales = nn.ModuleList(
            nn.Conv2d(channels, part, kernel, padding=kernel // 2, groups=gcd(groups, part), bias=False)
            for kernel, groups in zip(KERNELS, GROUPS, strict=True)
        )
        self.norm = BatchNorm(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, h, w]`` to the same shape."""
        y: Tensor = self.relu(self.norm(torch.cat([scale(x) for scale in self.scales], 1)))
        return y


class DilatedPyramid(nn.Module):
    """Dilated spatial pyramid pooling: a 1x1 convolution, dilated 3x3 convolutions and the mean of the image, spliced and projected.

    The mean has one value for each channel and image: BN would have nothing to normalise over in a batch of one, and would take away all
    that the mean adds. So its share of the projection has no BN and joins the others after theirs.

    Args:
        channels: in and out.
        dilations: one 3x3 convolution for each.
    """

    def __init__(self, channels: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.scales = nn.ModuleList([conv_norm(channels, channels), *(conv_norm(channels, channels, 3, dilation=d) for d in dilations)])
        self.mean = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU(inplace=True), nn.Conv2d(channels, channels, 1, bias=False))
        self.project = conv_norm(channels * len(self.scales), channels, relu=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, h, w]`` to the same shape."""
        spliced = torch.cat([scale(x) for scale in self.scales], 1)
        y: Tensor = self.relu(self.project(spliced) + self.mean(x.mean((2, 3), keepdim=True)))
        return y


class Aggregation(nn.Module):
    """Maps at the size of the first, spliced and reduced to ``width`` channels, through the given parts, to logits.

    Args:
        channels: of each map.
        width: of the parts.
        parts: what works on the spliced maps, one after another.
        num_classes: ``K``.
        factors: by how much smaller than the first each map is.
    """

    def __init__(self, channels: Sequence[int], width: int, parts: Sequence[nn.Module], num_classes: int, factors: Sequence[int]) -> None:
        super().__init__()
        self.factors = tuple(factors)
        self.reduce = nn.ModuleList(conv_norm(c, width, relu=False) for c in channels)
        self.relu = nn.ReLU(inplace=True)
        self.parts = nn.Sequential(*parts)
        self.classify = nn.Conv2d(width, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """``[B, C_i, h_i, w_i]`` for each map to ``[B, K, h, w]``."""
        logits: Tensor = self.classify(self.parts(self.relu(summed(self.reduce, maps, self.factors))))
        return logits


class SpliceHead(nn.Module):
    """A 1x1 convolution of the spliced maps to logits, taken on each map at its own size.

    Args:
        channels: of each map.
        num_classes: ``K``.
        factors: by how much smaller than the first each map is.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, factors: Sequence[int]) -> None:
        super().__init__()
        self.factors = tuple(factors)
        self.classify = nn.ModuleList(nn.Conv2d(c, num_classes, 1, bias=number == 0) for number, c in enumerate(channels))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """``[B, C_i, h_i, w_i]`` for each map to ``[B, K, h, w]``."""
        return summed(self.classify, maps, self.factors)


def summed(layers: nn.ModuleList, maps: Sequence[Tensor], factors: Sequence[int]) -> Tensor:
    """One layer for each map, and the sum of what they give, enlarged by the factors to the size of the first, whose own is 1."""
    total: Tensor = layers[0](maps[0])
    for layer, x, factor in zip(layers[1:], maps[1:], factors[1:], strict=True):
        total = total + enlarged(layer(x), total, factor)
    return total
