"""DeepLabv3+ with attention on the high-level features (figure 1).

Shapes: ``B`` images of ``H x W``, ``K`` classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stratum_models.slag_deeplab.aspp import AtrousPyramid
from stratum_models.slag_deeplab.layers import conv_block, initialize
from stratum_models.timm_trunk import TimmTrunk

STRIDES = (4, 16)  # of the features that the decoder takes as they are, and of those that the pyramid looks at
OUTPUT_STRIDE = STRIDES[-1]


class DeepLabV3Plus(nn.Module):
    """The network between a normalised batch and logits at a quarter of its size.

    Args:
        trunk: gives features at strides 4 and 16.
        attention: what the high-level features go through before the pyramid, e.g. EMA; ``nn.Identity()`` for none.
        pyramid: from the trunk's high-level channels to ``pyramid_channels``.
        pyramid_channels: what comes out of the pyramid.
        num_classes: ``K``.
        shortcut_channels: what the features at stride 4 are reduced to (48 in DeepLabv3+).
        decoder_channels: of the decoder's two 3x3 convolutions.
    """

    def __init__(
        self,
        trunk: TimmTrunk,
        attention: nn.Module,
        pyramid: AtrousPyramid,
        pyramid_channels: int,
        num_classes: int,
        *,
        shortcut_channels: int,
        decoder_channels: int,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.attention = attention
        self.pyramid = pyramid
        self.shortcut = conv_block(trunk.channels[0], shortcut_channels, 1)
        self.decoder = nn.Sequential(
            conv_block(pyramid_channels + shortcut_channels, decoder_channels), conv_block(decoder_channels, decoder_channels)
        )
        self.classify = nn.Conv2d(decoder_channels, num_classes, 1)
        for part in (pyramid, self.shortcut, self.decoder):
            part.apply(initialize)

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]``, sides multiples of 16, to logits ``[B, K, H / 4, W / 4]``."""
        low, high = self.trunk(images)
        context = self.pyramid(self.attention(high))
        context = F.interpolate(context, size=low.shape[-2:], mode="bilinear", align_corners=False)
        logits: Tensor = self.classify(self.decoder(torch.cat([context, self.shortcut(low)], dim=1)))
        return logits
