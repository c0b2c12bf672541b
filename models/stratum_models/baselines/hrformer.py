"""HRFormer (Yuan et al., NeurIPS 2021): HRNet's parallel branches with attention inside small windows in place of convolutions.

Shapes: ``B`` images, ``C_i`` channels of branch ``i``, ``h_i`` and ``w_i`` its size, ``P`` windows of ``T`` positions, ``A`` heads of ``D``
channels, ``K`` classes, ``H`` and ``W`` the size of the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stratum_models.baselines.lite_hrnet import separable_step
from stratum_models.errors import UserError
from stratum_models.fm_hrnet.aggregation import summed
from stratum_models.fm_hrnet.layers import BatchNorm, conv_norm, initialise
from stratum_models.fm_hrnet.parallel import Fusion, dense_step
from stratum_models.semantic.config import SemanticConfig
from stratum_models.semantic.model import SemanticModel

STEM_CHANNELS = 64
FIRST_CHANNELS = 256  # of the first stage's bottlenecks
FIRST_BLOCKS = 2
BLOCKS = 2  # transformer blocks on each branch between two exchanges
EXPANSION = 4  # of the feed-forward network
EXCLUDED = -1e4  # added to the attention to positions that are not there; fits into half precision


@dataclass(frozen=True, kw_only=True)
class HRFormerConfig(SemanticConfig):
    """An HRFormer; the defaults are the small one.

    Raises:
        UserError: a value is outside its range.
    """

    channels: int = 32
    """Channels of the first branch; each further one has twice as many."""
    head_channels: int = 32
    """Channels of one attention head: the first branch has ``channels / head_channels`` heads."""
    window: int = 7
    """Side of the windows that attention stays in."""
    repeats: tuple[int, ...] = (1, 4, 2)
    """Modules of the stages with two, three and four branches, each with one exchange between them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_channels < 1 or self.channels < 8 or self.channels % self.head_channels:
            raise UserError(
                f"HRFormer option channels={self.channels}: must be 8 or more and a multiple of head_channels={self.head_channels}"
            )
        if self.window < 1:
            raise UserError(f"HRFormer option window={self.window}: must be 1 or more")
        if len(self.repeats) != 3 or min(self.repeats) < 1:
            raise UserError(f"HRFormer option repeats={self.repeats}: must be three numbers of 1 or more, e.g. 1,4,2")


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows that do not overlap, with a bias for each relative position (section 3).

    Windows that reach beyond the map are cut: their positions outside take no part.

    Args:
        channels: in and out.
        heads: ``A``.
        window: side of a window, in positions.
    """

    places: Tensor

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.bias, std=0.02)
        row, column = torch.arange(window).repeat_interleave(window), torch.arange(window).repeat(window)
        down, right = row[:, None] - row[None, :] + window - 1, column[:, None] - column[None, :] + window - 1
        self.register_buffer("places", down * (2 * window - 1) + right, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Channels-last ``[B, h, w, C]`` to the same shape."""
        size, channels = x.shape[1:3], x.shape[3]
        windows = self._cut(x)  # [B, P, T, C]
        parts = self.qkv(windows).reshape(-1, self.window**2, 3, self.heads, channels // self.heads)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4).unbind()  # [B P, A, T, D]
        bias = self.bias[self.places].permute(2, 0, 1)  # [A, T, T]
        if size[0] % self.window or size[1] % self.window:
            missing = 1 - self._cut(x.new_ones(1, size[0], size[1], 1))  # [1, P, T, 1]
            bias = bias + EXCLUDED * missing.transpose(2, 3)[0, :, None]  # [P, A, T, T]
            bias = bias.repeat(x.shape[0], 1, 1, 1)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias.to(queries.dtype))
        return self._joined(self.out(mixed.transpose(1, 2).reshape(windows.shape)), size)

    def _cut(self, x: Tensor) -> Tensor:
        """``[B, h, w, C]``, padded with zeros to whole windows, to ``[B, P, T, C]``."""
        x = F.pad(x, (0, 0, 0, -x.shape[2] % self.window, 0, -x.shape[1] % self.window))
        batch, height, width, channels = x.shape
        tiles = x.reshape(batch, height // self.window, self.window, width // self.window, self.window, channels)
        return tiles.transpose(2, 3).reshape(batch, -1, self.window**2, channels)

    def _joined(self, windows: Tensor, size: Sequence[int]) -> Tensor:
        """``[B, P, T, C]`` to ``[B, h, w, C]`` without the padding."""
        rows, columns = -(-size[0] // self.window), -(-size[1] // self.window)
        batch, _, _, channels = windows.shape
        tiles = windows.reshape(batch, rows, columns, self.window, self.window, channels).transpose(2, 3)
        return tiles.reshape(batch, rows * self.window, columns * self.window, channels)[:, : size[0], : size[1]]


class FeedForward(nn.Module):
    """1x1, 3x3 depthwise, 1x1, each with BN and GELU: the depthwise convolution carries information from window to window (section 3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = EXPANSION * channels
        self.widen = conv_norm(channels, wide, relu=False)
        self.mix = conv_norm(wide, wide, 3, groups=wide, relu=False)
        self.narrow = conv_norm(wide, channels, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, h, w]`` to the same shape."""
        return F.gelu(self.narrow(F.gelu(self.mix(F.gelu(self.widen(x))))))


class TransformerBlock(nn.Module):
    """Window attention and feed-forward network, each after a layer norm and beside a shortcut (figure 1)."""

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, heads, window)
        self.norm2 = nn.LayerNorm(channels)
        self.feed_forward = FeedForward(channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, h, w]`` to the same shape."""
        rows = x.permute(0, 2, 3, 1)
        rows = rows + self.attention(self.norm1(rows))
        x = rows.permute(0, 3, 1, 2)
        y: Tensor = x + self.feed_forward(self.norm2(rows).permute(0, 3, 1, 2))
        return y


class Bottleneck(nn.Module):
    """ResNet's 1x1, 3x3, 1x1 beside a shortcut, with a quarter of the channels inside: the blocks of the first stage."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        inner = outputs // 4
        self.body = nn.Sequential(conv_norm(inputs, inner), conv_norm(inner, inner, 3), conv_norm(inner, outputs, relu=False))
        self.shortcut = nn.Identity() if inputs == outputs else conv_norm(inputs, outputs, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, h, w]`` to ``[B, outputs, h, w]``."""
        y: Tensor = (self.body(x) + self.shortcut(x)).relu()
        return y


class ParallelBlocks(nn.Module):
    """Transformer blocks on each branch, then one exchange."""

    def __init__(self, channels: Sequence[int], head_channels: int, window: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(TransformerBlock(c, c // head_channels, window) for _ in range(BLOCKS))) for c in channels
        )
        self.fusion = Fusion(channels, separable_step)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """``[B, C_i, h_i, w_i]`` for each branch to the same shapes."""
        fused: list[Tensor] = self.fusion([branch(x) for branch, x in zip(self.branches, maps, strict=True)])
        return fused


class HRNetHead(nn.Module):
    """HRNet's segmentation head: a 1x1 convolution of all maps spliced that keeps their channels, BN, ReLU, and one to the classes.

    The first is taken on each map before it is enlarged, which gives the same for less.
    """

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        total = sum(channels)
        self.mix = nn.ModuleList(nn.Conv2d(c, total, 1, bias=False) for c in channels)
        self.norm = BatchNorm(total)
        self.classify = nn.Conv2d(total, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """``[B, C_i, h_i, w_i]`` for each map to ``[B, K, h_0, w_0]``."""
        logits: Tensor = self.classify(self.norm(summed(self.mix, maps, [2**number for number in range(len(maps))])).relu())
        return logits


class HRFormer(nn.Module):
    """A normalised batch to logits.

    Args:
        channels: of each of the four branches.
        head_channels: of one attention head.
        window: side of the attention's windows.
        repeats: modules of the stages with two, three and four branches.
        num_classes: ``K``.
    """

    def __init__(self, channels: Sequence[int], head_channels: int, window: int, repeats: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm(3, STEM_CHANNELS, 3, stride=2), conv_norm(STEM_CHANNELS, STEM_CHANNELS, 3, stride=2))
        widths = [STEM_CHANNELS] + [FIRST_CHANNELS] * FIRST_BLOCKS
        self.bottlenecks = nn.Sequential(*(Bottleneck(a, b) for a, b in pairwise(widths)))
        self.first = conv_norm(FIRST_CHANNELS, channels[0], 3)
        above = (FIRST_CHANNELS, *channels[1:-1])
        self.entries = nn.ModuleList(dense_step(a, b, True) for a, b in zip(above, channels[1:], strict=True))
        self.stages = nn.ModuleList(
            nn.Sequential(*(ParallelBlocks(channels[: number + 2], head_channels, window) for _ in range(repeat)))
            for number, repeat in enumerate(repeats)
        )
        self.head = HRNetHead(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` to logits ``[B, K, H / 4, W / 4]``."""
        x = self.bottlenecks(self.stem(images))
        maps = [self.first(x)]
        for number, (entry, stage) in enumerate(zip(self.entries, self.stages, strict=True)):
            maps = stage([*maps, entry(maps[-1] if number else x)])
        logits: Tensor = self.head(maps)
        return logits


def build_hrformer(config: HRFormerConfig, num_classes: int, backbone_weights: str | None = None) -> SemanticModel:
    """An HRFormer with random weights.

    Raises:
        UserError: weights are asked for, or ``num_classes`` does not fit.
    """
    if backbone_weights is not None:
        raise UserError(f"HRFormer has no pretrained weights here (asked for {backbone_weights}): train it with --backbone-weights none")
    channels = [config.channels * 2**number for number in range(4)]
    network = HRFormer(channels, config.head_channels, config.window, config.repeats, num_classes)
    initialise(network, network.head.classify)
    return SemanticModel(network, num_classes, config)
