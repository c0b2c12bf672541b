"""HRNet's trunk and heads against timm, slow references in float64, and the papers' sizes."""

import math

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from stratum_models.arsm.paper import result
from stratum_models.errors import UserError
from stratum_models.hrnet.build import build_hrnet
from stratum_models.hrnet.config import HRNetConfig
from stratum_models.hrnet.ocr import ObjectAttention, region_representations
from stratum_models.hrnet.trunk import HRNetTrunk, build_trunk, concatenated
from stratum_models.interface import IGNORE_INDEX, SemanticPrediction, SemanticTarget
from stratum_models.optimize import prepare_for_inference

TINY = HRNetConfig(width=4, modules=(1, 1, 1), blocks=1)
OCR = HRNetConfig(width=4, modules=(1, 1, 1), blocks=1, head="ocr", stem_strides=(1, 2))


def tiny_trunk(stem_strides: tuple[int, ...] = (2, 2)) -> HRNetTrunk:
    torch.manual_seed(0)
    return HRNetTrunk(4, stem_strides, (1, 1, 1), 1)


def scene(height: int, width: int, seed: int = 0) -> tuple[Tensor, SemanticTarget]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, 3, (height, width), generator=generator)
    mask[0, 0] = IGNORE_INDEX
    return torch.rand(3, height, width, generator=generator), SemanticTarget(mask=mask)


