"""U-Net and FCN-8s: their sizes, what the paper gives for them, and FCN's sums against a slow float64 reference."""

import math

import pytest
import torch
from torch import Tensor, nn

from stratum_models.baselines import fcn, unet
from stratum_models.baselines.fcn import FCN8s, FCNConfig, PooledTrunk, build_fcn
from stratum_models.baselines.unet import UNetConfig, build_unet
from stratum_models.catalog import CATALOG, build_model
from stratum_models.errors import UserError
from stratum_models.interface import SemanticPrediction, SemanticTarget


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


@pytest.mark.parametrize(("name", "expected"), [("fcn_r50", 23_508_032 + 3 * (512 + 1024 + 2048) + 9), ("fcn_vgg16", 27_835_209)])
def test_fcn_sizes(name: str, expected: int) -> None:
    with torch.device("meta"):
        assert parameters(build_model(name, num_classes=3)) == expected


@pytest.mark.parametrize(("name", "expected"), [("unet_r18", 14_328_499), ("unet_r50", 32_521_395), ("unet_vgg16", 24_866_307)])
def test_unet_sizes(name: str, expected: int) -> None:
    with torch.device("meta"):
        assert parameters(build_model(name, num_classes=3)) == expected
    if paper := CATALOG[name].paper:
        assert expected == pytest.approx(paper["params_m"] * 1e6, rel=0.002)


@pytest.mark.parametrize("config", [FCNConfig(backbone="resnet18", hidden_channels=8), UNetConfig(decoder_channels=(16, 16, 8, 8, 8))])
def test_learn_from_one_image_of_odd_size(config: FCNConfig | UNetConfig) -> None:
    torch.manual_seed(0)
    model = build_fcn(config, 3) if isinstance(config, FCNConfig) else build_unet(config, 3)
    image, target = torch.rand(3, 97, 131), SemanticTarget(mask=torch.randint(0, 3, (97, 131)))
    terms = model.loss([image], [target])
    torch.stack(list(terms.values())).sum().backward()
    assert not [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    model.eval()
    found, again = model.predict([image])[0], model.predict([image])[0]
    assert isinstance(found, SemanticPrediction)
    assert isinstance(again, SemanticPrediction)
    assert found.probabilities.shape == (3, 97, 131)
    assert torch.equal(found.probabilities, again.probabilities)


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
