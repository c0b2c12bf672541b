"""U-Net from segmentation-models-pytorch, behind this project's interface (Table 3 of the slag paper compares with one on VGG)."""

from dataclasses import dataclass

import segmentation_models_pytorch as smp
from torch import nn

from stratum_models.errors import UserError
from stratum_models.semantic.config import SemanticConfig
from stratum_models.semantic.model import SemanticModel
from stratum_models.weights import load_classifier

DEPTHS = {"resnet18": 5, "resnet50": 5, "vgg11_bn": 4, "vgg16": 4, "vgg16_bn": 4}  # times that each encoder halves the size


@dataclass(frozen=True, kw_only=True)
class UNetConfig(SemanticConfig):
    """What can be chosen in the U-Net.

    Raises:
        UserError: a value is outside its range.
    """

    encoder: str = "resnet18"
    """``resnet18``, ``resnet50``, ``vgg11_bn``, ``vgg16`` or ``vgg16_bn``."""
    decoder_channels: tuple[int, ...] = (256, 128, 64, 32, 16)
    """Channels of the decoder's stages, the deepest first: five for a ResNet, four for a VGG."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder not in DEPTHS:
            raise UserError(f"option encoder={self.encoder!r}: known are {', '.join(DEPTHS)}")
        depth = DEPTHS[self.encoder]
        if len(self.decoder_channels) != depth or min(self.decoder_channels) < 1:
            raise UserError(f"option decoder_channels={self.decoder_channels}: {self.encoder} needs {depth} numbers of 1 or more")


def build_unet(config: UNetConfig, num_classes: int, backbone_weights: str | None = None) -> SemanticModel:
    """A U-Net with random weights, its encoder's apart where ``backbone_weights`` is ``"imagenet"`` or a local file.

    VGG's last pooling and the block that smp puts behind it are left out: the bottom of the U is VGG's fifth stage, at stride 16.

    Raises:
        UserError: the weights do not fit.
    """
    network = smp.Unet(
        config.encoder,
        encoder_depth=len(config.decoder_channels),
        encoder_weights=None,
        decoder_channels=config.decoder_channels,
        classes=num_classes,
    )
    network.decoder.center = nn.Identity()
    if backbone_weights is not None:
        load_classifier(network.encoder, config.encoder, backbone_weights)
    return SemanticModel(network, num_classes, config, divisor=32, alone=64)
