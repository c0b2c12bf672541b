"""U-Net and FCN-8s: their sizes, what the paper gives for them, and FCN's sums against a slow float64 reference."""

import math

import pytest
import torch
from torch import Tensor, nn

from stratum_models.baselines import fcn, unet
from stratum_models.baselines.fcn import FCN8s, FCNConfig, PooledTrunk, WideConv, build_fcn
from stratum_models.baselines.unet import UNetConfig, build_unet
from stratum_models.errors import UserError


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


class FixedTrunk(nn.Module):
    """Gives what it was made with."""

    def __init__(self, features: list[Tensor]) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.features


def upsampled(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear with the pixels' centres at (i + 0.5) / side, number by number: ``[K, h, w]`` to ``[K, H, W]``."""
    found = torch.zeros(len(x), height, width, dtype=torch.float64)
    h, w = x.shape[1:]
    for i in range(height):
        for j in range(width):
            y, z = min(max((i + 0.5) * h / height - 0.5, 0), h - 1), min(max((j + 0.5) * w / width - 0.5, 0), w - 1)
            top, left = math.floor(y), math.floor(z)
            for row, share in ((top, 1 - (y - top)), (min(top + 1, h - 1), y - top)):
                for column, part in ((left, 1 - (z - left)), (min(left + 1, w - 1), z - left)):
                    found[:, i, j] += x[:, row, column] * share * part
    return found


@torch.no_grad()
def test_fcn_adds_scores_of_three_strides() -> None:
    torch.manual_seed(0)
    features = [torch.randn(1, c, h, w, dtype=torch.float64) for c, h, w in ((2, 8, 12), (3, 4, 6), (4, 2, 3))]
    network = FCN8s(FixedTrunk(features), (2, 3, 4), 5, hidden_channels=0, dropout=0.0).double()
    scores = [
        torch.einsum("km,mhw->khw", s.weight[:, :, 0, 0], f[0]) + s.bias[:, None, None]
        for s, f in zip(network.scores, features, strict=True)
    ]
    expected = upsampled(upsampled(scores[2], 4, 6) + scores[1], 8, 12) + scores[0]
    assert torch.allclose(network(torch.zeros(1, 3, 64, 96))[0], expected, atol=1e-12)


@torch.no_grad()
def test_vgg_is_tapped_behind_its_poolings() -> None:
    with torch.device("meta"):
        trunk = PooledTrunk("vgg16")
        maps = trunk(torch.zeros(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(1, 256, 8, 12), (1, 512, 4, 6), (1, 512, 2, 3)]
    assert parameters(trunk) == 14_714_688  # VGG16's thirteen convolutions


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (2, 3), (3, 9), (8, 8)])
def test_wide_kernels_on_small_maps_learn_in_bf16_what_float64_says(size: tuple[int, int]) -> None:
    conv = WideConv(512, 8, 7)
    features = torch.rand(2, 512, *size, generator=torch.Generator().manual_seed(0))
    plain = nn.functional.conv2d(features.double(), conv.weight.double(), conv.bias.double(), padding=3)  # type: ignore[union-attr]
    expected = torch.autograd.grad(plain.sum(), [conv.weight])[0]
    _leave_nans_in_memory()
    with torch.autocast("cpu", torch.bfloat16):
        found = conv(features)
    torch.testing.assert_close(found, plain, rtol=0.02, atol=0.02, check_dtype=False)
    _leave_nans_in_memory()
    torch.testing.assert_close(torch.autograd.grad(found.float().sum(), [conv.weight])[0], expected, rtol=0.02, atol=0.02)
    torch.testing.assert_close(conv.eval()(features), plain, rtol=1e-4, atol=1e-4, check_dtype=False)


def _leave_nans_in_memory() -> None:
    """For those who read what they did not write."""
    blocks = [torch.full((1 << exponent,), torch.nan) for exponent in range(6, 21) for _ in range(20)]
    blocks.clear()


@pytest.mark.parametrize("module", [fcn, unet])
def test_classifier_weights_reach_the_trunk(module: object, tmp_path) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    small = UNetConfig(decoder_channels=(8, 8, 8, 8, 8))
    build = (
        (lambda weights: build_fcn(FCNConfig(backbone="resnet18"), 2, weights))
        if module is fcn
        else (lambda weights: build_unet(small, 2, weights))
    )
    source = build(None)
    trunk = source.network.trunk.trunk if module is fcn else source.network.encoder
    torch.save(trunk.state_dict(), tmp_path / "resnet18.pth")
    loaded = build(str(tmp_path / "resnet18.pth"))
    other = loaded.network.trunk.trunk if module is fcn else loaded.network.encoder
    assert all(torch.equal(a, b) for a, b in zip(trunk.state_dict().values(), other.state_dict().values(), strict=True))
    with pytest.raises(UserError, match="no such file"):
        build(str(tmp_path / "none.pth"))


@pytest.mark.parametrize(
    ("config", "values", "named"),
    [
        (UNetConfig, {"encoder": "resnet9"}, "encoder='resnet9'"),
        (UNetConfig, {"encoder": "vgg16"}, "decoder_channels"),
        (FCNConfig, {"backbone": "resnet9"}, "backbone='resnet9'"),
        (FCNConfig, {"hidden_channels": -1}, "hidden_channels"),
        (FCNConfig, {"dropout": 1.0}, "dropout"),
    ],
)
def test_options_out_of_range_are_named(config: type, values: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        config(**values)
