"""ARSM's gate against slow references in float64, and its expectation against many samples."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stratum_models.arsm.gate import GatingBlock
from stratum_models.arsm.gumbel import expected_gate, monte_carlo_gate, sampled_gate
from stratum_models.arsm.network import ResolutionSelection


def shaken(module: nn.Module) -> None:
    """Gives BN statistics and weights that are not those of an untrained one."""
    generator = torch.Generator().manual_seed(5)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values, low in ((norm.weight.data, 0.5), (norm.bias.data, -0.5), (norm.running_mean, -0.5), (norm.running_var, 0.5)):
                assert values is not None
                values.copy_(torch.rand(values.shape, generator=generator) + low)


def slow_norm(image: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    out = torch.empty_like(image)
    for c in range(len(image)):
        scale = norm.weight[c].item() / math.sqrt(norm.running_var[c].item() + norm.eps)
        out[c] = (image[c] - norm.running_mean[c].item()) * scale + norm.bias[c].item()
    return out


def slow_1x1(image: Tensor, conv: nn.Conv2d) -> Tensor:
    out = torch.zeros(conv.out_channels, *image.shape[1:], dtype=image.dtype)
    for o in range(conv.out_channels):
        for i in range(conv.in_channels):
            out[o] += conv.weight[o, i, 0, 0].item() * image[i]
        out[o] += conv.bias[o].item() if conv.bias is not None else 0.0
    return out


def slow_depthwise(image: Tensor, conv: nn.Conv2d) -> Tensor:
    channels, height, width = image.shape
    out = torch.zeros_like(image)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        if 0 <= y + dy < height and 0 <= x + dx < width:
                            out[c, y, x] += conv.weight[c, 0, dy + 1, dx + 1].item() * image[c, y + dy, x + dx]
    return out


@torch.no_grad()
def test_gating_block_is_shufflenets_unit_and_a_convolution() -> None:
    torch.manual_seed(0)
    block = GatingBlock(6, 2).double().eval()
    shaken(block)
    image = torch.randn(6, 4, 5, dtype=torch.float64)
    first, norm1, _, depthwise, norm2, second, norm3, _ = block[0].branch2
    half = slow_norm(slow_1x1(image[3:], first), norm1).clamp(min=0)
    half = slow_norm(slow_depthwise(half, depthwise), norm2)
    half = slow_norm(slow_1x1(half, second), norm3).clamp(min=0)
    shuffled = torch.stack([image[0], half[0], image[1], half[1], image[2], half[2]])
    torch.testing.assert_close(block(image[None])[0], slow_1x1(shuffled, block[1]))


@torch.no_grad()
def test_module_is_equations_1_to_5() -> None:
    torch.manual_seed(0)
    selection = ResolutionSelection((2, 4), 3, temperature=0.5)
    shaken(selection)
    branches = [torch.randn(2, 2, 4, 4), torch.randn(2, 4, 2, 2)]
    selection.eval()
    answers, weights = selection.parts(branches)
    wide = nn.functional.interpolate(branches[1], scale_factor=2, mode="bilinear")
    torch.testing.assert_close(answers[:, 0], selection.experts[0](branches[0]))
    torch.testing.assert_close(answers[:, 1], nn.functional.interpolate(selection.experts[1](branches[1]), scale_factor=2, mode="bilinear"))
    logits = [block(torch.cat([branches[0], wide], 1)) for block in selection.gating.blocks]
    found = selection(branches)
    for b, k, y, x in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(4), torch.arange(4)).tolist():
        powers = [math.exp(one[b, k, y, x].item() / math.sqrt(1 + 0.5**2)) for one in logits]
        gate = [power / sum(powers) for power in powers]
        assert weights[b, :, k, y, x].tolist() == pytest.approx(gate, abs=1e-5)  # Eqs. 2 and 3
        assert found[b, k, y, x].item() == pytest.approx(sum(g * answers[b, i, k, y, x].item() for i, g in enumerate(gate)), abs=1e-5)


def test_one_sample_is_equation_4() -> None:
    logits = torch.randn(1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    noise = -torch.empty_like(logits).exponential_().log()
    torch.manual_seed(3)
    found = sampled_gate(logits, torch.tensor(0.1))
    for k, y, x in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(3)).tolist():
        exponents = [(logits[0, i, k, y, x].item() + noise[0, i, k, y, x].item()) / 0.1 for i in range(4)]
        powers = [math.exp(e - max(exponents)) for e in exponents]
        assert found[0, :, k, y, x].tolist() == pytest.approx([p / sum(powers) for p in powers], abs=1e-4)


def test_noise_is_gumbel_distributed() -> None:
    """How often each resolution is the largest is the softmax of the logits, whatever the temperature."""
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5]).view(1, 4, 1, 1, 1).expand(1, 4, 1, 200, 200)
    torch.manual_seed(0)
    chosen = sampled_gate(logits, torch.tensor(0.1)).argmax(1).flatten().bincount(minlength=4) / 40_000
    torch.testing.assert_close(chosen, torch.tensor([1.0, 0.0, -1.0, 0.5]).softmax(0), atol=0.01, rtol=0)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 2.0])
def test_expected_gate_is_closer_than_a_hundred_samples(temperature: float) -> None:
    """RMS error against 20,000 samples below a third of that of 100 samples, 99.9 % quantile below half, over flat and sharp gates."""
    logits = torch.randn(1, 4, 3, 10, 10, generator=torch.Generator().manual_seed(1)) * torch.tensor([0.5, 1.0, 3.0]).view(3, 1, 1)
    t = torch.tensor(temperature)
    generator = torch.Generator().manual_seed(11)
    reference = torch.zeros_like(logits)
    for _ in range(40):
        noise = -torch.empty(500, *logits.shape[1:]).exponential_(generator=generator).log()
        reference += ((logits + noise) / temperature).softmax(1).mean(0) / 40

    def error(gate: Tensor) -> tuple[float, float]:
        off = (gate - reference).abs().flatten()
        return off.square().mean().sqrt().item(), off.quantile(0.999).item()

    (rms, tail), (sampled_rms, sampled_tail) = error(expected_gate(logits, t)), error(monte_carlo_gate(logits, t, 100))
    assert rms < sampled_rms / 3
    assert tail < sampled_tail / 2


@pytest.mark.parametrize("temperature", [1e-3, 1e3])
def test_expected_gate_is_exact_at_both_ends(temperature: float) -> None:
    """Without temperature the gate is a choice, taken as often as the softmax says; at a high one the noise no longer counts."""
    logits = torch.randn(1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * max(1.0, temperature)
    limit = (logits / max(1.0, temperature)).softmax(1)
    torch.testing.assert_close(expected_gate(logits, torch.tensor(temperature, dtype=torch.float64)), limit, atol=1e-5, rtol=0)


def by_quadrature(logits: Tensor, temperature: float) -> Tensor:
    """The expectation of the gate ``[R]`` in float64: each sum's chance to be the largest, over a fine grid of sums of two noises."""
    noise = torch.arange(-5, 25, 0.04, dtype=torch.float64)
    density = (-noise - (-noise).exp()).exp() * 0.04
    sums = torch.arange(-30, 80, 0.05, dtype=torch.float64)
    below = ((-((noise - sums[:, None]) / temperature).clamp(max=700).exp()).exp() * density).sum(1)
    shifted = [torch.from_numpy(np.interp(sums - logit.item(), sums, below, left=0.0, right=1.0)) for logit in logits]
    others = [torch.stack(shifted[:i] + shifted[i + 1 :]).prod(0) for i in range(len(shifted))]
    return torch.stack([torch.trapezoid(other, own) for own, other in zip(shifted, others, strict=True)])


