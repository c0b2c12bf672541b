"""Feature maps of a timm network at chosen strides, its last stages dilated where the stride must stay small.

Shapes: ``B`` images of ``H x W``, ``C`` channels.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import timm
import torch
from torch import Tensor, nn

from stratum_models.errors import UserError

PROBE_SIZE = (160, 352)  # for which no network was made, and which no network's windows divide at every stride
# No features, not that output stride, or not that size.
REFUSALS = (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError)


class TimmTrunk(nn.Module):
    """A timm classification network without its classifier.

    Args:
        name: a timm model.
        strides: of the maps that are wanted, ascending; at each stride the deepest map is taken.
        output_stride: the largest stride inside the network: from there on it dilates instead (16 or 32). VGG needs no dilation, for its
            last convolutions are at stride 16.

    Raises:
        UserError: timm has no such model, or it has no maps at these strides, or takes images of one size alone.
    """

    def __init__(self, name: str, strides: Sequence[int], output_stride: int = 32) -> None:
        super().__init__()
        if not timm.is_model(name):
            close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:8]) or "see timm.list_models()"
            raise UserError(f"unknown backbone {name!r}: timm has no model of this name; near it: {close}")
        options: dict[str, Any] = {"output_stride": output_stride} if output_stride != 32 and not name.startswith("vgg") else {}
        try:
            indices = _deepest(name, tuple(strides), tuple(options.items()))
        except REFUSALS as error:
            wanted = f"feature maps at strides {tuple(strides)}, none above {output_stride}"
            raise UserError(f"backbone {name!r} does not give {wanted}: choose another ({' '.join(str(error).split())})") from error
        trunk = _features(name, {**options, "out_indices": indices})
        self.trunk: nn.Module = trunk
        self.channels: tuple[int, ...] = tuple(trunk.feature_info.channels())

    def forward(self, images: Tensor) -> list[Tensor]:
        """``[B, 3, H, W]`` to ``[B, C_i, H / s_i, W / s_i]`` for each stride."""
        return list(self.trunk(images))


@cache
def _deepest(name: str, strides: tuple[int, ...], options: tuple[tuple[str, Any], ...]) -> tuple[int, ...]:
    """Which of a network's maps is the deepest at each stride, seen on the meta device, where nothing is computed.

    An image of another size than it was made for is sent through: some take no other, some lay their maps out in another way.

    Raises:
        ValueError: it has no such maps; or any of ``REFUSALS``.
    """
    with torch.device("meta"), torch.no_grad():
        network = _features(name, dict(options)).eval()
        offered = network.feature_info
        reductions = offered.reduction()
        if missing := set(strides) - set(reductions):
            raise ValueError(f"it has none at {', '.join(map(str, sorted(missing)))}")
        places = [max(i for i, reduction in enumerate(reductions) if reduction == stride) for stride in strides]
        maps, channels = network(torch.empty(1, 3, *PROBE_SIZE)), offered.channels()
    for i in places:
        if maps[i].ndim != 4 or maps[i].shape[1] != channels[i]:
            raise ValueError(f"its maps have the shape {tuple(maps[i].shape)}")
    return tuple(offered.out_indices[i] for i in places)  # DLA's first map is not among those that it gives unless asked


def colours(name: str) -> tuple[Sequence[float], Sequence[float]]:
    """The mean and standard deviation of each colour with which timm trained a network (Xception's are not ImageNet's usual ones)."""
    known = timm.get_pretrained_cfg(name)
    if known is None:
        raise UserError(f"unknown backbone {name!r}: timm has no model of this name")
    return known.mean, known.std


def _features(name: str, options: Mapping[str, Any]) -> Any:
    """timm's feature extractor; its type says nothing of ``feature_info``."""
    return timm.create_model(name, features_only=True, pretrained=False, **options)
