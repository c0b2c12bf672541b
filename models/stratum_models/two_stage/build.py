"""From a configuration to a pipeline."""

from stratum_models.errors import UserError
from stratum_models.semantic.model import SemanticModel
from stratum_models.two_stage.config import TwoStageConfig
from stratum_models.two_stage.model import TwoStage
from stratum_models.two_stage.prior import widen_input
from stratum_models.two_stage.sliding import Sliding, SlidingConfig
from stratum_models.two_stage.stage import parse_stage


def build_two_stage(config: TwoStageConfig, num_classes: int, backbone_weights: str | None = None) -> TwoStage:
    """A pipeline of two models of the catalog with random weights, their backbones' apart where ``backbone_weights`` says so.

    Raises:
        UserError: a stage is no semantic model of the catalog, or does not fit; see :class:`TwoStage`.
    """
    stage1 = _build_stage("stage1", config, num_classes, backbone_weights)
    stage2 = _build_stage("stage2", config, num_classes, backbone_weights)
    if config.prior:
        widen_input(stage2, num_classes)
    return TwoStage(stage1, stage2, config)


def build_sliding(config: SlidingConfig, num_classes: int, backbone_weights: str | None = None) -> Sliding:
    """A sliding window with a model of the catalog.

    Raises:
        UserError: the stage is no semantic model of the catalog.
    """
    return Sliding(_build_stage("stage", config, num_classes, backbone_weights), config)


def _build_stage(option: str, config: TwoStageConfig | SlidingConfig, num_classes: int, backbone_weights: str | None) -> SemanticModel:
    from stratum_models.catalog import build_model, preset  # here: the catalog has this pipeline, which is made of the catalog's models

    name, own = parse_stage(option, getattr(config, option))
    if preset(name).task != "semantic" or isinstance(preset(name).config, TwoStageConfig | SlidingConfig):
        raise UserError(f"option {option}={name!r}: a stage must be a semantic model of one stage, such as unet_s2 or fm_hrnet_v4")
    shared = {"loss": config.loss, "class_weights": config.class_weights, "aux_weight": config.aux_weight}
    model = build_model(name, num_classes=num_classes, overrides={**shared, **own}, backbone_weights=backbone_weights)
    assert isinstance(model, SemanticModel)
    return model
