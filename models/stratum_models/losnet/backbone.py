"""The trunk: three feature maps at strides 8, 16 and 32 from timm, or from torchvision where timm has none."""

from collections.abc import Sequence
from typing import Any

import torchvision
from torch import Tensor, nn

from stratum_models.errors import UserError
from stratum_models.timm_trunk import TimmTrunk
from stratum_models.weights import load_classifier, timm_names

STRIDES = (8, 16, 32)


class ShuffleNetBackbone(nn.Module):
    """ShuffleNetV2 (Table 1), which only torchvision has; the last 1x1 convolution before the classifier is left out."""

    def __init__(self, name: str) -> None:
        super().__init__()
        net: Any = torchvision.models.get_model(name, weights=None)
        self.stem = nn.Sequential(net.conv1, net.maxpool)
        self.stages = nn.ModuleList([net.stage2, net.stage3, net.stage4])
        self.channels = tuple(int(s[-1].branch2[-3].out_channels) * 2 for s in (net.stage2, net.stage3, net.stage4))

    def forward(self, images: Tensor) -> list[Tensor]:
        """As :meth:`TimmTrunk.forward`."""
        features, x = [], self.stem(images)
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


Backbone = TimmTrunk | ShuffleNetBackbone


def build_backbone(name: str, weights: str | None = None) -> Backbone:
    """A backbone by name.

    Args:
        name: a timm name, or one of torchvision's ``shufflenet_v2_*``.
        weights: ``None`` (random), or as in :func:`load_classifier`.

    Raises:
        UserError: the name is unknown, the file does not fit, or the hub cannot be reached.
    """
    from_torchvision = name.startswith("shufflenet_v2_")
    if from_torchvision and name not in torchvision.models.list_models():
        known = ", ".join(torchvision.models.list_models(include="shufflenet_v2_*"))
        raise UserError(f"unknown backbone {name!r}: torchvision has {known}")
    backbone: Backbone = ShuffleNetBackbone(name) if from_torchvision else TimmTrunk(name, STRIDES)
    if weights is not None:
        load_classifier(backbone, name, weights, _shufflenet_names if from_torchvision else timm_names)
    return backbone


def _shufflenet_names(key: str) -> Sequence[str]:
    first, _, rest = key.partition(".")
    stages = {"stage2": "stages.0", "stage3": "stages.1", "stage4": "stages.2", "conv1": "stem.0"}
    return (f"{stages.get(first, first)}.{rest}",)
