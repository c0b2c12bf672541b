"""What can be chosen in the slag network, and the networks that the paper compares."""

from dataclasses import dataclass, replace

from stratum_models.errors import UserError
from stratum_models.semantic.config import SemanticConfig


@dataclass(frozen=True, kw_only=True)
class SlagDeepLabConfig(SemanticConfig):
    """DeepLabv3+ and what the paper changes in it; the defaults are the network that its text describes.

    Raises:
        UserError: a value is outside its range.
    """

    backbone: str = "mobilenetv2_100"
    """A timm model that can keep its features at stride 16, such as ``mobilenetv2_100``, ``xception65``, ``resnet50`` or ``vgg16_bn``."""
    separable_aspp: bool = True
    """Whether the dilated convolutions of the ASPP are depthwise separable (section 2.3). The sizes of Table 2 are those without."""
    ema_groups: int = 8
    """Groups of the attention on the high-level features (section 2.4); 0 leaves the attention out."""
    aspp_channels: int = 256
    """Channels of each branch of the ASPP and of what it gives."""
    dilations: tuple[int, ...] = (6, 12, 18)
    """Dilations of the ASPP's 3x3 convolutions, one branch each."""
    shortcut_channels: int = 48
    """Channels of the features at stride 4 that the decoder gets."""
    decoder_channels: int = 256
    """Channels of the decoder's two 3x3 convolutions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ema_groups < 0:
            raise UserError(f"option ema_groups={self.ema_groups}: must be 1 or more, or 0 for no attention")
        for name in ("aspp_channels", "shortcut_channels", "decoder_channels"):
            if getattr(self, name) < 1:
                raise UserError(f"option {name}={getattr(self, name)}: must be 1 or more")
        if not self.dilations or min(self.dilations) < 1:
            raise UserError(f"option dilations={self.dilations}: give one or more numbers of 1 or more, such as 6,12,18")


_DEEPLAB = SlagDeepLabConfig(separable_aspp=False, ema_groups=0)

PRESETS: dict[str, SlagDeepLabConfig] = {
    "slag_deeplab": SlagDeepLabConfig(),  # what the text describes
    "deeplab_mv2_ema": replace(_DEEPLAB, ema_groups=8),  # Table 2: what the size of the paper's own network fits
    "deeplab_mv2": _DEEPLAB,
    "deeplab_xception": replace(_DEEPLAB, backbone="xception65"),
    "deeplab_r50": replace(_DEEPLAB, backbone="resnet50"),
    "deeplab_vgg16": replace(_DEEPLAB, backbone="vgg16_bn"),
    "slag_deeplab_debug": SlagDeepLabConfig(  # trains on a CPU in seconds
        backbone="mobilenetv2_035", aspp_channels=16, dilations=(1, 2), shortcut_channels=8, decoder_channels=16
    ),
}
