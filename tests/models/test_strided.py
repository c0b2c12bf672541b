"""The gradient in half precision of a convolution with a stride, against its own in single precision."""

import pytest
import torch
from torch.nn import functional as F

from stratum_models.strided import StridedConv


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 1), (1, 4), (2, 2), (5, 5)])
def test_gradients_in_bf16_are_those_of_fp32(height: int, width: int) -> None:
    torch.manual_seed(0)
    conv = StridedConv(32, 16, 3, stride=2, padding=1, bias=False)
    for _ in range(20):
        x, weight = torch.randn(2, 32, height, width), conv.weight.detach().clone().requires_grad_()
        filled = [torch.full((size,), float("nan")) for size in (100, 1_000, 4_608, 9_216, 100_000)]
        del filled  # what is allocated next and never written holds NaN
        with torch.autocast("cpu", torch.bfloat16):
            found = conv(x)
        expected = F.conv2d(x, weight, stride=2, padding=1)
        torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)
        (ours,) = torch.autograd.grad(found.float().square().sum(), [conv.weight])
        (theirs,) = torch.autograd.grad(expected.square().sum(), [weight])
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05 * float(theirs.abs().max()))
