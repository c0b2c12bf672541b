"""From a configuration to a network."""

from stratum_models.losnet.backbone import build_backbone
from stratum_models.losnet.config import CODE_CHANNELS, LosNetConfig
from stratum_models.losnet.dynamic_mask import NUM_PARAMS
from stratum_models.losnet.fpn import FeaturePyramid
from stratum_models.losnet.head import DetectionHead
from stratum_models.losnet.mask_branch import MaskBranch
from stratum_models.losnet.model import LosNet


def build_losnet(config: LosNetConfig, num_classes: int, backbone_weights: str | None = None) -> LosNet:
    """A LosNet with random weights, its backbone's apart where ``backbone_weights`` says so (see :func:`build_backbone`)."""
    backbone = build_backbone(config.backbone, backbone_weights)
    pyramid = FeaturePyramid(backbone.channels, config.fpn_channels, convs=config.fpn_convs, extra_levels=config.extra_levels)
    head = DetectionHead(config.fpn_channels, num_classes, config.strides, convs=config.head_convs, norm=config.norm, num_params=NUM_PARAMS)
    branch = MaskBranch(config.fpn_channels, config.mask_channels, convs=config.mask_convs, code=CODE_CHANNELS)
    return LosNet(backbone, pyramid, head, branch, num_classes, config)
