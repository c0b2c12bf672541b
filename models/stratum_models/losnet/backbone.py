"""The trunk: three feature maps at strides 8, 16 and 32 from timm, or from torchvision where timm has none."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from stratum_models.errors import UserError

STRIDES = (8, 16, 32)


class TimmBackbone(nn.Module):
    """Any timm model that gives features at strides 8, 16 and 32."""

    def __init__(self, name: str) -> None:
        super().__init__()
        if not timm.is_model(name):
            close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:8]) or "see timm.list_models()"
            raise UserError(f"unknown backbone {name!r}: timm has no model of this name; near it: {close}")
        try:
            reductions = _features(name, None).feature_info.reduction()
            indices = tuple(max(i for i, r in enumerate(reductions) if r == stride) for stride in STRIDES)
        except (RuntimeError, ValueError, AttributeError) as error:
            raise UserError(f"backbone {name!r} has no feature maps at strides {STRIDES}: choose another ({error})") from error
        self.trunk = _features(name, indices)
        self.channels: tuple[int, ...] = tuple(self.trunk.feature_info.channels())

    def forward(self, images: Tensor) -> list[Tensor]:
        """``[B, 3, H, W]`` to ``[B, C_i, H / s_i, W / s_i]`` for the strides 8, 16, 32."""
        return list(self.trunk(images))


def _features(name: str, indices: tuple[int, ...] | None) -> Any:
    """timm's feature extractor; its type says nothing of ``feature_info``."""
    options: dict[str, Any] = {"features_only": True} if indices is None else {"features_only": True, "out_indices": indices}
    return timm.create_model(name, pretrained=False, **options)


class ShuffleNetBackbone(nn.Module):
    """ShuffleNetV2 (Table 1), which only torchvision has; the last 1x1 convolution before the classifier is left out."""

    def __init__(self, name: str) -> None:
        super().__init__()
        net: Any = torchvision.models.get_model(name, weights=None)
        self.stem = nn.Sequential(net.conv1, net.maxpool)
        self.stages = nn.ModuleList([net.stage2, net.stage3, net.stage4])
        self.channels = tuple(int(s[-1].branch2[-3].out_channels) * 2 for s in (net.stage2, net.stage3, net.stage4))

    def forward(self, images: Tensor) -> list[Tensor]:
        """As :meth:`TimmBackbone.forward`."""
        features, x = [], self.stem(images)
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


Backbone = TimmBackbone | ShuffleNetBackbone


def build_backbone(name: str, weights: str | None = None) -> Backbone:
    """A backbone by name.

    Args:
        name: a timm name, or one of torchvision's ``shufflenet_v2_*``.
        weights: ``None`` (random), ``"imagenet"`` (from the model hub), or the path of a local ``.safetensors`` or ``.pth`` file with
            the classification model's weights.

    Raises:
        UserError: the name is unknown, the file does not fit, or the hub cannot be reached.
    """
    torchvision_name = name.startswith("shufflenet_v2_")
    if torchvision_name and name not in torchvision.models.list_models():
        known = ", ".join(torchvision.models.list_models(include="shufflenet_v2_*"))
        raise UserError(f"unknown backbone {name!r}: torchvision has {known}")
    backbone: Backbone = ShuffleNetBackbone(name) if torchvision_name else TimmBackbone(name)
    if weights is not None:
        state = hub_weights(name) if weights == "imagenet" else file_weights(Path(weights))
        _load(backbone, state, f"{name} from {weights}")
    return backbone


def hub_weights(name: str) -> dict[str, Tensor]:
    """ImageNet weights of the whole classification model, from timm's or torchvision's hub."""
    try:
        if name.startswith("shufflenet_v2_"):
            return dict(torchvision.models.get_model(name, weights="DEFAULT").state_dict())
        return dict(timm.create_model(name, pretrained=True).state_dict())
    except Exception as error:  # the hubs' clients raise a dozen unrelated types when they cannot connect
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"ImageNet weights of {name} could not be fetched ({reason}): give a local file or s3:// URI with --backbone-weights, "
            "or train without with --backbone-weights none"
        ) from error


def file_weights(path: Path) -> dict[str, Tensor]:
    """Weights from a ``.safetensors`` file, or from a ``.pth`` file that holds tensors alone."""
    if not path.is_file():
        raise UserError(f"backbone weights {path}: no such file")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"backbone weights {path}: cannot be read as safetensors or as a PyTorch file of tensors") from error
    return dict(state.get("state_dict", state))


def _load(backbone: Backbone, state: dict[str, Tensor], source: str) -> None:
    """Copies by name; a classification model's names become those of the feature extractor."""
    own = backbone.state_dict()
    renamed = {new: tensor for key, tensor in state.items() for new in _names(key) if new in own}
    fitting = {key: tensor for key, tensor in renamed.items() if own[key].shape == tensor.shape}
    missing = [key for key in own if key not in fitting and not key.endswith("num_batches_tracked")]
    if missing:
        raise UserError(f"backbone weights of {source} do not fit: {len(missing)} of {len(own)} tensors missing, e.g. {missing[0]}")
    backbone.load_state_dict(fitting, strict=False)


def _names(key: str) -> Sequence[str]:
    """The names that a tensor of a classification model may have in ours."""
    first, _, rest = key.partition(".")
    flat = f"trunk.{first}_{rest}"  # timm's flattened stages: layers.0 -> layers_0
    stages = {"stage2": "stages.0", "stage3": "stages.1", "stage4": "stages.2", "conv1": "stem.0"}
    return (key, f"trunk.{key}", flat, f"{stages.get(first, first)}.{rest}")
