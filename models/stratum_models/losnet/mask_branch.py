"""The mask branch: P3 to P5 to the few features that every dynamic mask head reads (section 3.1, figure 2).

Shapes: ``B`` images, ``C`` channels of the pyramid, ``H`` and ``W`` the size of P3.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


def conv_bn_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    """A 3x3 convolution, BN and ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class MaskBranch(nn.Module):
    """Each of P3 to P5 through one convolution, summed at the size of P3, then a tower and a 1x1 convolution to ``code`` channels."""

    def __init__(self, in_channels: int, channels: int, *, convs: int, code: int) -> None:
        super().__init__()
        self.refine = nn.ModuleList([conv_bn_relu(in_channels, channels) for _ in range(3)])
        self.tower = nn.Sequential(*[conv_bn_relu(channels, channels) for _ in range(convs)])
        self.project = nn.Conv2d(channels, code, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """``[B, C, H_i, W_i]`` of P3, P4, P5 (further levels are not read) to ``[B, code, H, W]``."""
        summed = self.refine[0](levels[0])
        for refine, level in zip(self.refine[1:], levels[1:3], strict=True):
            summed = summed + F.interpolate(refine(level), size=summed.shape[-2:], mode="bilinear", align_corners=False)
        return self.project(self.tower(summed))  # type: ignore[no-any-return]
