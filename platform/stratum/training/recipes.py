"""How a model is trained where no flag says otherwise: as its paper trains it, or as this house does."""

from dataclasses import dataclass

from stratum.training.spec import Optimizer, Schedule
from stratum_models.catalog import preset
from stratum_models.two_stage.config import TwoStageConfig
from stratum_models.two_stage.paper import TRAINING
from stratum_models.two_stage.sliding import SlidingConfig
from stratum_models.two_stage.unet import StridedUNetConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Augmentation, optimiser and schedule; the defaults are what suits a few hundred images and a short training."""

    augment: str = "strong"
    size: int = 256  # pixels of the shorter side; 0: images as they are
    optimizer: Optimizer = "adamw"
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    schedule: Schedule = "cosine"
    warmup_epochs: float = 1.0
    clip_norm: float = 10.0
    ema_decay: float = 0.998


HOUSE = Recipe()
# Section 4 of the two-stage paper; Adam is AdamW without weight decay. Images stay whole: what is small in them is what counts.
TWO_STAGE = Recipe(
    augment="two_stage",
    size=0,
    learning_rate=TRAINING.learning_rate,
    weight_decay=0.0,
    schedule="constant",
    warmup_epochs=0.0,
    clip_norm=0.0,
    ema_decay=0.0,
)


def recipe_of(name: str) -> Recipe:
    """The recipe of a preset of the catalog. Raises UserError for an unknown one."""
    own = isinstance(preset(name).config, TwoStageConfig | StridedUNetConfig | SlidingConfig)
    return TWO_STAGE if own else HOUSE
