"""Every model by name: one literal, nothing registered from elsewhere."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_type_hints

from stratum_models.baselines.mask_rcnn import MaskRCNNConfig, build_mask_rcnn
from stratum_models.errors import UserError
from stratum_models.interface import SegmentationModel, Task
from stratum_models.losnet.build import build_losnet
from stratum_models.losnet.config import LosNetConfig

Config = LosNetConfig | MaskRCNNConfig


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How a named model is built."""

    task: Task
    config: Config
    build: Callable[[Any, int, str | None], SegmentationModel]
    summary: str
    paper: str | None = None
    """The row of the model's paper with its figures: a key of ``stratum_models.losnet.paper.MODELS``."""


CONDINST = LosNetConfig(fpn_channels=256, fpn_convs=True, extra_levels=True, head_convs=4, norm="gn")

CATALOG: dict[str, Preset] = {
    "losnet": Preset(
        task="instance",
        config=LosNetConfig(),
        build=build_losnet,
        summary="LosNet with MobileNetV3-Small, the paper's network",
        paper="losnet_mv3",
    ),
    "losnet_r50": Preset(
        task="instance", config=LosNetConfig(backbone="resnet50"), build=build_losnet, summary="LosNet with ResNet-50", paper="losnet_r50"
    ),
    "losnet_r101": Preset(
        task="instance",
        config=LosNetConfig(backbone="resnet101"),
        build=build_losnet,
        summary="LosNet with ResNet-101",
        paper="losnet_r101",
    ),
    "condinst_mv3": Preset(
        task="instance",
        config=CONDINST,
        build=build_losnet,
        summary="CondInst with MobileNetV3-Small, where the ablations start",
        paper="condinst_mv3",
    ),
    "condinst_r50": Preset(
        task="instance",
        config=replace(CONDINST, backbone="resnet50"),
        build=build_losnet,
        summary="CondInst with ResNet-50",
        paper="condinst_r50",
    ),
    "mask_rcnn_r50": Preset(
        task="instance",
        config=MaskRCNNConfig(),
        build=build_mask_rcnn,
        summary="Mask R-CNN with ResNet-50 and FPN, torchvision's",
        paper="mask_rcnn_r50",
    ),
    "losnet_debug": Preset(
        task="instance",
        config=LosNetConfig(fpn_channels=16, head_convs=1, mask_channels=16, mask_convs=1, train_proposals=16, max_detections=50),
        build=build_losnet,
        summary="LosNet made tiny: trains on a CPU in seconds",
    ),
}


def preset(name: str) -> Preset:
    """The preset of a name.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    if name not in CATALOG:
        raise UserError(f"unknown model {name!r}: known are {', '.join(CATALOG)}")
    return CATALOG[name]


def resolve_config(name: str, overrides: Mapping[str, object] | None = None) -> Config:
    """The configuration of a preset with some fields replaced; values may be strings, as they come from a command line.

    Raises:
        UserError: the preset or a field is unknown, or a value does not fit.
    """
    config = preset(name).config
    hints = get_type_hints(type(config))
    known = [f.name for f in fields(config)]
    values = {}
    for key, value in (overrides or {}).items():
        if key not in known:
            raise UserError(f"model {name} has no option {key!r}: known are {', '.join(known)}")
        values[key] = _parse(name, key, value, hints[key])
    return replace(config, **values)  # type: ignore[arg-type]


def build_model(
    name: str, *, num_classes: int, overrides: Mapping[str, object] | None = None, backbone_weights: str | None = None
) -> SegmentationModel:
    """A model of the catalog with random weights, its backbone's apart where ``backbone_weights`` is a local file or ``"imagenet"``.

    Raises:
        UserError: see :func:`resolve_config` and :func:`stratum_models.losnet.backbone.build_backbone`.
    """
    if num_classes < 1:
        raise UserError(f"model {name} needs at least one class, got {num_classes}")
    config = resolve_config(name, overrides)
    return preset(name).build(config, num_classes, backbone_weights)


def _parse(name: str, key: str, value: object, hint: Any) -> object:
    """A command line's string, or a JSON value, as the field's type."""
    if isinstance(value, str) and value.lower() in ("none", "null", "") and type(None) in getattr(hint, "__args__", ()):
        return None
    kinds = getattr(hint, "__args__", (hint,)) if type(None) in getattr(hint, "__args__", ()) else (hint,)
    try:
        return _convert(value, kinds[0])
    except (TypeError, ValueError) as error:
        raise UserError(f"model {name}: option {key}={value!r} is no {getattr(kinds[0], '__name__', kinds[0])}") from error


def _convert(value: object, kind: Any) -> object:
    if value is None:
        return None
    if kind is bool:
        words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
        return words[str(value).lower()] if str(value).lower() in words else _refuse(value)
    if kind in (int, float):
        number = float(str(value))
        return number if kind is float else int(number) if number.is_integer() else _refuse(value)
    if getattr(kind, "__origin__", None) is tuple:
        parts = value.split(",") if isinstance(value, str) else list(value)  # type: ignore[call-overload]
        return tuple(_convert(part, kind.__args__[0]) for part in parts)
    return value


def _refuse(value: object) -> object:
    raise ValueError(f"cannot read {value!r}")
