"""The U-Net of both stages: strides in place of pooling (section 4, "Model").

Shapes: ``B`` images, ``K`` classes, ``H`` and ``W`` the size of the batch, multiples of 32.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stratum_models.errors import UserError
from stratum_models.semantic.config import SemanticConfig
from stratum_models.semantic.model import SemanticModel

DEPTH = 5
PAPER_LOSS = "alpha_focal+foreground_dice"


@dataclass(frozen=True, kw_only=True)
class StridedUNetConfig(SemanticConfig):
    """What can be chosen in the U-Net; the defaults are the paper's.

    Raises:
        UserError: a value is outside its range.
    """

    loss: str = PAPER_LOSS
    """As in every semantic model; the paper's is focal + 1 - Dice."""
    width: int = 64
    """Channels of the first convolution; each further one of the five has twice as many."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.width <= 256 or self.width % 2:
            raise UserError(f"option width={self.width}: must be an even number from 2 to 256")


class StridedUNet(nn.Module):
    """Five 3x3 convolutions and five transposed ones, all with stride 2 and ReLU, joined at equal sizes by skips; then a 1x1 convolution.

    Args:
        width: channels of the first convolution.
        num_classes: ``K``.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        channels = [width * 2**i for i in range(DEPTH)]
        self.down = nn.ModuleList(nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in zip([3, *channels], channels, strict=False))
        inputs = [channels[-1], *(2 * c for c in reversed(channels[:-1]))]  # behind a skip there are twice as many
        outputs = [*reversed(channels[:-1]), width // 2]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(i, o, 3, stride=2, padding=1, output_padding=1) for i, o in zip(inputs, outputs, strict=True)
        )
        self.classify = nn.Conv2d(width // 2, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` to logits ``[B, K, H, W]``."""
        maps = []
        x = images
        for convolution in self.down:
            x = convolution(x).relu_()
            maps.append(x)
        x = self.up[0](maps.pop()).relu_()
        for transposed in list(self.up)[1:]:
            x = transposed(torch.cat([x, maps.pop()], 1)).relu_()
        logits: Tensor = self.classify(x)
        return logits


def build_strided_unet(config: StridedUNetConfig, num_classes: int, backbone_weights: str | None = None) -> SemanticModel:
    """The U-Net with random weights.

    Raises:
        UserError: weights are asked for.
    """
    if backbone_weights is not None:
        raise UserError(f"unet_s2 has no pretrained weights (asked for {backbone_weights}): train it with --backbone-weights none")
    network = StridedUNet(config.width, num_classes)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            _initialise(module)
    return SemanticModel(network, num_classes, config, divisor=2**DEPTH)


def _initialise(convolution: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """He's initialisation, by what a pixel receives: of a transposed convolution with stride 2, a quarter of the kernel reaches it."""
    inputs = convolution.in_channels * convolution.kernel_size[0] * convolution.kernel_size[1]
    if isinstance(convolution, nn.ConvTranspose2d):
        inputs //= convolution.stride[0] * convolution.stride[1]
    nn.init.normal_(convolution.weight, std=(2 / inputs) ** 0.5)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
