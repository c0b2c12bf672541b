"""FCN-8s (Long, Shelhamer, Darrell, CVPR 2015) with a VGG or ResNet trunk.

Shapes: ``B`` images of ``H x W``, ``C`` channels, ``K`` classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from stratum_models.errors import UserError
from stratum_models.semantic.config import SemanticConfig
from stratum_models.semantic.model import SemanticModel
from stratum_models.timm_trunk import TimmTrunk
from stratum_models.weights import load_classifier

STRIDES = (8, 16, 32)
BACKBONES = ("vgg11_bn", "vgg16", "vgg16_bn", "resnet18", "resnet50")


@dataclass(frozen=True, kw_only=True)
class FCNConfig(SemanticConfig):
    """What can be chosen in FCN-8s.

    Raises:
        UserError: a value is outside its range.
    """

    backbone: str = "resnet50"
    """``vgg11_bn``, ``vgg16``, ``vgg16_bn``, ``resnet18`` or ``resnet50``."""
    hidden_channels: int = 0
    """Channels of the two layers, 7x7 and 1x1, that stand for VGG's fully connected ones (Long et al.: 4096, which takes 119 M
    parameters); 0 classifies the trunk's last features at once."""
    dropout: float = 0.5
    """Share of channels that is dropped after each of these two layers in training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backbone not in BACKBONES:
            raise UserError(f"option backbone={self.backbone!r}: known are {', '.join(BACKBONES)}")
        if self.hidden_channels < 0:
            raise UserError(f"option hidden_channels={self.hidden_channels}: must be 1 or more, or 0 for no hidden layers")
        if not 0 <= self.dropout < 1:
            raise UserError(f"option dropout={self.dropout}: must be 0 or more and below 1")


class PooledTrunk(nn.Module):
    """VGG's features at strides 8, 16 and 32: what its third, fourth and fifth pooling give (``pool3`` to ``pool5``)."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.trunk = TimmTrunk(name, (4, 8, 16))
        self.channels = self.trunk.channels

    def forward(self, images: Tensor) -> list[Tensor]:
        """As :meth:`TimmTrunk.forward`."""
        return [F.max_pool2d(features, 2) for features in self.trunk(images)]


class FCN8s(nn.Module):
    """Scores at three strides, added up from the coarsest.

    Upsampling is bilinear throughout, where Long et al. start with bilinear weights and learn the two steps in between.

    Args:
        trunk: gives features at strides 8, 16 and 32.
        channels: of these features.
        num_classes: ``K``.
        hidden_channels: of the two layers before the coarsest scores; 0 for none.
        dropout: after each of them.
    """

    def __init__(self, trunk: nn.Module, channels: Sequence[int], num_classes: int, *, hidden_channels: int, dropout: float) -> None:
        super().__init__()
        self.trunk = trunk
        self.hidden: nn.Module = _hidden(channels[-1], hidden_channels, dropout) if hidden_channels else nn.Identity()
        inputs = (*channels[:-1], hidden_channels or channels[-1])
        self.scores = nn.ModuleList(nn.Conv2d(count, num_classes, 1) for count in inputs)

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]``, sides multiples of 32, to logits ``[B, K, H / 8, W / 8]``."""
        *fine, coarsest = self.trunk(images)
        *score_fine, score_coarsest = self.scores
        logits: Tensor = score_coarsest(self.hidden(coarsest))
        for features, score in zip(reversed(fine), reversed(score_fine), strict=True):
            logits = F.interpolate(logits, size=features.shape[-2:], mode="bilinear", align_corners=False) + score(features)
        return logits


class WideConv(nn.Conv2d):
    """A convolution of stride 1 that keeps the size of maps which may be smaller than its kernel.

    In training the taps that could only meet padding are left out: they change nothing, and oneDNN 3.13 leaves their gradients in
    bf16 unwritten, so that what happened to be in memory would be learnt.
    """

    def __init__(self, inputs: int, channels: int, kernel: int) -> None:
        super().__init__(inputs, channels, kernel, padding=kernel // 2)

    def forward(self, features: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, channels, H, W]``."""
        if not self.training:
            return super().forward(features)
        middle = self.kernel_size[0] // 2
        rows, columns = (min(middle, side - 1) for side in features.shape[-2:])
        weight = self.weight[:, :, middle - rows : middle + rows + 1, middle - columns : middle + columns + 1]
        return F.conv2d(features, weight, self.bias, padding=(rows, columns))


def _hidden(inputs: int, channels: int, dropout: float) -> nn.Sequential:
    """VGG's two fully connected layers as convolutions that keep the size."""
    return nn.Sequential(
        WideConv(inputs, channels, 7),
        nn.ReLU(inplace=True),
        nn.Dropout2d(dropout),
        nn.Conv2d(channels, channels, 1),
        nn.ReLU(inplace=True),
        nn.Dropout2d(dropout),
    )


def build_fcn(config: FCNConfig, num_classes: int, backbone_weights: str | None = None) -> SemanticModel:
    """An FCN-8s with random weights, its trunk's apart where ``backbone_weights`` is ``"imagenet"`` or a local file.

    Raises:
        UserError: the weights do not fit.
    """
    trunk = PooledTrunk(config.backbone) if config.backbone.startswith("vgg") else TimmTrunk(config.backbone, STRIDES)
    if backbone_weights is not None:
        load_classifier(trunk.trunk if isinstance(trunk, PooledTrunk) else trunk, config.backbone, backbone_weights)
    network = FCN8s(trunk, trunk.channels, num_classes, hidden_channels=config.hidden_channels, dropout=config.dropout)
    return SemanticModel(network, num_classes, config, divisor=32, alone=64)
