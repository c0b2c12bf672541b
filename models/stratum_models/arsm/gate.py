"""The gating network (section 3, figure 3): which resolution decides each class at each pixel.

Shapes: ``B`` images, ``R`` resolutions, ``K`` classes, ``D`` channels of all branches together, ``h`` and ``w`` the size of the
first branch.
"""

import torch
from torch import Tensor, nn
from torchvision.models.shufflenetv2 import InvertedResidual


class GatingBlock(nn.Sequential):
    """ShuffleNetV2's unit of stride 1 (Ma et al. 2018, figure 3c) and a 1x1 convolution to the classes.

    The unit splits the channels in two halves and leaves the first; the second passes a 1x1 convolution, a depthwise 3x3 and a 1x1, each
    with BN, the 1x1 with ReLU; then the channels of both halves are interleaved.

    Args:
        channels: ``D``, even.
        num_classes: ``K``.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__(InvertedResidual(channels, channels, stride=1), nn.Conv2d(channels, num_classes, 1))


class GatingNetwork(nn.Module):
    """One block for each resolution, all of them on the concatenated features.

    Args:
        resolutions: ``R``.
        channels: ``D``.
        num_classes: ``K``.
    """

    def __init__(self, resolutions: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(GatingBlock(channels, num_classes) for _ in range(resolutions))

    def forward(self, features: Tensor) -> Tensor:
        """Concatenated features ``[B, D, h, w]`` to the gate's logits ``[B, R, K, h, w]``, before the softmax over ``R``."""
        return torch.stack([block(features) for block in self.blocks], dim=1)
