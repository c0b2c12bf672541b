"""From a configuration to a network."""

from torch import nn

from stratum_models.batching import Normalize
from stratum_models.semantic.model import SemanticModel
from stratum_models.slag_deeplab.aspp import AtrousPyramid
from stratum_models.slag_deeplab.config import SlagDeepLabConfig
from stratum_models.slag_deeplab.ema import EfficientMultiScaleAttention
from stratum_models.slag_deeplab.model import OUTPUT_STRIDE, STRIDES, DeepLabV3Plus
from stratum_models.timm_trunk import TimmTrunk, colours
from stratum_models.weights import load_classifier

DIVISOR = 2 * OUTPUT_STRIDE  # so that the smallest batch has four cells for BN to take its statistics from


def build_slag_deeplab(config: SlagDeepLabConfig, num_classes: int, backbone_weights: str | None = None) -> SemanticModel:
    """A DeepLabv3+ with random weights, its trunk's apart where ``backbone_weights`` is ``"imagenet"`` or a local file.

    Raises:
        UserError: the backbone, its weights or the number of groups do not fit.
    """
    trunk = TimmTrunk(config.backbone, STRIDES, OUTPUT_STRIDE)
    if backbone_weights is not None:
        load_classifier(trunk, config.backbone, backbone_weights)
    high = trunk.channels[-1]
    network = DeepLabV3Plus(
        trunk,
        EfficientMultiScaleAttention(high, config.ema_groups) if config.ema_groups else nn.Identity(),
        AtrousPyramid(high, config.aspp_channels, config.dilations, separable=config.separable_aspp),
        config.aspp_channels,
        num_classes,
        shortcut_channels=config.shortcut_channels,
        decoder_channels=config.decoder_channels,
    )
    model = SemanticModel(network, num_classes, config, divisor=DIVISOR)
    model.normalize = Normalize(*colours(config.backbone), divisor=DIVISOR)
    return model
