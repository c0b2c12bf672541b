"""What can be chosen in ARSM; the defaults are the paper's choices."""

from dataclasses import dataclass
from typing import Literal

from stratum_models.errors import UserError
from stratum_models.hrnet.config import TrunkConfig

GateName = Literal["expected", "monte_carlo"]


@dataclass(frozen=True, kw_only=True)
class ARSMConfig(TrunkConfig):
    """An HRNet whose resolutions are experts, and a gate that chooses among them for each class and pixel.

    Raises:
        UserError: a value is outside its range.
    """

    stem_strides: tuple[int, ...] = (1, 1)
    """Strides of the stem's two 3x3 convolutions; with the paper's ``1,1`` the first expert sees each pixel of the image (section 2.2)."""
    temperature: float = 0.1
    """T of Eq. 4, at the start of training."""
    temperature_end: float | None = None
    """T at the end of training, reached by equal factors; None keeps it."""
    gate: GateName = "expected"
    """The gate at evaluation: its expectation in closed form, or the mean of ``samples`` draws (the paper). Training always draws one."""
    samples: int = 100
    """Draws of ``gate=monte_carlo`` (section 4.2)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("temperature", "temperature_end"):
            value = getattr(self, name)
            if value is not None and not 0.01 <= value <= 100:
                raise UserError(f"option {name}={value}: must be between 0.01 and 100")
        if self.gate not in ("expected", "monte_carlo"):
            raise UserError(f"option gate={self.gate!r}: must be expected or monte_carlo")
        if self.samples < 1:
            raise UserError(f"option samples={self.samples}: must be 1 or more")
