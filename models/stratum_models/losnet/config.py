"""What can be chosen in LosNet; the defaults are the paper's choices."""

from dataclasses import dataclass
from typing import Literal

from stratum_models.batching import InputSize
from stratum_models.errors import UserError

Norm = Literal["bn", "gn"]
CODE_CHANNELS = 8  # channels of the mask features and of the dynamic layers (CondInst, whose mask head the paper keeps)


@dataclass(frozen=True, kw_only=True)
class LosNetConfig(InputSize):
    """A LosNet or, with the heavy options, the CondInst that it was made lighter from.

    Raises:
        UserError: a value is outside its range.
    """

    backbone: str = "mobilenetv3_small_100"
    """A timm model with features at strides 8, 16 and 32, or ``shufflenet_v2_x*`` of torchvision (Table 1)."""
    fpn_channels: int = 96
    """Channels of P3 to P5 and of the head's towers (Table 2)."""
    fpn_convs: bool = False
    """Whether the pyramid keeps its 3x3 convolutions (Table 2)."""
    extra_levels: bool = False
    """Whether P6 and P7 are kept (Table 3)."""
    head_convs: int = 2
    """3x3 convolutions in each of the two towers (Table 4)."""
    norm: Norm = "bn"
    """``bn`` keeps statistics of its own for each level (figure 5), ``gn`` is shared (Table 5)."""
    mask_channels: int = 128
    """Channels inside the mask branch; the paper is silent, CondInst has 128."""
    mask_convs: int = 4
    """3x3 convolutions of the mask branch after the levels are summed."""

    size_limits: tuple[float, ...] = (64.0, 128.0, 256.0, 512.0)
    """Largest box side distance that each level is responsible for; the last level takes all beyond."""
    center_radius: float = 1.5
    """Only locations within this many strides of an instance's centre are positives; 0 takes the whole box."""
    train_proposals: int = 64
    """Most locations per image for which masks are computed in training (the authors' configuration)."""
    mask_weight: float = 1.0
    """Lambda of Eq. 3."""

    score_threshold: float = 0.05
    nms_threshold: float = 0.6
    max_proposals: int = 1000
    """Most locations of one image that go into NMS."""
    max_detections: int = 300
    """Most instances of one image that get a mask."""
    tight_boxes: bool = False
    """Whether the boxes that come out are those around the masks, not those that the head regressed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks = {
            "fpn_channels": (self.fpn_channels >= 8 and self.fpn_channels % 8 == 0, "a multiple of 8, e.g. 64, 96, 128, 256"),
            "head_convs": (1 <= self.head_convs <= 4, "1 to 4"),
            "norm": (self.norm in ("bn", "gn"), "bn or gn"),
            "mask_channels": (self.mask_channels >= 8, "8 or more"),
            "mask_convs": (0 <= self.mask_convs <= 8, "0 to 8"),
            "center_radius": (self.center_radius >= 0, "0 or more"),
            "train_proposals": (self.train_proposals >= 1, "1 or more"),
            "score_threshold": (0 <= self.score_threshold < 1, "between 0 and 1"),
            "nms_threshold": (0 < self.nms_threshold <= 1, "above 0, at most 1"),
            "max_proposals": (self.max_proposals >= 1, "1 or more"),
            "max_detections": (self.max_detections >= 1, "1 or more"),
            "size_limits": (self._limits_rise(), "a limit for each level but the last, each above the one before"),
        }
        for field, (good, wanted) in checks.items():
            if not good:
                raise UserError(f"LosNet option {field}={getattr(self, field)!r}: must be {wanted}")

    def _limits_rise(self) -> bool:
        enough = len(self.size_limits) >= len(self.strides) - 1
        return enough and all(low < high for low, high in zip((0.0, *self.size_limits), self.size_limits, strict=False))

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels from one location to the next, level by level."""
        return (8, 16, 32, 64, 128) if self.extra_levels else (8, 16, 32)
