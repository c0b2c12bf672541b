"""What trials of a sweep share: stage 1 of two-stage networks, which is trained once for all that want the same one.

Such trials start from its package and train stage 2 alone. It takes a stage 1 that stays as it is (``freeze_stage1``); a trial with a
``stage1_share`` of its own trains both stages itself.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from stratum.tuning.space import Variant
from stratum_models.batching import RESIZING
from stratum_models.catalog import resolve_config
from stratum_models.two_stage.config import TwoStageConfig

SHAPING = ("stage1", "scale", "loss", "class_weights", "aux_weight", *RESIZING)  # options that stage 1 depends on
EPOCHS_SHARE = 0.2  # of a trial's: the paper has 200 for stage 1 and 1000 for stage 2


@dataclass(frozen=True, kw_only=True)
class Groundwork:
    """A training that trials start from."""

    name: str
    preset: str
    overrides: Mapping[str, object]
    class_weights: str


def groundwork_of(variant: Variant) -> Groundwork | None:
    """What a variant's trial starts from; None where it trains everything itself."""
    config = resolve_config(variant.preset, variant.overrides)
    if not isinstance(config, TwoStageConfig) or not config.freeze_stage1 or "stage1_share" in variant.overrides:
        return None
    shaping = {name: asdict(config)[name] for name in SHAPING}
    identity = repr((sorted(shaping.items()), variant.class_weights))
    overrides = {name: value for name, value in variant.overrides.items() if name in SHAPING}
    name = f"stage1-{config.scale:g}-{hashlib.sha256(identity.encode()).hexdigest()[:6]}"
    return Groundwork(name=name, preset=variant.preset, overrides={**overrides, "stage1_share": 1.0}, class_weights=variant.class_weights)


def groundwork_epochs(epochs: int) -> int:
    """Epochs of the shared training, beside so many of a trial."""
    return max(1, round(EPOCHS_SHARE * epochs))
