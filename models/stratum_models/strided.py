"""A convolution with a stride that also learns from a single position.

Shapes: ``B`` images, ``C`` channels, ``h`` and ``w`` the size of a feature map.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class StridedConv(nn.Conv2d):
    """``nn.Conv2d``, but for maps of 1x1 in training, which have nothing to stride over and are convolved with stride 1: the same values.

    In bfloat16 on a CPU the gradient of a 3x3 convolution with stride 2 on such a map is uninitialised memory, often NaN (torch 2.15 with
    oneDNN, any batch); with stride 1, and on larger maps, it is right.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, h, w]`` to ``[B, C', h', w']``."""
        if self.training and x.shape[2] == x.shape[3] == 1:
            return F.conv2d(x, self.weight, self.bias, 1, self.padding, self.dilation, self.groups)
        return super().forward(x)
