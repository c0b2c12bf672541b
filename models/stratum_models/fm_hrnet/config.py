"""What can be chosen in FM-HRNet; the defaults are those of V4."""

from dataclasses import dataclass

from stratum_models.errors import UserError
from stratum_models.semantic.config import SemanticConfig


@dataclass(frozen=True, kw_only=True)
class FMHRNetConfig(SemanticConfig):
    """An FM-HRNet: each part can be switched alone.

    Raises:
        UserError: a value is outside its range.
    """

    stem_strides: tuple[int, ...] = (2, 2, 2, 2)
    """Strides of the down-sampling module's four stages (section 3.1): ``2,2,2,1`` puts the first branch at 1/8 of the image."""
    channels: int = 64
    """Channels of the down-sampling module and of the first branch; the second has twice, the third four times as many."""
    last_channels: int = 256
    """Channels of the fourth branch: 512, or 256 from V1 on (section 4)."""
    repeats: tuple[int, ...] = (1, 1, 1, 1)
    """Modules, each with one exchange between the branches, in each of the four stages: ``1,1,4,3`` in HRNet."""
    blocks: int = 4
    """Residual modules on each branch between two exchanges."""
    separable: int = 1
    """How many of the two 3x3 convolutions of a residual module are depthwise separable: 0, 1 or 2 (section 3.2)."""
    pyconv: bool = True
    """Whether the aggregation module has a pyramid convolution (section 3.3)."""
    dilated_pyramid: bool = True
    """Whether the aggregation module has a dilated spatial pyramid (section 3.3); without both parts there is no such module."""
    aggregation_channels: int = 64
    """Channels of the aggregation module."""
    dilations: tuple[int, ...] = (6, 12, 18)
    """Dilations of the spatial pyramid, in positions of the first map."""
    detail: bool = True
    """Whether the map of the down-sampling module's third stage is the first of those that are spliced."""

    def __post_init__(self) -> None:
        super().__post_init__()
        strides, dilations = self.stem_strides, self.dilations
        checks = {
            "stem_strides": (len(strides) == 4 and all(s in (1, 2) for s in strides), "four strides of 1 or 2, e.g. 2,2,2,1"),
            "channels": (self.channels >= 8 and self.channels % 4 == 0, "a multiple of 4, 8 or more"),
            "last_channels": (self.last_channels >= 8, "8 or more, e.g. 256 or 512"),
            "repeats": (len(self.repeats) == 4 and all(r >= 1 for r in self.repeats), "four numbers of 1 or more, e.g. 1,1,4,3"),
            "blocks": (self.blocks >= 1, "1 or more"),
            "separable": (self.separable in (0, 1, 2), "0, 1 or 2"),
            "aggregation_channels": (self.aggregation_channels >= 8 and self.aggregation_channels % 4 == 0, "a multiple of 4, 8 or more"),
            "dilations": (len(dilations) >= 1 and all(d >= 1 for d in dilations), "one or more numbers of 1 or more, e.g. 6,12,18"),
        }
        for field, (good, wanted) in checks.items():
            if not good:
                raise UserError(f"FM-HRNet option {field}={getattr(self, field)!r}: must be {wanted}")
