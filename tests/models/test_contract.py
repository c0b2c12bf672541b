"""What every architecture of the catalog must do, instance and semantic alike."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor

from stratum.onnx_export import export_onnx
from stratum_models.baselines.mask_rcnn import MaskRCNN
from stratum_models.catalog import CATALOG, build_model, resolve_config
from stratum_models.errors import UserError
from stratum_models.interface import (
    IGNORE_INDEX,
    InstancePrediction,
    InstanceTarget,
    Prediction,
    SegmentationModel,
    SemanticPrediction,
    SemanticTarget,
    Target,
)
from stratum_models.optimize import prepare_for_inference
from stratum_models.package import Manifest, load_package, save_package

CLASSES = 3


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network small enough for a test."""

    preset: str
    overrides: dict[str, object] = field(default_factory=dict)


ARCHITECTURES = {
    "losnet": Architecture(preset="losnet_debug"),
    "condinst": Architecture(preset="losnet_debug", overrides={"norm": "gn", "extra_levels": True, "fpn_convs": True}),
    "mask_rcnn": Architecture(preset="mask_rcnn_r50", overrides={"input_short": 64, "input_long": 128}),
    "fm_hrnet": Architecture(preset="fm_hrnet_debug"),
    "fm_hrnet_plain": Architecture(
        preset="fm_hrnet_debug", overrides={"pyconv": False, "dilated_pyramid": False, "detail": False, "separable": 2}
    ),
    "hrnet": Architecture(preset="hrnet_debug"),
    "hrnet_ocr": Architecture(preset="hrnet_debug", overrides={"head": "ocr"}),
    "arsm": Architecture(preset="hrnet_arsm_debug"),
    "lite_hrnet": Architecture(preset="lite_hrnet_18", overrides={"channels": 8, "repeats": (1, 1, 1)}),
    "hrformer": Architecture(preset="hrformer_small", overrides={"channels": 8, "head_channels": 8, "repeats": (1, 1, 1)}),
    "slag_deeplab": Architecture(preset="slag_deeplab_debug"),
    "deeplab_resnet": Architecture(
        preset="slag_deeplab_debug", overrides={"backbone": "resnet14t", "separable_aspp": False, "ema_groups": 0}
    ),
    "deeplab_xception": Architecture(preset="slag_deeplab_debug", overrides={"backbone": "xception41"}),
    "deeplab_vgg": Architecture(preset="slag_deeplab_debug", overrides={"backbone": "vgg11_bn", "ema_groups": 0}),
    "unet": Architecture(preset="unet_r18", overrides={"decoder_channels": (16, 16, 8, 8, 8)}),
    "unet_vgg": Architecture(preset="unet_vgg16", overrides={"encoder": "vgg11_bn", "decoder_channels": (16, 8, 8, 8)}),
    "strided_unet": Architecture(preset="unet_s2_debug"),
    "two_stage": Architecture(preset="two_stage_debug", overrides={"stage2": "hrnet_debug", "prior": True}),
    "sliding": Architecture(preset="sliding_debug"),
    "fcn": Architecture(preset="fcn_r50", overrides={"backbone": "resnet18", "hidden_channels": 8}),
    "fcn_vgg": Architecture(preset="fcn_vgg16", overrides={"backbone": "vgg11_bn", "hidden_channels": 8}),
}


def test_every_architecture_of_the_catalog_is_here() -> None:
    assert {CATALOG[one.preset].build for one in ARCHITECTURES.values()} == {known.build for known in CATALOG.values()}


