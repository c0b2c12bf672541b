"""What can be chosen in every semantic model."""

import math
from dataclasses import dataclass

from stratum_models.batching import InputSize
from stratum_models.errors import UserError
from stratum_models.semantic.losses import parse_loss


@dataclass(frozen=True, kw_only=True)
class SemanticConfig(InputSize):
    """Options that all semantic networks share; each has a subclass with its own.

    Raises:
        UserError: a value is outside its range.
    """

    loss: str = "ce"
    """Terms and their weights, such as ``ce+dice`` or ``ce:1+lovasz:0.5``: ce, focal, alpha_focal, dice, foreground_dice,
    lovasz, ohem; class 0 is the background where one is meant."""
    class_weights: tuple[float, ...] = ()
    """Weight of each class in ce and ohem; empty: all alike."""
    aux_weight: float = 0.4
    """Weight of the losses of auxiliary outputs, for networks that have them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_loss(self.loss)
        if not all(0 <= weight < math.inf for weight in self.class_weights):
            raise UserError(f"option class_weights={self.class_weights}: weights must be 0 or more")
        if self.class_weights and not any(self.class_weights):
            raise UserError(f"option class_weights={self.class_weights}: one weight at least must be above 0")
        if not 0 <= self.aux_weight < math.inf:
            raise UserError(f"option aux_weight={self.aux_weight}: must be 0 or more")
