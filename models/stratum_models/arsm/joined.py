"""ARSM for prediction: the same sums in an order that moves less memory.

A 1x1 convolution, and a BN that only scales and shifts, give the same before and after a bilinear interpolation. So all that is linear in a
branch is computed at the branch's own resolution: its expert, what of it the gating units leave as it is, and their first
convolution, which sees channels of the last branch alone. Nothing is concatenated, and no channels are interleaved.

Shapes: ``R`` resolutions, ``K`` classes, ``D`` channels of all branches together.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.shufflenetv2 import InvertedResidual

from stratum_models.arsm.gate import GatingBlock
from stratum_models.arsm.network import ResolutionSelection
from stratum_models.hrnet.trunk import at_size


class JoinedSelection(ResolutionSelection):
    """What a trained :class:`ResolutionSelection` computes, for prediction alone.

    Args:
        selection: in evaluation mode; left as it is, and shared in part. Its BN may already be folded into its convolutions.
    """

    def __init__(self, selection: ResolutionSelection) -> None:
        nn.Module.__init__(self)
        self.gate, self.samples = selection.gate, selection.samples
        self.register_buffer("temperature", selection.temperature)
        units, convs = zip(*(_opened(block) for block in selection.gating.blocks), strict=True)
        experts = [_conv(expert) for expert in selection.experts]
        self.num_classes, self.passing = experts[0].out_channels, convs[0].in_channels // 2  # channels that pass a unit's convolutions
        self.direct = nn.ModuleList(_direct(expert, *kept) for expert, kept in zip(experts, _kept(experts, convs), strict=True))
        self.below = nn.ModuleList(unit.branch2[:2] for unit in units)  # the first convolution and its BN
        self.above = nn.ModuleList(unit.branch2[2:] for unit in units)
        self.turned = nn.ModuleList(_pointwise(conv.weight[:, 1::2]) for conv in convs)
        self.eval()

    def parts(self, branches: list[Tensor]) -> tuple[Tensor, Tensor]:
        """As :meth:`ResolutionSelection.parts`."""
        like = branches[0]
        answers, logits = [], []
        for direct, branch in zip(self.direct, branches, strict=True):
            both = at_size(direct(branch), like)
            answers.append(both[:, : self.num_classes])
            logits.append(both[:, self.num_classes :])
        kept = torch.stack(logits).sum(0)
        kept = kept.reshape(len(kept), -1, self.num_classes, *like.shape[-2:])
        tail = branches[-1][:, -self.passing :]
        units = zip(self.below, self.above, self.turned, strict=True)
        turned = torch.stack([last(above(at_size(below(tail), like))) for below, above, last in units], dim=1)
        return torch.stack(answers, dim=1).float(), self._weights((kept + turned).float())


def _opened(block: nn.Module) -> tuple[InvertedResidual, nn.Conv2d]:
    """A gating block's unit and its convolution to the classes."""
    assert isinstance(block, GatingBlock)
    unit, conv = block
    assert isinstance(unit, InvertedResidual)
    return unit, _conv(conv)


def _conv(module: nn.Module) -> nn.Conv2d:
    assert isinstance(module, nn.Conv2d)
    return module


def _kept(experts: Sequence[nn.Conv2d], convs: Sequence[nn.Conv2d]) -> list[tuple[Tensor, Tensor]]:
    """For each branch, what the channels that a gating unit leaves as they are add to the gate's logits: weight ``[R * K, c]`` and bias.

    Interleaving puts them at the even places of the last convolution's channels; the second half of ``D`` adds nothing here.
    """
    even = torch.cat([conv.weight[:, ::2] for conv in convs]).flatten(1)
    weight = torch.cat([even, torch.zeros_like(even)], dim=1)
    parts = torch.split(weight, [expert.in_channels for expert in experts], dim=1)
    bias = torch.cat([_bias(conv) for conv in convs])
    return [(part, torch.zeros_like(bias) if place else bias) for place, part in enumerate(parts)]


def _direct(expert: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """An expert and a branch's share of the gate's logits as one convolution to ``K + R * K`` channels."""
    return _pointwise(torch.cat([expert.weight.flatten(1), weight]), torch.cat([_bias(expert), bias]))


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


def _pointwise(weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """A 1x1 convolution of such a weight, ``[out, in]`` or ``[out, in, 1, 1]``."""
    weight = weight.detach().flatten(1)[..., None, None]
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias is not None, device=weight.device, dtype=weight.dtype)
    conv.weight = nn.Parameter(weight.contiguous())
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach().clone())
    return conv
