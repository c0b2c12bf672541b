"""Branches side by side, and the exchange between them (section 3.2, figure 3).

Shapes: ``B`` images, ``C_i`` channels of branch ``i``, ``h_i`` and ``w_i`` its size: ``h_i+1`` is ``ceil(h_i / 2)``.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from stratum_models.fm_hrnet.layers import Resize, conv_norm, enlarged
from stratum_models.fm_hrnet.residual import Residual

Step = Callable[[int, int, bool], nn.Module]
"""Inputs, outputs and whether ReLU follows to a layer that halves the size."""


def dense_step(inputs: int, outputs: int, relu: bool) -> nn.Module:
    """A 3x3 convolution with stride 2."""
    return conv_norm(inputs, outputs, 3, stride=2, relu=relu)


class Fusion(nn.Module):
    """Every branch gets the sum of all: those below it through a 1x1 convolution and enlarged, those above it through steps of stride 2.

    A 1x1 convolution of spliced maps is the sum of one for each map, and it may be taken before a map is enlarged: the weights of both
    steps sum to the same. So this is the splicing that the paper describes, at the cost of the lower resolution.

    Args:
        channels: of each branch, highest resolution first.
        step: what halves the size.
        resize: how maps are enlarged.
    """

    def __init__(self, channels: Sequence[int], step: Step = dense_step, resize: Resize = "bilinear") -> None:
        super().__init__()
        self.resize: Resize = resize
        self.paths = nn.ModuleList(
            nn.ModuleList(_path(channels[source], channels[target], target - source, step) for source in range(len(channels)))
            for target in range(len(channels))
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """``[B, C_i, h_i, w_i]`` for each branch to the same shapes."""
        fused = []
        for target, (paths, own) in enumerate(zip(self.paths, maps, strict=True)):
            assert isinstance(paths, nn.ModuleList)
            sent = enumerate(path(x) for path, x in zip(paths, maps, strict=True))
            terms = [enlarged(x, own, 2 ** max(source - target, 0), self.resize) for source, x in sent]
            total = terms[0]
            for term in terms[1:]:
                total = total + term
            fused.append(self.relu(total) if len(terms) > 1 else total)
        return fused


def _path(inputs: int, outputs: int, halvings: int, step: Step) -> nn.Module:
    """From one branch to another, ``halvings`` below it (or above it, if negative)."""
    if halvings == 0:
        return nn.Identity()
    if halvings < 0:
        return conv_norm(inputs, outputs, relu=False)
    return nn.Sequential(*(step(inputs, inputs, True) for _ in range(halvings - 1)), step(inputs, outputs, False))


class ParallelModule(nn.Module):
    """Residual modules on each branch, then one exchange."""

    def __init__(self, channels: Sequence[int], *, blocks: int, separable: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*(Residual(c, c, separable=separable) for _ in range(blocks))) for c in channels)
        self.fusion = Fusion(channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """``[B, C_i, h_i, w_i]`` for each branch to the same shapes."""
        fused: list[Tensor] = self.fusion([branch(x) for branch, x in zip(self.branches, maps, strict=True)])
        return fused


class Trunk(nn.Module):
    """Stages with one branch more each; a new branch is the last one at half its size.

    Args:
        channels: of each branch; there are as many stages.
        repeats: modules of each stage.
        blocks: residual modules on each branch between two exchanges.
        separable: how many of a residual module's two convolutions are depthwise separable.
    """

    def __init__(self, channels: Sequence[int], repeats: Sequence[int], *, blocks: int, separable: int) -> None:
        super().__init__()
        self.entries = nn.ModuleList(dense_step(above, below, True) for above, below in pairwise(channels))
        self.stages = nn.ModuleList(
            nn.Sequential(*(ParallelModule(channels[: number + 1], blocks=blocks, separable=separable) for _ in range(repeat)))
            for number, repeat in enumerate(repeats)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """``[B, C_0, h_0, w_0]`` to ``[B, C_i, h_i, w_i]`` for each branch."""
        maps = self.stages[0]([x])
        for entry, stage in zip(self.entries, self.stages[1:], strict=True):
            maps = stage([*maps, entry(maps[-1])])
        return list(maps)