def squares(height: int, width: int, seed: int = 0) -> tuple[Tensor, InstanceTarget]:
    """Grey noise with three bright squares of different classes, and the squares."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(3, height, width, generator=generator) * 0.3
    masks, boxes, side = torch.zeros(3, height, width, dtype=torch.bool), torch.zeros(3, 4), 12
    for i in range(3):
        x = int(torch.randint(0, width - side, (1,), generator=generator))
        y = int(torch.randint(0, height - side, (1,), generator=generator))
        masks[i, y : y + side, x : x + side] = True
        image[:, y : y + side, x : x + side] += 0.5
        boxes[i] = torch.tensor([x, y, x + side, y + side])
    return image, InstanceTarget(boxes=boxes, labels=torch.arange(3), masks=masks, crowd=torch.zeros(3, dtype=torch.bool))


def scene(model: SegmentationModel, height: int, width: int, seed: int = 0) -> tuple[Tensor, Target]:
    """Squares, as the model's task has them."""
    image, instances = squares(height, width, seed)
    if model.task == "instance":
        return image, instances
    mask = torch.zeros(height, width, dtype=torch.int64)
    for label, square in zip(instances.labels, instances.masks, strict=True):
        mask[square] = label
    return image, SemanticTarget(mask=mask)


def unknown(target: Target) -> Target:
    """The target with nothing in it that counts."""
    if isinstance(target, InstanceTarget):
        return replace(target, crowd=torch.ones(len(target), dtype=torch.bool))
    return SemanticTarget(mask=torch.full_like(target.mask, IGNORE_INDEX))


def empty(target: Target) -> Target:
    """The target of an image that shows nothing."""
    if isinstance(target, InstanceTarget):
        return InstanceTarget(boxes=target.boxes[:0], labels=target.labels[:0], masks=target.masks[:0], crowd=target.crowd[:0])
    return SemanticTarget(mask=torch.zeros_like(target.mask))