@pytest.mark.parametrize(
    ("temperature", "logits", "bias"),
    [
        (0.1, [-1.0, 0.0, -4.71, -3.87], 0.0005),
        (0.2, [-6.03, -1.12, 0.0, -7.69], 0.0019),
        (0.5, [0.0, -5.05, -4.70, -1.20], 0.0074),
        (1.0, [-6.37, -1.58, 0.0, -6.32], 0.0109),
        (2.0, [-2.44, 0.0, -9.97, -10.03], 0.0074),
        (5.0, [-23.1, -23.3, 0.0, -5.26], 0.0019),
    ],
)
def test_the_worst_gates_that_are_known_are_off_by_no_more_than_documented(temperature: float, logits: list[float], bias: float) -> None:
    exact = by_quadrature(torch.tensor(logits), temperature)
    assert exact.sum().item() == pytest.approx(1.0, abs=1e-3)
    found = expected_gate(torch.tensor(logits, dtype=torch.float64).view(1, 4, 1, 1, 1), torch.tensor(temperature)).flatten()
    assert (found - exact).abs().max().item() == pytest.approx(bias, abs=2e-4)


def test_monte_carlo_does_not_depend_on_chunks_or_neighbours() -> None:
    logits, t = torch.randn(2, 4, 3, 5, 7, generator=torch.Generator().manual_seed(2)), torch.tensor(0.3)
    one = monte_carlo_gate(logits, t, 20, chunk=1)
    for chunk in (3, 7, 50):
        assert torch.equal(one, monte_carlo_gate(logits, t, 20, chunk=chunk))
    assert not torch.equal(one, monte_carlo_gate(logits, t, 20, seed=1))
    torch.testing.assert_close(monte_carlo_gate(logits[1:], t, 20), one[1:])
    torch.testing.assert_close(one.sum(1), torch.ones(2, 3, 5, 7))


def test_monte_carlo_holds_a_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    stack = torch.stack
    monkeypatch.setattr(torch, "stack", lambda tensors: held.append(len(tensors)) or stack(tensors))  # type: ignore[func-returns-value]
    monte_carlo_gate(torch.zeros(1, 4, 1, 2, 2), torch.tensor(0.1), 10, chunk=4)
    assert held == [4, 4, 2]
