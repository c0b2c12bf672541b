"""The optimised detection head of section 3.3.

Shapes: ``B`` images, ``C`` channels of the pyramid, ``K`` classes, ``L`` locations of all levels, ``M`` chosen locations.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from stratum_models.losnet.config import Norm

PRIOR = 0.01  # probability that a location is an instance before training (focal loss)
MAX_LOG_DISTANCE = 8.0  # exp(8) strides: beyond any image


class LevelConv(nn.Module):
    """A 3x3 convolution shared by all levels, with GN shared too or BN of each level's own (figure 5b), then ReLU."""

    def __init__(self, channels: int, levels: int, norm: Norm) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=norm == "gn")
        groups = math.gcd(32, channels)
        if groups == channels:
            groups //= 2  # GN takes no single value, which is what a group of one channel is where a level has one location
        norms = [nn.GroupNorm(groups, channels)] if norm == "gn" else [nn.BatchNorm2d(channels) for _ in range(levels)]
        self.norms = nn.ModuleList(norms)

    def forward(self, x: Tensor, level: int) -> Tensor:
        """``[B, C, H, W]`` to the same shape."""
        norm = self.norms[level if len(self.norms) > 1 else 0]
        return F.relu(norm(self.conv(x)), inplace=True)

    def folded(self) -> "LevelConv | FoldedLevelConv":
        """For inference: one convolution per level with that level's BN inside; GN has no such form and stays."""
        norms = [norm for norm in self.norms if isinstance(norm, nn.BatchNorm2d)]
        return FoldedLevelConv([fuse_conv_bn_eval(self.conv, norm) for norm in norms]) if norms else self


class FoldedLevelConv(nn.Module):
    """What :class:`LevelConv` with BN becomes for inference."""

    def __init__(self, convs: Sequence[nn.Conv2d]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)

    def forward(self, x: Tensor, level: int) -> Tensor:
        """As :meth:`LevelConv.forward`."""
        return F.relu(self.convs[level](x), inplace=True)


class Tower(nn.Module):
    """A stack of :class:`LevelConv`."""

    def __init__(self, channels: int, depth: int, levels: int, norm: Norm) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([LevelConv(channels, levels, norm) for _ in range(depth)])

    def forward(self, x: Tensor, level: int) -> Tensor:
        """``[B, C, H, W]`` to the same shape."""
        for block in self.blocks:
            x = block(x, level)
        return x


@dataclass(frozen=True, eq=False, kw_only=True)
class HeadOutput:
    """What the head says at every location, levels one after the other; and the features the controller reads."""

    logits: Tensor  # [B, L, K]
    distances: Tensor  # [B, L, 4]: left, top, right, bottom, in pixels
    centerness: Tensor  # [B, L], logits
    box_features: tuple[Tensor, ...]  # one [B, C, H_i, W_i] per level


