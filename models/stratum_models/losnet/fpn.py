"""The light feature pyramid of section 3.2, with the parts that it leaves out as options.

Shapes: ``B`` images, ``C`` channels of the pyramid, ``H_i`` and ``W_i`` the size at level ``i``.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from stratum_models.strided import StridedConv


class FeaturePyramid(nn.Module):
    """1x1 convolutions that align the channels, then sums from the top down (figure 3b).

    Args:
        in_channels: channels of C3, C4 and C5.
        channels: channels of every output.
        convs: whether each level is smoothed by a 3x3 convolution, as in the original pyramid (figure 3a).
        extra_levels: whether P6 and P7 are made from P5 by convolutions of stride 2.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, *, convs: bool, extra_levels: bool) -> None:
        super().__init__()
        self.lateral = nn.ModuleList([nn.Conv2d(c, channels, 1) for c in in_channels])
        smooth = [nn.Conv2d(channels, channels, 3, padding=1) if convs else nn.Identity() for _ in in_channels]
        self.smooth = nn.ModuleList(smooth)
        extra = [StridedConv(channels, channels, 3, stride=2, padding=1) for _ in range(2 if extra_levels else 0)]
        self.extra = nn.ModuleList(extra)
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_uniform_(conv.weight, a=1)
                nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """``[B, C_i, H_i, W_i]`` for C3 to C5 to ``[B, C, H_i, W_i]`` for P3 to P5, or to P7."""
        levels = [conv(x) for conv, x in zip(self.lateral, features, strict=True)]
        for low, high in zip(range(len(levels) - 2, -1, -1), range(len(levels) - 1, 0, -1), strict=True):
            levels[low] = levels[low] + F.interpolate(levels[high], size=levels[low].shape[-2:], mode="nearest")
        levels = [conv(x) for conv, x in zip(self.smooth, levels, strict=True)]
        for i, conv in enumerate(self.extra):
            levels.append(conv(levels[-1] if i == 0 else F.relu(levels[-1])))
        return levels
