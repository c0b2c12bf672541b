"""What can be chosen in the slag network."""

from dataclasses import dataclass

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
