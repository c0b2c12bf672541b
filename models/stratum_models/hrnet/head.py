"""HRNet's usual head: all branches at the highest resolution, mixed by 1x1 convolutions (the representation that its authors call V2).

Shapes: ``B`` images, ``K`` classes, ``C`` the trunk's width, ``h`` and ``w`` the size of its first branch.
"""

from torch import Tensor, nn

from stratum_models.hrnet.trunk import concatenated


def conv_norm_relu(inputs: int, outputs: int, kernel: int = 1) -> nn.Sequential:
    """A convolution that keeps the size, BN, ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class UsualHead(nn.Module):
    """Concatenation, 1x1 convolution of as many channels, BN, ReLU, 1x1 convolution to the classes.

    Args:
        channels: those of all branches together, ``15C``.
        num_classes: ``K``.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.mix = conv_norm_relu(channels, channels)
        self.classify = nn.Conv2d(channels, num_classes, 1)

    def forward(self, branches: list[Tensor]) -> Tensor:
        """The trunk's branches to logits ``[B, K, h, w]``."""
        logits: Tensor = self.classify(self.mix(concatenated(branches)))
        return logits
