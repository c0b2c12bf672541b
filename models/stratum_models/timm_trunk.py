"""Feature maps of a timm network at chosen strides, its last stages dilated where the stride must stay small.

Shapes: ``B`` images of ``H x W``, ``C`` channels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from stratum_models.errors import UserError


class TimmTrunk(nn.Module):
    """A timm classification network without its classifier.

    Args:
        name: a timm model.
        strides: of the maps that are wanted, ascending; at each stride the deepest map is taken.
        output_stride: the largest stride inside the network: from there on it dilates instead (16 or 32). VGG needs no dilation, for its
            last convolutions are at stride 16.

    Raises:
        UserError: timm has no such model, or it has no maps at these strides.
    """

    def __init__(self, name: str, strides: Sequence[int], output_stride: int = 32) -> None:
        super().__init__()
        if not timm.is_model(name):
            close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:8]) or "see timm.list_models()"
            raise UserError(f"unknown backbone {name!r}: timm has no model of this name; near it: {close}")
        options: dict[str, Any] = {"output_stride": output_stride} if output_stride != 32 and not name.startswith("vgg") else {}
        refusal = f"backbone {name!r} does not give feature maps at strides {tuple(strides)}, none above {output_stride}: choose another"
        try:
            with torch.device("meta"):  # only to see what it offers
                offered = _features(name, options).feature_info
        except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:  # no features, or not that output stride
            raise UserError(f"{refusal} ({error})") from error
        reductions = dict(zip(offered.out_indices, offered.reduction(), strict=True))  # DLA leaves its first map out, unless asked
        if missing := set(strides) - set(reductions.values()):
            raise UserError(f"{refusal} (it has none at {', '.join(map(str, sorted(missing)))})")
        indices = tuple(max(i for i, reduction in reductions.items() if reduction == stride) for stride in strides)
        trunk = _features(name, {**options, "out_indices": indices})
        self.trunk: nn.Module = trunk
        self.channels: tuple[int, ...] = tuple(trunk.feature_info.channels())

    def forward(self, images: Tensor) -> list[Tensor]:
        """``[B, 3, H, W]`` to ``[B, C_i, H / s_i, W / s_i]`` for each stride."""
        return list(self.trunk(images))


def colours(name: str) -> tuple[Sequence[float], Sequence[float]]:
    """The mean and standard deviation of each colour with which timm trained a network (Xception's are not ImageNet's usual ones)."""
    known = timm.get_pretrained_cfg(name)
    if known is None:
        raise UserError(f"unknown backbone {name!r}: timm has no model of this name")
    return known.mean, known.std


def _features(name: str, options: Mapping[str, Any]) -> Any:
    """timm's feature extractor; its type says nothing of ``feature_info``."""
    return timm.create_model(name, features_only=True, pretrained=False, **options)
