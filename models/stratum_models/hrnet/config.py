"""What can be chosen in HRNet."""

from dataclasses import dataclass
from typing import Literal

from stratum_models.errors import UserError
from stratum_models.semantic.config import SemanticConfig

HeadName = Literal["usual", "ocr"]
BRANCHES = 4


@dataclass(frozen=True, kw_only=True)
class TrunkConfig(SemanticConfig):
    """The options of HRNet's trunk, whatever reads its branches.

    Raises:
        UserError: a value is outside its range.
    """

    width: int = 18
    """Channels ``C`` of the branch with the highest resolution; the others have 2C, 4C and 8C."""
    stem_strides: tuple[int, ...] = (2, 2)
    """Strides of the stem's two 3x3 convolutions; ``1,1`` keeps the resolution of the image in the first branch."""
    modules: tuple[int, ...] = (1, 4, 3)
    """How often stages 2, 3 and 4 run their branches in parallel and exchange what they found."""
    blocks: int = 4
    """Residual blocks of each branch between two exchanges, and bottlenecks of stage 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < 2 or self.width % 2:
            raise UserError(f"option width={self.width}: must be an even number of 2 or more, like 18, 32 or 48")
        if len(self.stem_strides) != 2 or any(stride not in (1, 2) for stride in self.stem_strides):
            raise UserError(f"option stem_strides={self.stem_strides}: give two strides of 1 or 2 each, like 2,2 or 1,1")
        if len(self.modules) != BRANCHES - 1 or min(self.modules) < 1:
            raise UserError(f"option modules={self.modules}: give three numbers of 1 or more, for stages 2, 3 and 4, like 1,4,3")
        if self.blocks < 1:
            raise UserError(f"option blocks={self.blocks}: must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class HRNetConfig(TrunkConfig):
    """HRNet for segmentation.

    Raises:
        UserError: a value is outside its range.
    """

    head: HeadName = "usual"
    """``usual`` mixes the concatenated branches with a 1x1 convolution; ``ocr`` adds to each pixel what the objects look like."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head not in ("usual", "ocr"):
            raise UserError(f"option head={self.head!r}: must be usual or ocr")
