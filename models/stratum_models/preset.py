"""What the catalog knows of a model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stratum_models.baselines.mask_rcnn import MaskRCNNConfig
from stratum_models.interface import SegmentationModel, Task
from stratum_models.losnet.config import LosNetConfig
from stratum_models.semantic.config import SemanticConfig

Config = LosNetConfig | MaskRCNNConfig | SemanticConfig


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a paper counts a network's parameters and multiply-adds on."""

    classes: int
    size: tuple[int, int]
    """Height and width of the image."""
    overrides: Mapping[str, object] = field(default_factory=dict)
    """Options in which the paper's network differs from the preset."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How a named model is built, and what its paper says of it."""

    config: Config
    build: Callable[[Any, int, str | None], SegmentationModel]
    summary: str
    paper: Mapping[str, float] | None = None
    """The paper's figures by name, such as ``mask_ap50`` or ``miou``; ``params_m`` and ``gmacs`` (10^9 multiply-adds) are its costs."""
    setting: Setting | None = None
    """What those costs, and ours beside them, are counted on; None where the paper counts nothing."""

    @property
    def task(self) -> Task:
        """Whether the model finds instances or labels pixels."""
        return "semantic" if isinstance(self.config, SemanticConfig) else "instance"
