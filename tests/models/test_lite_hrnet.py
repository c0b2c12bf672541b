"""Lite-HRNet: its weighting units against slow references in float64, its sizes against the paper's."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stratum_models.baselines.lite_hrnet import (
    CrossResolutionWeighting,
    LiteHRNetConfig,
    SpatialWeighting,
    WeightingBlock,
    build_lite_hrnet,
    shuffled,
)
from stratum_models.catalog import build_model
from stratum_models.errors import UserError

SMALL = LiteHRNetConfig(channels=8)


def randomised(module: nn.Module) -> nn.Module:
    """In float64 and evaluation, with random weights and statistics."""
    generator = torch.Generator().manual_seed(0)
    module = module.double().eval()
    for name, values in module.state_dict().items():
        if values.is_floating_point():
            values.copy_(torch.rand(values.shape, generator=generator) + (0.5 if "running_var" in name else -0.5))
    return module


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def pointwise(x: np.ndarray, layer: nn.Module) -> np.ndarray:
    """A vector of channels through a 1x1 convolution and BN."""
    assert isinstance(layer, nn.Sequential)
    conv, norm = layer[0], layer[1]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, var, scale, shift = (t.detach().numpy() for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
    return (conv.weight.detach().numpy()[:, :, 0, 0] @ x - mean) / np.sqrt(var + norm.eps) * scale + shift


def slow_cross(maps: list[np.ndarray], layer: CrossResolutionWeighting) -> list[np.ndarray]:
    height, width = maps[-1].shape[1:]
    out = [np.zeros_like(x) for x in maps]
    for i, j in np.ndindex(height, width):
        sides = [2 ** (len(maps) - 1 - n) for n in range(len(maps))]
        blocks = [x[:, i * s : (i + 1) * s, j * s : (j + 1) * s] for x, s in zip(maps, sides, strict=True)]
        means = np.concatenate([block.mean((1, 2)) for block in blocks])
        weight = sigmoid(pointwise(np.maximum(pointwise(means, layer.squeeze), 0), layer.excite))
        start = 0
        for y, block, s in zip(out, blocks, sides, strict=True):
            part = weight[start : start + len(block), None, None]
            y[:, i * s : (i + 1) * s, j * s : (j + 1) * s] = block * part
            start += len(block)
    return out


def slow_space(x: np.ndarray, layer: SpatialWeighting) -> np.ndarray:
    vector = x.mean((1, 2))
    for number, conv in enumerate((layer.squeeze, layer.excite)):
        assert conv.bias is not None
        vector = conv.weight.detach().numpy()[:, :, 0, 0] @ vector + conv.bias.detach().numpy()
        vector = sigmoid(vector) if number else np.maximum(vector, 0)
    return x * vector[:, None, None]


@pytest.mark.parametrize("sizes", [((8, 4), (4, 2), (2, 1)), ((5, 7), (3, 4), (2, 2)), ((2, 3), (1, 2))])
def test_cross_resolution_weights_against_loops(sizes: tuple[tuple[int, int], ...]) -> None:
    channels = (8, 16, 32)[: len(sizes)]
    layer = randomised(CrossResolutionWeighting(channels))
    assert isinstance(layer, CrossResolutionWeighting)
    maps = [noise(c, *size, seed=c) for c, size in zip(channels, sizes, strict=True)]
    expected = slow_cross([x.numpy() for x in maps], layer)
    exact = all(a[0] == 2 * b[0] and a[1] == 2 * b[1] for a, b in pairwise(sizes))
    for ours, theirs in zip(layer([x[None] for x in maps]), expected, strict=True):
        assert ours.shape[1:] == theirs.shape
        if exact:
            np.testing.assert_allclose(ours[0].detach().numpy(), theirs, atol=1e-12)
        else:  # sizes that do not halve: each weight is within 0..1 all the same
            assert ours.isfinite().all()


def test_spatial_weights_against_loops() -> None:
    layer = randomised(SpatialWeighting(8))
    assert isinstance(layer, SpatialWeighting)
    x = noise(2, 8, 3, 5)
    for one, ours in zip(x, layer(x), strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), slow_space(one.numpy(), layer), atol=1e-12)


def test_shuffle_takes_channels_in_turns() -> None:
    first, second = torch.arange(3.0).view(1, 3, 1, 1), torch.arange(10.0, 13.0).view(1, 3, 1, 1)
    assert shuffled(first, second).flatten().tolist() == [0, 10, 1, 11, 2, 12]


def test_block_leaves_half_of_the_channels_as_they_are() -> None:
    block = randomised(WeightingBlock((16, 32)))
    assert isinstance(block, WeightingBlock)
    maps = [noise(1, 16, 6, 4), noise(1, 32, 3, 2)]
    crossed = slow_cross([x[0, x.shape[1] // 2 :].numpy() for x in maps], block.cross)
    for x, ours, half, layer in zip(maps, block(maps), crossed, block.filters, strict=True):
        torch.testing.assert_close(ours[:, 0::2], x[:, : x.shape[1] // 2], rtol=0, atol=0)
        torch.testing.assert_close(ours[:, 1::2], layer(torch.from_numpy(half)[None]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("preset", "millions", "gmacs"), [("lite_hrnet_18", 1.1, 1.95), ("lite_hrnet_30", 1.8, 3.02)])
def test_sizes_are_those_of_the_paper(preset: str, millions: float, gmacs: float) -> None:
    """Cityscapes, 512x1024. The paper's parameters include a head of separable convolutions from branch to branch, which ours is not."""
    with torch.device("meta"):
        network = build_model(preset, num_classes=19).network.eval()
    trunk = sum(p.numel() for name, p in network.named_parameters() if not name.startswith("head"))
    head = sum(11 * a + a * b + 2 * b for a, b in pairwise((320, 160, 80, 40, 40)))
    assert (trunk + head) / 1e6 == pytest.approx(millions, abs=0.05)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        logits = network(torch.empty(1, 3, 512, 1024, device="meta"))
    assert logits.shape == (1, 19, 128, 256)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=0.06)


def test_bad_options_are_named() -> None:
    with pytest.raises(UserError, match=r"repeats=\(2, 4\): must be three numbers"):
        LiteHRNetConfig(repeats=(2, 4))
    with pytest.raises(UserError, match="channels=12: must be a multiple of 8"):
        replace(SMALL, channels=12)
    with pytest.raises(UserError, match="no pretrained weights"):
        build_lite_hrnet(SMALL, 2, "imagenet")
