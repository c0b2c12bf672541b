"""HRFormer: its window attention against a slow reference in float64, its size against the paper's."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from stratum_models.baselines.hrformer import FeedForward, HRFormerConfig, HRNetHead, WindowAttention, build_hrformer
from stratum_models.errors import UserError

SMALL = HRFormerConfig(channels=8, head_channels=4, window=3)


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


def slow_attention(x: np.ndarray, layer: WindowAttention) -> np.ndarray:
    """[h, w, C]: each position looks at those of its window that are on the map, head by head."""
    height, width, channels = x.shape
    side, dim = layer.window, channels // layer.heads
    qkv, bias = layer.qkv.weight.detach().numpy(), layer.qkv.bias.detach().numpy()
    positions = layer.bias.detach().numpy().reshape(2 * side - 1, 2 * side - 1, layer.heads)
    queries, keys, values = (x @ qkv[n * channels : (n + 1) * channels].T + bias[n * channels : (n + 1) * channels] for n in range(3))
    mixed = np.zeros_like(x)
    for i, j, head in np.ndindex(height, width, layer.heads):
        part = slice(head * dim, (head + 1) * dim)
        seen = [(a, b) for a, b in np.ndindex(height, width) if a // side == i // side and b // side == j // side]
        scores = np.array(
            [queries[i, j, part] @ keys[a, b, part] / np.sqrt(dim) + positions[i - a + side - 1, j - b + side - 1, head] for a, b in seen]
        )
        weights = np.exp(scores - scores.max())
        mixed[i, j, part] = sum(w * values[a, b, part] for w, (a, b) in zip(weights / weights.sum(), seen, strict=True))
    return mixed @ layer.out.weight.detach().numpy().T + layer.out.bias.detach().numpy()


@settings(max_examples=12, deadline=None)
@given(height=st.integers(1, 7), width=st.integers(1, 7), window=st.integers(1, 4))
def test_window_attention_against_loops(height: int, width: int, window: int) -> None:
    layer = randomised(WindowAttention(4, 2, window))
    assert isinstance(layer, WindowAttention)
    x = noise(2, height, width, 4)
    for one, ours in zip(x, layer(x), strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), slow_attention(one.numpy(), layer), atol=1e-12)


def test_feed_forward_reaches_one_position_further() -> None:
    layer = randomised(FeedForward(4))
    x = noise(1, 4, 7, 7)
    moved = x.clone()
    moved[0, :, 3, 3] += 1
    changed = (layer(x) != layer(moved)).any(1)[0]
    assert changed.nonzero().tolist() == [[i, j] for i in (2, 3, 4) for j in (2, 3, 4)]


def test_head_is_hrnets_on_the_spliced_maps() -> None:
    head = randomised(HRNetHead((2, 4), 3))
    assert isinstance(head, HRNetHead)
    maps = [noise(1, 2, 5, 6), noise(1, 4, 3, 3)]
    spliced = torch.cat([maps[0], F.interpolate(maps[1], scale_factor=2, mode="bilinear")[..., :5, :]], 1)
    weight = torch.cat([conv.weight for conv in head.mix if isinstance(conv, nn.Conv2d)], 1)
    expected = head.classify(head.norm(F.conv2d(spliced, weight)).relu())
    torch.testing.assert_close(head(maps), expected, rtol=0, atol=1e-12)


def test_size_is_that_of_the_small_one() -> None:
    """The paper's HRFormer-S has 7.8 M parameters (pose estimation, a 1x1 convolution as head)."""
    with torch.device("meta"):
        network = build_hrformer(HRFormerConfig(), 19).network.eval()
    trunk = sum(p.numel() for name, p in network.named_parameters() if not name.startswith("head"))
    assert trunk / 1e6 == pytest.approx(7.8, rel=0.02)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        logits = network(torch.empty(1, 3, 256, 192, device="meta"))
    assert logits.shape == (1, 19, 64, 48)
    assert counter.get_total_flops() / 2e9 == pytest.approx(3.3, rel=0.1)


def test_bad_options_are_named() -> None:
    with pytest.raises(UserError, match="channels=40: must be 8 or more and a multiple of head_channels=32"):
        HRFormerConfig(channels=40)
    with pytest.raises(UserError, match="window=0"):
        replace(SMALL, window=0)
    with pytest.raises(UserError, match=r"repeats=\(1, 4\)"):
        replace(SMALL, repeats=(1, 4))
    with pytest.raises(UserError, match="no pretrained weights"):
        build_hrformer(SMALL, 2, "imagenet")
