"""The down-sampling feature extraction module (section 3.1, figure 2): four stages in series, channels growing to 64.

Shapes: ``B`` images, ``H`` and ``W`` the size of the batch.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from stratum_models.fm_hrnet.layers import conv_norm
from stratum_models.fm_hrnet.residual import Residual


class DownSampling(nn.Module):
    """A convolution and three residual stages with strides of their own.

    Args:
        channels: what goes out (the paper: 64); the stages have a quarter, a half, and twice all of it.
        strides: of the four stages; ``(2, 2, 2, 1)`` ends at 1/8 of the image, ``(2, 2, 2, 2)`` at 1/16.
    """

    def __init__(self, channels: int, strides: Sequence[int]) -> None:
        super().__init__()
        first, second, third, fourth = strides
        self.stage1 = conv_norm(3, channels // 4, 3, stride=first)
        self.stage2 = Residual(channels // 4, channels // 2, stride=second)
        self.stage3 = Residual(channels // 2, channels, stride=third)
        self.stage4 = Residual(channels, channels, stride=fourth)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, 3, H, W]`` to the third stage's map (1/8 of the image with strides of 2) and the last one's, both with ``channels``."""
        detail: Tensor = self.stage3(self.stage2(self.stage1(images)))
        return detail, self.stage4(detail)
