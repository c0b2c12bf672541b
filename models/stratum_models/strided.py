"""A convolution with a stride that also learns from maps of a single column.

Shapes: ``B`` images, ``C`` channels, ``h`` and ``w`` the size of a feature map.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class StridedConv(nn.Conv2d):
    """``nn.Conv2d``, but maps of one column, which have nothing to stride over sideways, get stride 1 there: the same values.

    In bfloat16 on a CPU the gradient of the weights of a strided 3x3 convolution on such a map is uninitialised memory, often NaN
    (torch 2.15 with oneDNN, any batch and height); with stride 1 sideways, and on wider maps, it is right. Kernels must be odd and padded
    by half.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, h, w]`` to ``[B, C', h', w']``."""
        if self.training and x.shape[3] == 1:
            return F.conv2d(x, self.weight, self.bias, (self.stride[0], 1), self.padding, self.dilation, self.groups)
        return super().forward(x)
