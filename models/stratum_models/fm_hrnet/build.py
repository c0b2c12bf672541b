"""From a configuration to a network."""

from stratum_models.errors import UserError
from stratum_models.fm_hrnet.aggregation import Aggregation, DilatedPyramid, PyConv, SpliceHead
from stratum_models.fm_hrnet.config import FMHRNetConfig
from stratum_models.fm_hrnet.downsample import DownSampling
from stratum_models.fm_hrnet.layers import initialise
from stratum_models.fm_hrnet.model import FMHRNet
from stratum_models.fm_hrnet.parallel import Trunk
from stratum_models.semantic.model import SemanticModel


def build_fm_hrnet(config: FMHRNetConfig, num_classes: int, backbone_weights: str | None = None) -> SemanticModel:
    """An FM-HRNet with random weights.

    Raises:
        UserError: weights are asked for, or ``num_classes`` does not fit.
    """
    if backbone_weights is not None:
        raise UserError(f"FM-HRNet has no pretrained weights (asked for {backbone_weights}): train it with --backbone-weights none")
    return SemanticModel(build_network(config, num_classes), num_classes, config)


def build_network(config: FMHRNetConfig, num_classes: int) -> FMHRNet:
    """The network alone."""
    channels = (config.channels, 2 * config.channels, 4 * config.channels, config.last_channels)
    trunk = Trunk(channels, config.repeats, blocks=config.blocks, separable=config.separable)
    head = _head(config, (config.channels, *channels) if config.detail else channels, num_classes)
    network = FMHRNet(DownSampling(config.channels, config.stem_strides), trunk, head, detail=config.detail)
    initialise(network, head.classify)
    return network


def _head(config: FMHRNetConfig, channels: tuple[int, ...], num_classes: int) -> Aggregation | SpliceHead:
    width = config.aggregation_channels
    first = config.stem_strides[-1] if config.detail else 1  # of the map before the module's last stage to the first branch
    factors = [*([1] if config.detail else []), *(first * 2**branch for branch in range(4))]
    pyconv = [PyConv(width)] if config.pyconv else []
    pyramid = [DilatedPyramid(width, config.dilations)] if config.dilated_pyramid else []
    if not pyconv and not pyramid:
        return SpliceHead(channels, num_classes, factors)
    return Aggregation(channels, width, [*pyconv, *pyramid], num_classes, factors)