class DetectionHead(nn.Module):
    """Classification, regression and centerness at every location, and the controller at the chosen ones.

    The paper draws four branches (figure 2). Centerness and controller read the regression tower, as in the CondInst that it starts from.

    Args:
        channels: of the pyramid.
        num_classes: ``K``.
        strides: of each level.
        convs: 3x3 convolutions in each tower.
        norm: of the towers.
        num_params: parameters that the controller writes for one instance.
    """

    def __init__(self, channels: int, num_classes: int, strides: Sequence[int], *, convs: int, norm: Norm, num_params: int) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.class_tower = Tower(channels, convs, len(strides), norm)
        self.box_tower = Tower(channels, convs, len(strides), norm)
        self.classify = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.regress = nn.Conv2d(channels, 4, 3, padding=1)
        self.center = nn.Conv2d(channels, 1, 3, padding=1)
        self.controller = nn.Conv2d(channels, num_params, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(strides)))
        for conv in (m for m in self.modules() if isinstance(m, nn.Conv2d)):
            nn.init.normal_(conv.weight, std=0.01)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        for tower in (self.class_tower, self.box_tower):
            for block in tower.blocks:
                nn.init.kaiming_normal_(block.conv.weight, nonlinearity="relu")  # type: ignore[union-attr,arg-type]
        nn.init.constant_(self.classify.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]

    def forward(self, levels: Sequence[Tensor]) -> HeadOutput:
        """``[B, C, H_i, W_i]`` of each level to the dense outputs over all locations, row by row."""
        logits, distances, centers, features = [], [], [], []
        for i, (x, stride) in enumerate(zip(levels, self.strides, strict=True)):
            box = self.box_tower(x, i)
            sides, center = self.around(box)
            logits.append(_flat(self.classify(self.class_tower(x, i))))
            distances.append(stride * torch.exp((self.scales[i] * _flat(sides).float()).clamp(max=MAX_LOG_DISTANCE)))
            centers.append(_flat(center)[..., 0])
            features.append(box)
        return HeadOutput(
            logits=torch.cat(logits, 1), distances=torch.cat(distances, 1), centerness=torch.cat(centers, 1), box_features=tuple(features)
        )

    def around(self, box: Tensor) -> tuple[Tensor, Tensor]:
        """What the box tower's features ``[B, C, H, W]`` say of an instance around a location: ``[B, 4, H, W]`` and ``[B, 1, H, W]``."""
        return self.regress(box), self.center(box)

    def control(self, output: HeadOutput, image: Tensor, location: Tensor) -> Tensor:
        """The controller's parameters at chosen locations alone.

        A 3x3 convolution at ``M`` places costs ``M / L`` of the dense one, so only the neighbourhoods of those places are read.

        Args:
            output: of :meth:`forward`.
            image: int64 ``[M]``, which image.
            location: int64 ``[M]``, which of the ``L`` locations.

        Returns:
            ``[M, P]``, the parameters of each mask head.
        """
        kernel = self.controller.weight  # [P, C, 3, 3]
        patches = image.new_zeros((len(image), kernel.shape[1], 9), dtype=output.box_features[0].dtype)
        start = 0
        for x in output.box_features:
            height, width = x.shape[-2:]
            here = ((location >= start) & (location < start + height * width)).nonzero()[:, 0]
            if len(here):
                patches[here] = _neighbourhoods(x, image[here], location[here] - start)
            start += height * width
        return F.linear(patches.flatten(1), kernel.flatten(1), self.controller.bias)

    def control_everywhere(self, output: HeadOutput) -> Tensor:
        """The controller's parameters at all locations, ``[B, L, P]``."""
        return torch.cat([_flat(self.controller(x)) for x in output.box_features], 1)


class JoinedHead(DetectionHead):
    """The same for prediction alone: the two narrow convolutions over one input are one, which costs as much as the narrower of them.

    Args:
        head: in evaluation mode; its parts are shared.
    """

    def __init__(self, head: DetectionHead) -> None:
        nn.Module.__init__(self)
        self.strides, self.scales = head.strides, head.scales
        self.class_tower, self.box_tower, self.classify, self.controller = head.class_tower, head.box_tower, head.classify, head.controller
        self.joined = nn.Conv2d(head.regress.in_channels, 5, 3, padding=1, device=head.scales.device, dtype=head.scales.dtype)
        self.joined.weight = nn.Parameter(torch.cat([head.regress.weight, head.center.weight]).detach())
        self.joined.bias = nn.Parameter(torch.cat([_bias(head.regress), _bias(head.center)]).detach())
        self.eval()

    def around(self, box: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`DetectionHead.around`."""
        both = self.joined(box)
        return both[:, :4], both[:, 4:]


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


def _flat(x: Tensor) -> Tensor:
    """``[B, C, H, W]`` to ``[B, H * W, C]``."""
    return x.flatten(2).transpose(1, 2)


def _neighbourhoods(x: Tensor, image: Tensor, location: Tensor) -> Tensor:
    """``[B, C, H, W]`` to ``[M, C, 9]``: the 3x3 values around each location, zero outside."""
    width = x.shape[-1]
    padded = F.pad(x, (1, 1, 1, 1))
    rows, columns = location // width, location % width
    offset = torch.arange(3, device=x.device)
    rows = rows[:, None, None] + offset[:, None]
    columns = columns[:, None, None] + offset
    picked = padded.permute(0, 2, 3, 1)[image[:, None, None], rows, columns]  # [M, 3, 3, C]
    return picked.flatten(1, 2).transpose(1, 2)
