"""Atrous spatial pyramid pooling (section 2.1, figure 1; Chen et al., DeepLabv3+).

Shapes: ``B`` images, ``C`` channels of the trunk, ``A`` of the pyramid, ``H`` and ``W`` the size of the features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stratum_models.slag_deeplab.layers import conv_block


class ImagePooling(nn.Module):
    """What the whole image shows, at every cell: ``[B, C, H, W]`` to ``[B, A, H, W]``.

    One mean per image goes through a 1x1 convolution with bias and ReLU. There is no BN: it would take its statistics from as many values
    as there are images in the batch, so that a batch of one could not be trained and a batch of two would tell nothing but which is larger.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        pooled: Tensor = self.conv(x.mean((2, 3), keepdim=True)).relu()
        return pooled.expand(-1, -1, x.shape[2], x.shape[3])


class AtrousPyramid(nn.Module):
    """A 1x1 convolution, a dilated 3x3 convolution per dilation, and image pooling, joined and projected.

    Args:
        inputs: ``C``.
        outputs: ``A``.
        dilations: of the 3x3 convolutions.
        separable: whether these are depthwise separable (section 2.3).
    """

    def __init__(self, inputs: int, outputs: int, dilations: Sequence[int], *, separable: bool) -> None:
        super().__init__()
        dilated = [conv_block(inputs, outputs, dilation=d, separable=separable) for d in dilations]
        self.branches = nn.ModuleList([conv_block(inputs, outputs, 1), *dilated, ImagePooling(inputs, outputs)])
        self.project = conv_block(outputs * len(self.branches), outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, A, H, W]``."""
        joined: Tensor = self.project(torch.cat([branch(x) for branch in self.branches], dim=1))
        return joined
