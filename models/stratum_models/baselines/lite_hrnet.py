"""Lite-HRNet (Yu et al., CVPR 2021): parallel branches of shuffle blocks, with conditional channel weighting in place of 1x1 convolutions.

Shapes: ``B`` images, ``C_i`` channels of branch ``i``, ``h_i`` and ``w_i`` its size, ``K`` classes, ``H`` and ``W`` the size of the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stratum_models.errors import UserError
from stratum_models.fm_hrnet.aggregation import SpliceHead
from stratum_models.fm_hrnet.layers import conv_norm, enlarged, initialise, separable_conv
from stratum_models.fm_hrnet.parallel import Fusion
from stratum_models.semantic.config import SemanticConfig
from stratum_models.semantic.model import SemanticModel

STEM_CHANNELS = 32
BLOCKS = 2  # weighting blocks between two exchanges
CROSS_RATIO = 8  # how much narrower the weights' bottleneck is: across resolutions, and in space
SPATIAL_RATIO = 4


@dataclass(frozen=True, kw_only=True)
class LiteHRNetConfig(SemanticConfig):
    """A Lite-HRNet.

    Raises:
        UserError: a value is outside its range.
    """

    repeats: tuple[int, ...] = (2, 4, 2)
    """Modules of the stages with two, three and four branches (Table 1): ``2,4,2`` in Lite-HRNet-18, ``3,8,3`` in Lite-HRNet-30."""
    channels: int = 40
    """Channels of the first branch; each further one has twice as many."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.repeats) != 3 or min(self.repeats) < 1:
            raise UserError(f"Lite-HRNet option repeats={self.repeats}: must be three numbers of 1 or more, e.g. 2,4,2")
        if self.channels < 8 or self.channels % 8:
            raise UserError(f"Lite-HRNet option channels={self.channels}: must be a multiple of 8, e.g. 40")


def shuffled(first: Tensor, second: Tensor) -> Tensor:
    """Two halves ``[B, C, h, w]`` to ``[B, 2C, h, w]`` with their channels in turns."""
    return torch.stack([first, second], 2).flatten(1, 2)


class CrossResolutionWeighting(nn.Module):
    """Weights for the channels of all branches at once, computed where the lowest resolution is (equation 4).

    Every branch is averaged down to the size of the last, all are spliced, and two 1x1 convolutions give each channel a weight in 0..1 at
    each position, which is repeated up to the size of its branch.

    Args:
        channels: of each branch.
        ratio: how much narrower the first convolution's output is.
    """

    def __init__(self, channels: Sequence[int], ratio: int = CROSS_RATIO) -> None:
        super().__init__()
        self.channels = list(channels)
        total = sum(channels)
        self.squeeze = conv_norm(total, total // ratio)
        self.excite = conv_norm(total // ratio, total, relu=False)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """``[B, C_i, h_i, w_i]`` for each branch to the same shapes."""
        sides = [2 ** (len(maps) - 1 - number) for number in range(len(maps))]
        spliced = torch.cat([F.avg_pool2d(x, side, ceil_mode=True) for x, side in zip(maps, sides, strict=True)], 1)
        weights = self.excite(self.squeeze(spliced)).sigmoid().split(self.channels, 1)
        return [x * enlarged(weight, x, side, "nearest") for x, weight, side in zip(maps, weights, sides, strict=True)]


class SpatialWeighting(nn.Module):
    """One weight in 0..1 for each channel from its mean over the image (equation 6). No BN: the mean is a single value for each image."""

    def __init__(self, channels: int, ratio: int = SPATIAL_RATIO) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, max(1, channels // ratio), 1)
        self.excite = nn.Conv2d(max(1, channels // ratio), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, h, w]`` to the same shape."""
        weight: Tensor = self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return x * weight


class WeightingBlock(nn.Module):
    """The shuffle block of all branches, with conditional channel weighting where it had 1x1 convolutions (figure 2b).

    Half of each branch's channels pass unchanged; the others are weighted across resolutions, filtered in 3x3 depthwise, weighted in
    space. Then both are shuffled.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        halves = [c // 2 for c in channels]
        self.cross = CrossResolutionWeighting(halves)
        self.filters = nn.ModuleList(nn.Sequential(conv_norm(c, c, 3, groups=c, relu=False), SpatialWeighting(c)) for c in halves)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """``[B, C_i, h_i, w_i]`` for each branch to the same shapes."""
        pairs = [x.chunk(2, 1) for x in maps]
        weighted = self.cross([second for _, second in pairs])
        return [shuffled(kept, layer(x)) for (kept, _), layer, x in zip(pairs, self.filters, weighted, strict=True)]


class Stem(nn.Module):
    """A 3x3 convolution with stride 2 and a shuffle block with stride 2: 1/4 of the image, 32 channels."""

    def __init__(self) -> None:
        super().__init__()
        half = STEM_CHANNELS // 2
        self.conv = conv_norm(3, STEM_CHANNELS, 3, stride=2)
        self.left = separable_conv(half, half, stride=2)
        self.right = nn.Sequential(conv_norm(half, STEM_CHANNELS), separable_conv(STEM_CHANNELS, half, stride=2))

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` to ``[B, 32, H / 4, W / 4]``."""
        left, right = self.conv(images).chunk(2, 1)
        return shuffled(self.left(left), self.right(right))


def separable_step(inputs: int, outputs: int, relu: bool) -> nn.Module:
    """A depthwise separable 3x3 convolution with stride 2."""
    return separable_conv(inputs, outputs, stride=2, relu=relu)


class LiteHRNet(nn.Module):
    """A normalised batch to logits.

    The head is a 1x1 convolution of all branches, enlarged to the size of the first and spliced.

    Args:
        channels: of each of the four branches.
        repeats: modules of the stages with two, three and four branches.
        num_classes: ``K``.
    """

    def __init__(self, channels: Sequence[int], repeats: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.stem = Stem()
        self.first = separable_conv(STEM_CHANNELS, channels[0])
        self.entries = nn.ModuleList(
            separable_step(above, below, True) for above, below in zip((STEM_CHANNELS, *channels[1:-1]), channels[1:], strict=True)
        )
        self.stages = nn.ModuleList(_stage(channels[: number + 2], repeat) for number, repeat in enumerate(repeats))
        self.head = SpliceHead(channels, num_classes, [2**number for number in range(len(channels))])

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` to logits ``[B, K, H / 4, W / 4]``."""
        x = self.stem(images)
        maps = [self.first(x)]
        for number, (entry, stage) in enumerate(zip(self.entries, self.stages, strict=True)):
            maps = stage([*maps, entry(maps[-1] if number else x)])
        logits: Tensor = self.head(maps)
        return logits


def _stage(channels: Sequence[int], repeats: int) -> nn.Module:
    modules = [[*(WeightingBlock(channels) for _ in range(BLOCKS)), Fusion(channels, separable_step, "nearest")] for _ in range(repeats)]
    return nn.Sequential(*(layer for module in modules for layer in module))


def build_lite_hrnet(config: LiteHRNetConfig, num_classes: int, backbone_weights: str | None = None) -> SemanticModel:
    """A Lite-HRNet with random weights.

    Raises:
        UserError: weights are asked for, or ``num_classes`` does not fit.
    """
    if backbone_weights is not None:
        raise UserError(f"Lite-HRNet has no pretrained weights (asked for {backbone_weights}): train it with --backbone-weights none")
    channels = [config.channels * 2**number for number in range(4)]
    network = LiteHRNet(channels, config.repeats, num_classes)
    initialise(network, network.head.classify)
    return SemanticModel(network, num_classes, config)
