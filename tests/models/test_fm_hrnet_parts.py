"""FM-HRNet's parts against slow references in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from stratum_models.fm_hrnet.aggregation import GROUPS, KERNELS, DilatedPyramid, PyConv, SpliceHead
from stratum_models.fm_hrnet.layers import BatchNorm, separable_conv
from stratum_models.fm_hrnet.parallel import Fusion


def slow_conv(x: np.ndarray, weight: np.ndarray, *, stride: int = 1, dilation: int = 1, groups: int = 1) -> np.ndarray:
    """[C, h, w] convolved with [O, C / groups, k, k], zeros around it, one output after another."""
    outputs, inputs, side, _ = weight.shape
    _, height, width = x.shape
    reach = dilation * (side // 2)
    y = np.zeros((outputs, -(-height // stride), -(-width // stride)))
    for o, i, j in np.ndindex(y.shape):
        first = o // (outputs // groups) * inputs
        for c, a, b in np.ndindex(inputs, side, side):
            row_, column = i * stride + a * dilation - reach, j * stride + b * dilation - reach
            if 0 <= row_ < height and 0 <= column < width:
                y[o, i, j] += weight[o, c, a, b] * x[first + c, row_, column]
    return y


def slow_norm(x: np.ndarray, norm: nn.Module) -> np.ndarray:
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, var, scale, shift = (t.detach().numpy()[:, None, None] for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
    return (x - mean) / np.sqrt(var + norm.eps) * scale + shift


def slow_layer(x: np.ndarray, layer: nn.Module) -> np.ndarray:
    """A convolution, BN and perhaps ReLU."""
    assert isinstance(layer, nn.Sequential)
    conv = layer[0]
    assert isinstance(conv, nn.Conv2d)
    y = slow_norm(
        slow_conv(x, conv.weight.detach().numpy(), stride=conv.stride[0], dilation=conv.dilation[0], groups=conv.groups), layer[1]
    )
    return np.maximum(y, 0) if len(layer) == 3 else y


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """In float64 and evaluation, with random weights and statistics."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    for name, values in module.state_dict().items():
        if values.is_floating_point():
            low = 0.5 if "running_var" in name else -0.5
            values.copy_(torch.rand(values.shape, generator=generator) + low)
    return module


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("stride", [1, 2])
def test_separable_convolution_is_one_filter_a_channel_and_then_1x1(stride: int) -> None:
    layer = randomised(separable_conv(3, 5, stride=stride))
    x = noise(3, 5, 6)
    assert isinstance(layer, nn.Sequential)
    expected = slow_layer(slow_layer(x.numpy(), layer[0]), layer[1])
    np.testing.assert_allclose(layer(x[None])[0].detach().numpy(), expected, atol=1e-12)
    convs = [m for m in layer.modules() if isinstance(m, nn.Conv2d)]
    assert [c.weight.numel() for c in convs] == [9 * 3, 3 * 5]


def test_pyconv_is_four_kernel_sizes_side_by_side() -> None:
    layer = randomised(PyConv(8))
    assert isinstance(layer, PyConv)
    x = noise(8, 6, 5)
    parts = []
    for scale, kernel, groups in zip(layer.scales, KERNELS, (1, 2, 2, 2), strict=True):
        assert isinstance(scale, nn.Conv2d)
        assert scale.weight.shape == (2, 8 // groups, kernel, kernel)
        parts.append(slow_conv(x.numpy(), scale.weight.detach().numpy(), groups=groups))
    expected = np.maximum(slow_norm(np.concatenate(parts), layer.norm), 0)
    np.testing.assert_allclose(layer(x[None])[0].detach().numpy(), expected, atol=1e-12)


def test_pyconv_has_no_more_weights_than_a_3x3_convolution() -> None:
    scales = [m for m in PyConv(64).modules() if isinstance(m, nn.Conv2d)]
    assert tuple(m.groups for m in scales) == GROUPS
    assert sum(m.weight.numel() for m in scales) <= 9 * 64 * 64


def test_dilated_pyramid_against_loops() -> None:
    layer = randomised(DilatedPyramid(4, (1, 2, 3)))
    assert isinstance(layer, DilatedPyramid)
    x = noise(4, 5, 6)
    conv, share = layer.mean[0], layer.mean[2]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(share, nn.Conv2d)
    assert conv.bias is not None
    mean = np.maximum(conv.weight.detach().numpy()[:, :, 0, 0] @ x.numpy().mean((1, 2)) + conv.bias.detach().numpy(), 0)
    everywhere = (share.weight.detach().numpy()[:, :, 0, 0] @ mean)[:, None, None]
    spliced = np.concatenate([slow_layer(x.numpy(), scale) for scale in layer.scales])
    expected = np.maximum(slow_layer(spliced, layer.project) + everywhere, 0)
    np.testing.assert_allclose(layer(x[None])[0].detach().numpy(), expected, atol=1e-12)
    assert [m.dilation[0] for m in layer.scales.modules() if isinstance(m, nn.Conv2d)] == [1, 1, 2, 3]


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9))
def test_head_is_a_1x1_convolution_of_the_spliced_maps(height: int, width: int) -> None:
    head = randomised(SpliceHead((2, 3, 5), 4, (1, 2, 4)))
    assert isinstance(head, SpliceHead)
    sizes = [(height, width), (-(-height // 2), -(-width // 2)), (-(-height // 4), -(-width // 4))]
    maps = [noise(1, c, *size, seed=c) for c, size in zip((2, 3, 5), sizes, strict=True)]
    larger = [F.interpolate(x, scale_factor=2**i, mode="bilinear") for i, x in enumerate(maps)]
    spliced = torch.cat([x[..., :height, :width] for x in larger], 1)
    convs = [m for m in head.classify if isinstance(m, nn.Conv2d)]
    weight = torch.cat([conv.weight for conv in convs], 1)
    torch.testing.assert_close(head(maps), F.conv2d(spliced, weight, convs[0].bias), rtol=0, atol=1e-12)


def test_exchange_sums_what_every_branch_sends() -> None:
    fusion = randomised(Fusion((2, 4)))
    assert isinstance(fusion, Fusion)
    high, low = noise(2, 4, 6), noise(4, 2, 3)
    up = torch.from_numpy(slow_layer(low.numpy(), fusion.get_submodule("paths.0.1")))
    enlarged = F.interpolate(up[None], scale_factor=2, mode="bilinear")[0].numpy()
    down = slow_layer(high.numpy(), fusion.get_submodule("paths.1.0.0"))
    first, second = (x[0].detach().numpy() for x in fusion([high[None], low[None]]))
    np.testing.assert_allclose(first, np.maximum(high.numpy() + enlarged, 0), atol=1e-12)
    np.testing.assert_allclose(second, np.maximum(low.numpy() + down, 0), atol=1e-12)


def test_single_value_is_normalised_by_the_running_statistics() -> None:
    norm = BatchNorm(3).train()
    norm.running_mean = torch.tensor([1.0, 2.0, 3.0])
    x = torch.randn(1, 3, 1, 1)
    torch.testing.assert_close(norm(x), (x - norm.running_mean[:, None, None]) / (1 + norm.eps) ** 0.5)
    assert norm.running_mean.tolist() == [1.0, 2.0, 3.0]
    norm(torch.randn(2, 3, 1, 1))
    assert norm.running_mean.tolist() != [1.0, 2.0, 3.0]
