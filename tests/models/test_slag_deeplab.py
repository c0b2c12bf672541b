"""The slag network's parts against slow float64 references that are written from the formulas, and its sizes against the paper's."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stratum_models.catalog import resolve_config
from stratum_models.errors import UserError
from stratum_models.slag_deeplab.aspp import AtrousPyramid, ImagePooling
from stratum_models.slag_deeplab.config import SlagDeepLabConfig
from stratum_models.slag_deeplab.ema import EfficientMultiScaleAttention
from stratum_models.slag_deeplab.layers import conv_block
from stratum_models.slag_deeplab.paper import PAPER_ROWS
from stratum_models.timm_trunk import TimmTrunk
from stratum_models.weights import load_classifier

DEBUG = resolve_config("slag_deeplab_debug")
assert isinstance(DEBUG, SlagDeepLabConfig)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, groups: int) -> Tensor:
    """Cell by cell, ``[M, H, W]`` and a kernel ``[N, M / groups, k, k]`` to ``[N, H, W]``, zero outside."""
    outputs, inputs, kernel, _ = weight.shape
    height, width = x.shape[1:]
    found = torch.zeros(outputs, height, width, dtype=torch.float64)
    for n in range(outputs):
        first = n // (outputs // groups) * inputs
        for row in range(height):
            for column in range(width):
                total = 0.0 if bias is None else float(bias[n])
                for m in range(inputs):
                    for i in range(kernel):
                        for j in range(kernel):
                            y, z = row + (i - kernel // 2) * dilation, column + (j - kernel // 2) * dilation
                            if 0 <= y < height and 0 <= z < width:
                                total += float(weight[n, m, i, j]) * float(x[first + m, y, z])
                found[n, row, column] = total
    return found


def attended(x: Tensor, ema: EfficientMultiScaleAttention) -> Tensor:
    """EMA of one group ``[c, H, W]``, number by number."""
    channels, height, width = x.shape
    mix, bias = ema.mix.weight[:, :, 0, 0], ema.mix.bias
    assert bias is not None
    gated = torch.zeros_like(x)
    for c in range(channels):
        along = [
            sigmoid(bias[c] + sum(mix[c, m] * sum(x[m, i, j] for j in range(width)) / width for m in range(channels)))
            for i in range(height)
        ]
        down = [
            sigmoid(bias[c] + sum(mix[c, m] * sum(x[m, i, j] for i in range(height)) / height for m in range(channels)))
            for j in range(width)
        ]
        values = [[float(x[c, i, j]) * along[i] * down[j] for j in range(width)] for i in range(height)]
        mean = sum(map(sum, values)) / (height * width)
        variance = sum((value - mean) ** 2 for row in values for value in row) / (height * width)
        for i in range(height):
            for j in range(width):
                scaled = (values[i][j] - mean) / math.sqrt(variance + ema.norm.eps)
                gated[c, i, j] = scaled * float(ema.norm.weight[c]) + float(ema.norm.bias[c])
    local = convolved(x, ema.local.weight, ema.local.bias, 1, 1)
    # Eq. 2 of each branch, as weights of the other's channels
    of_gated = softmax([float(gated[c].sum()) / (height * width) for c in range(channels)])
    of_local = softmax([float(local[c].sum()) / (height * width) for c in range(channels)])
    found = torch.zeros_like(x)
    for i in range(height):
        for j in range(width):
            logit = sum(of_gated[c] * float(local[c, i, j]) + of_local[c] * float(gated[c, i, j]) for c in range(channels))
            for c in range(channels):
                found[c, i, j] = float(x[c, i, j]) * sigmoid(logit)
    return found


@pytest.mark.parametrize("groups", [1, 2, 3])
@torch.no_grad()
def test_attention_is_what_the_formulas_say(groups: int) -> None:
    torch.manual_seed(groups)
    ema = EfficientMultiScaleAttention(6, groups).double()
    nn.init.normal_(ema.norm.weight)
    nn.init.normal_(ema.norm.bias)
    x = torch.randn(2, 6, 4, 3, dtype=torch.float64)
    found = ema(x)
    for image, result in zip(x, found, strict=True):
        expected = torch.cat([attended(part, ema) for part in image.split(6 // groups)])
        assert torch.allclose(result, expected, atol=1e-10)


@torch.no_grad()
def test_normalised_branch_describes_no_image() -> None:
    # The mean of a channel that was just normalised is its bias: what the README says of the paper's module.
    torch.manual_seed(0)
    ema = EfficientMultiScaleAttention(8, 2)
    nn.init.normal_(ema.norm.bias)
    for _ in range(2):
        means = ema._gated(torch.randn(3, 4, 5, 6)).mean((2, 3))
        assert torch.allclose(means, ema.norm.bias.expand(3, 4), atol=1e-5)


def test_attention_has_the_papers_parameters() -> None:
    assert parameters(EfficientMultiScaleAttention(320, 8)) == 16_160


def test_groups_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(UserError, match="ema_groups=7"):
        EfficientMultiScaleAttention(320, 7)


@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize("dilation", [1, 2])
@torch.no_grad()
def test_convolutions_are_what_the_formulas_say(separable: bool, dilation: int) -> None:
    torch.manual_seed(dilation)
    block = conv_block(3, 2, dilation=dilation, separable=separable).double().eval()
    norm = block[-2]
    for values in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(values)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    x = torch.randn(1, 3, 5, 6, dtype=torch.float64)
    if separable:
        middle = convolved(x[0], block[0].weight, None, dilation, 3)
        expected = convolved(middle, block[1].weight, None, 1, 1)
    else:
        expected = convolved(x[0], block[0].weight, None, dilation, 1)
    for c in range(2):
        scaled = (expected[c] - norm.running_mean[c]) / math.sqrt(norm.running_var[c] + norm.eps) * norm.weight[c] + norm.bias[c]
        expected[c] = torch.where(scaled > 0, scaled, 0)
    assert torch.allclose(block(x)[0], expected, atol=1e-10)


def test_separable_convolution_costs_what_equation_1_says() -> None:
    cost = {}
    for separable in (True, False):
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            conv_block(40, 24, separable=separable)(torch.zeros(1, 40, 16, 16))
        cost[separable] = counter.get_total_flops()
    assert cost[True] / cost[False] == pytest.approx(1 / 24 + 1 / 9)


@torch.no_grad()
def test_pyramid_joins_its_branches() -> None:
    torch.manual_seed(0)
    pyramid = AtrousPyramid(4, 6, (1, 3), separable=False).eval()
    x = torch.randn(2, 4, 8, 7)
    pooled = pyramid.branches[3]
    assert isinstance(pooled, ImagePooling)
    everywhere = torch.einsum("nm,bm->bn", pooled.conv.weight[:, :, 0, 0], x.mean((2, 3))) + pooled.conv.bias
    parts = [branch(x) for branch in pyramid.branches[:3]]
    expected = pyramid.project(torch.cat([*parts, everywhere.clamp(min=0)[:, :, None, None].expand(2, 6, 8, 7)], 1))
    assert torch.allclose(pyramid(x), expected, atol=1e-6)
    assert [part[0].dilation[0] for part in pyramid.branches[:3]] == [1, 1, 3]


def test_trunk_gives_the_deepest_map_of_each_stride() -> None:
    with torch.device("meta"):
        for name, channels in (
            ("mobilenetv2_100", (24, 320)),
            ("xception65", (256, 2048)),
            ("resnet50", (256, 2048)),
            ("vgg16_bn", (256, 512)),
        ):
            trunk = TimmTrunk(name, (4, 16), 16)
            low, high = trunk(torch.zeros(1, 3, 64, 96))
            assert trunk.channels == channels
            assert low.shape == (1, channels[0], 16, 24)
            assert high.shape == (1, channels[1], 4, 6)


@pytest.mark.parametrize(
    ("name", "reason"), [("mobilenet_v9", "unknown backbone"), ("legacy_xception", "strides"), ("vit_tiny_patch16_224", "strides")]
)
def test_backbones_that_cannot_serve_are_refused(name: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        TimmTrunk(name, (4, 16), 16)


def test_classifier_weights_reach_the_trunk(tmp_path) -> None:  # type: ignore[no-untyped-def]
    source, target = TimmTrunk("mobilenetv2_035", (4, 16), 16), TimmTrunk("mobilenetv2_035", (4, 16), 16)
    state = {key.removeprefix("trunk."): value for key, value in source.state_dict().items()}
    torch.save({**state, "classifier.weight": torch.zeros(10, 4)}, tmp_path / "weights.pth")
    load_classifier(target, "mobilenetv2_035", str(tmp_path / "weights.pth"))
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True))
    torch.save({"conv_stem.weight": state["conv_stem.weight"]}, tmp_path / "few.pth")
    with pytest.raises(UserError, match="do not fit mobilenetv2_035"):
        load_classifier(target, "mobilenetv2_035", str(tmp_path / "few.pth"))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"ema_groups": -1}, "ema_groups"),
        ({"aspp_channels": 0}, "aspp_channels"),
        ({"dilations": ()}, "dilations"),
        ({"dilations": (6, 0)}, "dilations"),
    ],
)
def test_options_out_of_range_are_named(values: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        SlagDeepLabConfig(**values)  # type: ignore[arg-type]


def test_paper_rows_are_consistent() -> None:
    # The text's 89.37 % compares the two rows without attention; Table 3 repeats two rows of Table 2.
    xception, plain, ours = PAPER_ROWS[:3]
    assert 1 - plain.size_mib / xception.size_mib == pytest.approx(0.8937, abs=5e-5)
    assert ours.miou - xception.miou == pytest.approx(1.89)
    assert [(r.miou, r.mpa, r.size_mib) for r in PAPER_ROWS[5:]] == [(r.miou, r.mpa, r.size_mib) for r in (xception, ours)]