def learn(model: SegmentationModel, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
    """Forward and backward in training; every term and gradient is checked to be finite."""
    model.train()
    model.zero_grad()
    terms = model.loss(images, targets)
    assert all(term.shape == () and term.isfinite() for term in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    return terms


def values(prediction: Prediction) -> dict[str, Tensor]:
    found = {f.name: getattr(prediction, f.name) for f in fields(prediction)}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def small_proposals(model: SegmentationModel) -> SegmentationModel:
    """A thousand proposals on 64 pixels only cost time."""
    if isinstance(model, MaskRCNN):
        model.net.rpn._pre_nms_top_n = model.net.rpn._post_nms_top_n = {"training": 20, "testing": 20}
    return model


def overrides_of(name: str) -> dict[str, object]:
    """Those of the architecture, and all scores kept where there are any."""
    one = ARCHITECTURES[name]
    known = {f.name for f in fields(resolve_config(one.preset))}
    return {key: value for key, value in {"score_threshold": 0.0, "max_detections": 5}.items() if key in known} | one.overrides


@pytest.fixture(scope="class", params=ARCHITECTURES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="class")
def model(name: str) -> SegmentationModel:
    """With statistics in its BN that are not those of the start."""
    torch.manual_seed(0)
    model = small_proposals(build_model(ARCHITECTURES[name].preset, num_classes=CLASSES, overrides=overrides_of(name)))
    image, target = scene(model, 64, 96)
    learn(model, [image, image.flip(0)], [target, target])
    return model


class TestContract:
    def test_forward_and_backward_reach_every_parameter(self, model: SegmentationModel) -> None:
        images, targets = zip(*(scene(model, 64, 64, seed) for seed in range(2)), strict=True)
        learn(model, images, targets)
        dead = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not dead
        for part, module in getattr(model, "network", model).named_children():
            # Not each parameter: BN that starts at zero keeps those before it still.
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            assert not gradients or any(g.any() for g in gradients), part

    def test_different_and_odd_sizes_in_one_batch(self, model: SegmentationModel) -> None:
        pairs = [scene(model, 97, 131, seed=1), scene(model, 64, 80, seed=2)]
        images = [image for image, _ in pairs]
        learn(model, images, [target for _, target in pairs])
        model.eval()
        for image, prediction in zip(images, model.predict(images), strict=True):
            height, width = image.shape[1:]
            if isinstance(prediction, SemanticPrediction):
                assert prediction.probabilities.shape == (CLASSES, height, width)
                torch.testing.assert_close(prediction.probabilities.sum(0), torch.ones(height, width))
                continue
            assert prediction.masks.shape[1:] == (height, width)
            assert prediction.masks.dtype == torch.bool
            assert (prediction.scores.diff() <= 0).all()
            assert len(prediction) <= 5
            assert (prediction.boxes[:, 2] <= width).all()
            assert (prediction.boxes[:, 3] <= height).all()

    @pytest.mark.parametrize("size", [(20, 31), (97, 131)])
    def test_batch_of_one_and_nothing_in_it(self, model: SegmentationModel, size: tuple[int, int]) -> None:
        image, target = scene(model, *size)
        if isinstance(model, MaskRCNN) and max(size) <= 32:
            with pytest.raises(UserError, match="one image of 20x31: use larger images"):
                learn(model, [image], [empty(target)])
            return
        learn(model, [image], [empty(target)])

    def test_targets_that_are_all_ignored(self, model: SegmentationModel) -> None:
        image, target = scene(model, 64, 64)
        terms = learn(model, [image, image], [unknown(target)] * 2)
        if model.task == "semantic":
            assert all(term == 0 for term in terms.values())

    def test_saved_and_loaded_bit_for_bit(self, name: str, model: SegmentationModel, tmp_path: Path) -> None:
        model.eval()
        manifest = Manifest(
            preset=ARCHITECTURES[name].preset, overrides=overrides_of(name), classes=("a", "b", "c"), num_classes=CLASSES, task=model.task
        )
        save_package(tmp_path / "package", model, manifest)
        loaded = small_proposals(load_package(tmp_path / "package").model)
        for (key, ours), theirs in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs), key
        image, _ = scene(model, 61, 80)
        ours, theirs = values(model.predict([image])[0]), values(loaded.predict([image])[0])
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)

    def test_same_result_twice(self, model: SegmentationModel) -> None:
        model.eval()
        image, _ = scene(model, 61, 80)
        first, second = (values(model.predict([image])[0]) for _ in range(2))
        assert all(torch.equal(first[key], second[key]) for key in first)

    def test_fused_and_channels_last_say_the_same(self, model: SegmentationModel) -> None:
        model.eval()
        image, _ = scene(model, 61, 80)
        plain, fast = model.predict([image])[0], prepare_for_inference(model).predict([image])[0]
        if isinstance(plain, InstancePrediction):
            assert isinstance(fast, InstancePrediction)
            torch.testing.assert_close(plain.scores, fast.scores, rtol=0, atol=1e-4)
            torch.testing.assert_close(plain.boxes, fast.boxes, rtol=0, atol=1e-2)
        else:
            assert isinstance(fast, SemanticPrediction)
            torch.testing.assert_close(plain.probabilities, fast.probabilities, rtol=0, atol=1e-3)

    def test_bf16_autocast_trains_channels_last(self, model: SegmentationModel) -> None:
        image, target = scene(model, 64, 64)
        model.lay_out(torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            terms = model.train().loss([image, image], [target, target])
        assert all(term.isfinite() for term in terms.values())
        model.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        model.lay_out(torch.contiguous_format)

    def test_onnxruntime_runs_the_dense_outputs(self, model: SegmentationModel, tmp_path: Path) -> None:
        model.eval()
        path = tmp_path / "model.onnx"
        if isinstance(model, MaskRCNN):  # torch.export cannot trace torchvision's
            with pytest.raises(UserError, match="no dense outputs"):
                export_onnx(model, path, (64, 96))
            return
        for part in model.exportable.values():
            export_onnx(part, path, (64, 96), dynamic=False)
            images = torch.rand(1, part.input_channels, 64, 96, generator=torch.Generator().manual_seed(7))
            with torch.no_grad():
                expected = part.dense_outputs(images)
            found = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(list(expected), {"images": images.numpy()})
            for (key, theirs), ours in zip(expected.items(), found, strict=True):
                torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=1e-3, atol=1e-3, msg=lambda text, key=key: f"{key}: {text}")