def bilinear(image: Tensor, height: int, width: int) -> Tensor:
    """Interpolation of ``[C, h, w]`` with pixel centres at halves, pixel by pixel."""
    _, h, w = image.shape
    out = torch.zeros(image.shape[0], height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            v, u = max((y + 0.5) * h / height - 0.5, 0.0), max((x + 0.5) * w / width - 0.5, 0.0)
            y0, x0 = int(v), int(u)
            y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            top = image[:, y0, x0] * (1 - (u - x0)) + image[:, y0, x1] * (u - x0)
            bottom = image[:, y1, x0] * (1 - (u - x0)) + image[:, y1, x1] * (u - x0)
            out[:, y, x] = top * (1 - (v - y0)) + bottom * (v - y0)
    return out


def test_trunk_is_timms_without_the_classifier() -> None:
    trunk = tiny_trunk().eval()
    stages = {f"stage{i}": {**_stage(i), "num_channels": (4, 8, 16, 32)[:i]} for i in (2, 3, 4)}
    first = {**_stage(1), "block_type": "BOTTLENECK", "num_channels": (64,)}
    reference = timm.create_model("hrnet_w18", pretrained=False, features_only=True, feature_location="", stage1=first, **stages).eval()
    reference.load_state_dict(trunk.net.state_dict())
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        for ours, theirs in zip(trunk(images), reference(images)[1:], strict=True):
            torch.testing.assert_close(ours, theirs)


def _stage(branches: int) -> dict[str, object]:
    return {"num_modules": 1, "num_branches": branches, "block_type": "BASIC", "num_blocks": (1,) * branches, "fuse_method": "SUM"}


@settings(max_examples=8, deadline=None)
@given(st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2)]), st.integers(1, 3), st.integers(1, 3))
def test_each_branch_has_half_the_size_and_twice_the_channels(strides: tuple[int, int], rows: int, columns: int) -> None:
    with torch.device("meta"):
        trunk = HRNetTrunk(4, strides, (1, 1, 1), 1).eval()
        divisor = 8 * strides[0] * strides[1]
        branches = trunk(torch.empty(1, 3, rows * divisor, columns * divisor))
    assert trunk.divisor == divisor
    assert [tuple(b.shape) for b in branches] == [(1, 4 * 2**i, rows * 8 // 2**i, columns * 8 // 2**i) for i in range(4)]


def test_a_single_cell_trains_and_keeps_its_size() -> None:
    trunk = tiny_trunk((1, 1)).train()
    branches = trunk(torch.randn(1, 3, 8, 8))
    assert [tuple(b.shape) for b in branches] == [(1, 4, 8, 8), (1, 8, 4, 4), (1, 16, 2, 2), (1, 32, 1, 1)]


def test_published_weights_have_the_trunks_names_and_shapes() -> None:
    with torch.device("meta"):
        for width in (18, 32, 48):
            published = timm.create_model(f"hrnet_w{width}", pretrained=False).state_dict()
            own = build_trunk(HRNetConfig(width=width)).net.state_dict()
            assert {key: value.shape for key, value in own.items()}.items() <= {
                key: value.shape for key, value in published.items()
            }.items()


def test_trunk_from_a_local_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    source = tiny_trunk().net.state_dict()
    save_file({**source, "classifier.weight": torch.zeros(5, 4)}, tmp_path / "weights.safetensors")
    torch.manual_seed(1)
    model = build_hrnet(TINY, 3, str(tmp_path / "weights.safetensors"))
    assert torch.equal(model.network.trunk.net.conv1.weight, source["conv1.weight"])  # type: ignore[union-attr]
    save_file({"conv1.weight": source["conv1.weight"]}, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match="do not fit"):
        build_hrnet(TINY, 3, str(tmp_path / "part.safetensors"))


def test_weights_that_nobody_published_are_named() -> None:
    with pytest.raises(UserError, match=r"width=4.*take a width of 18, 30.*backbone-weights none"):
        build_hrnet(TINY, 3, "imagenet")


def test_concatenation_is_at_the_size_of_the_first_branch() -> None:
    branches = [torch.randn(1, 2 * 2**i, 8 // 2**i, 16 // 2**i, dtype=torch.float64) for i in range(4)]
    expected = torch.cat([bilinear(branch[0], 8, 16) for branch in branches])
    torch.testing.assert_close(concatenated(branches)[0], expected)


def test_region_representations_are_means_weighted_by_a_softmax_over_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    coarse = torch.randn(2, 2, 4, 5, generator=generator, dtype=torch.float64) * 3
    found = region_representations(features, coarse)
    for b in range(2):
        for k in range(2):
            weights = [[math.exp(coarse[b, k, y, x]) for x in range(5)] for y in range(4)]
            total = sum(map(sum, weights))
            for d in range(3):
                expected = sum(weights[y][x] / total * features[b, d, y, x].item() for y in range(4) for x in range(5))
                assert found[b, d, k, 0].item() == pytest.approx(expected, abs=1e-6)


def test_attention_over_regions() -> None:
    torch.manual_seed(0)
    attention = ObjectAttention(3, 2).double().eval()
    features, regions = torch.randn(1, 3, 2, 4, dtype=torch.float64), torch.randn(1, 3, 5, 1, dtype=torch.float64)
    with torch.no_grad():
        found = attention(features, regions)
        query, key, value = attention.query(features)[0], attention.key(regions)[0, :, :, 0], attention.value(regions)[0, :, :, 0]
        context = torch.zeros(1, 2, 2, 4, dtype=torch.float64)
        for y in range(2):
            for x in range(4):
                likeness = [math.exp(sum(query[e, y, x].item() * key[e, k].item() for e in range(2)) / math.sqrt(2)) for k in range(5)]
                for e in range(2):
                    context[0, e, y, x] = sum(likeness[k] / sum(likeness) * value[e, k].item() for k in range(5))
        torch.testing.assert_close(found, attention.out(context), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "width", "head", "tolerance"),
    [("HRNetW18", 18, "usual", 0.03), ("HRNetW32", 32, "usual", 0.03), ("HRNetW18 +OCR", 18, "ocr", 0.001)],
)
def test_parameters_are_the_papers(name: str, width: int, head: str, tolerance: float) -> None:
    with torch.device("meta"):
        model = build_hrnet(HRNetConfig(width=width, head=head), 5)  # type: ignore[arg-type]
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(result(name).params_m, rel=tolerance)


def test_multiply_adds_with_ocr_are_the_papers() -> None:
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        build_hrnet(HRNetConfig(head="ocr", stem_strides=(1, 1)), 5).eval().dense(torch.empty(1, 3, 256, 256))
    assert counter.get_total_flops() / 2e9 == pytest.approx(result("HRNetW18 +OCR").gmacs, rel=0.01)


@pytest.mark.parametrize("config", [TINY, OCR], ids=["usual", "ocr"])
class TestModel:
    def test_every_parameter_gets_a_gradient(self, config: HRNetConfig) -> None:
        torch.manual_seed(0)
        model = build_hrnet(config, 3).train()
        images, targets = zip(scene(70, 61), scene(64, 64, seed=1), strict=True)
        losses = model.loss(images, targets)
        assert set(losses) == ({"ce", "aux"} if config.head == "ocr" else {"ce"})
        torch.stack(list(losses.values())).sum().backward()
        assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        for part in model.network.children():
            assert any(p.grad is not None and p.grad.any() for p in part.parameters())

    def test_one_image_smaller_than_a_cell_trains_and_predicts(self, config: HRNetConfig) -> None:
        torch.manual_seed(0)
        model = build_hrnet(config, 3).train()
        image, target = scene(20, 13)
        assert all(term.isfinite() for term in model.loss([image], [target]).values())
        (prediction,) = model.eval().predict([image])
        assert isinstance(prediction, SemanticPrediction)
        assert prediction.probabilities.shape == (3, 20, 13)

    def test_bf16_and_fused_channels_last(self, config: HRNetConfig) -> None:
        torch.manual_seed(0)
        model = build_hrnet(config, 3).train()
        image, target = scene(64, 64)
        model.lay_out(torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            losses = model.loss([image, image], [target, target])
        assert all(term.isfinite() for term in losses.values())
        model.eval()
        (plain,), (again,), (fast,) = model.predict([image]), model.predict([image]), prepare_for_inference(model).predict([image])
        assert isinstance(plain, SemanticPrediction)
        assert isinstance(again, SemanticPrediction)
        assert isinstance(fast, SemanticPrediction)
        assert torch.equal(plain.probabilities, again.probabilities)
        torch.testing.assert_close(plain.probabilities, fast.probabilities, atol=1e-4, rtol=1e-3)


def test_is_exported() -> None:
    torch.manual_seed(0)
    model = build_hrnet(OCR, 3).eval()
    images = torch.randn(1, 3, 16, 32)
    model.forward = model.dense  # type: ignore[method-assign]
    with torch.no_grad():
        exported = torch.export.export(model, (images,)).module()
        torch.testing.assert_close(exported(images), model.dense(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 17}, "option width=17"),
        ({"stem_strides": (1,)}, r"option stem_strides=\(1,\)"),
        ({"stem_strides": (1, 3)}, "two strides of 1 or 2"),
        ({"modules": (1, 4)}, r"option modules=\(1, 4\)"),
        ({"blocks": 0}, "option blocks=0"),
        ({"head": "fcn"}, "must be usual or ocr"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        HRNetConfig(**options)  # type: ignore[arg-type]
