"""What every model of the catalog must do, instance and semantic alike."""

import pytest
import torch

from stratum_models.catalog import CATALOG, build_model, resolve_config
from stratum_models.errors import UserError
from stratum_models.interface import InstancePrediction, InstanceTarget, SegmentationModel
from stratum_models.optimize import prepare_for_inference
from stratum_models.package import Manifest, load_package, save_package

SMALL = {name: name for name in ("losnet", "losnet_r50", "condinst_mv3", "mask_rcnn_r50", "losnet_debug")}  # one of each architecture


def scene(height: int = 64, width: int = 64, count: int = 3, classes: int = 2, seed: int = 0) -> tuple[torch.Tensor, InstanceTarget]:
    """Grey noise with bright squares, and the squares."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(3, height, width, generator=generator) * 0.3
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    boxes = torch.zeros(count, 4)
    for i in range(count):
        side = 16
        x = int(torch.randint(0, width - side, (1,), generator=generator))
        y = int(torch.randint(0, height - side, (1,), generator=generator))
        masks[i, y : y + side, x : x + side] = True
        image[:, y : y + side, x : x + side] += 0.5
        boxes[i] = torch.tensor([x, y, x + side, y + side])
    labels = torch.arange(count) % classes
    return image, InstanceTarget(boxes=boxes, labels=labels, masks=masks, crowd=torch.zeros(count, dtype=torch.bool))


@pytest.fixture(scope="module", params=SMALL)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(name: str) -> SegmentationModel:
    torch.manual_seed(0)
    return build_model(name, num_classes=2, overrides={"score_threshold": 0.0, "max_detections": 5})


class TestContract:
    def test_forward_and_backward_reach_every_parameter(self, model: SegmentationModel) -> None:
        model.train()
        images, targets = zip(*(scene(seed=s) for s in range(2)), strict=True)
        losses = model.loss(images, targets)
        assert all(term.shape == () and term.isfinite() for term in losses.values())
        model.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        dead = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not dead

    def test_different_and_odd_sizes_in_one_batch(self, model: SegmentationModel) -> None:
        model.train()
        pairs = [scene(97, 131, seed=1), scene(64, 80, seed=2)]
        assert all(term.isfinite() for term in model.loss([p[0] for p in pairs], [p[1] for p in pairs]).values())
        model.eval()
        found = model.predict([p[0] for p in pairs])
        for (image, _), prediction in zip(pairs, found, strict=True):
            assert isinstance(prediction, InstancePrediction)
            assert prediction.masks.shape[1:] == image.shape[1:]
            assert prediction.masks.dtype == torch.bool
            assert (prediction.scores.diff() <= 0).all()
            assert len(prediction) <= 5
            assert (prediction.boxes[:, 2] <= image.shape[2]).all()
            assert (prediction.boxes[:, 3] <= image.shape[1]).all()

    def test_batch_of_one_and_no_instances(self, model: SegmentationModel) -> None:
        model.train()
        image, target = scene(count=0)
        losses = model.loss([image], [target])
        torch.stack(list(losses.values())).sum().backward()
        assert all(term.isfinite() for term in losses.values())

    def test_all_crowd_is_no_positive(self, model: SegmentationModel) -> None:
        model.train()
        image, target = scene()
        crowd = InstanceTarget(boxes=target.boxes, labels=target.labels, masks=target.masks, crowd=torch.ones(3, dtype=torch.bool))
        assert all(term.isfinite() for term in model.loss([image], [crowd]).values())

    def test_saved_and_loaded_bit_for_bit(self, name: str, model: SegmentationModel, tmp_path) -> None:  # type: ignore[no-untyped-def]
        model.eval()
        manifest = Manifest(
            preset=name, overrides={"score_threshold": 0.0, "max_detections": 5}, classes=("a", "b"), num_classes=2, task=model.task
        )
        save_package(tmp_path / "package", model, manifest)
        loaded = load_package(tmp_path / "package").model
        for (key, ours), theirs in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs), key
        image, _ = scene(97, 131)
        ours, theirs = model.predict([image])[0], loaded.predict([image])[0]
        assert isinstance(ours, InstancePrediction)
        assert isinstance(theirs, InstancePrediction)
        assert torch.equal(ours.scores, theirs.scores)
        assert torch.equal(ours.masks, theirs.masks)

    def test_same_result_twice(self, model: SegmentationModel) -> None:
        model.eval()
        image, _ = scene(97, 131)
        first, second = model.predict([image])[0], model.predict([image])[0]
        assert isinstance(first, InstancePrediction)
        assert isinstance(second, InstancePrediction)
        assert torch.equal(first.boxes, second.boxes)
        assert torch.equal(first.masks, second.masks)

    def test_fused_and_channels_last_say_the_same(self, model: SegmentationModel) -> None:
        model.train()
        for seed in range(2):  # statistics that are not the initial 0 and 1
            image, target = scene(seed=seed)
            model.loss([image, image.flip(-1)], [target, target])
        model.eval()
        image, _ = scene(97, 131)
        plain, fast = model.predict([image])[0], prepare_for_inference(model).predict([image])[0]
        assert isinstance(plain, InstancePrediction)
        assert isinstance(fast, InstancePrediction)
        assert torch.allclose(plain.scores, fast.scores, atol=1e-4)

    def test_bf16_autocast_trains(self, model: SegmentationModel) -> None:
        model.train()
        image, target = scene()
        with torch.autocast("cpu", torch.bfloat16):
            losses = model.loss([image, image], [target, target])
        assert all(term.isfinite() for term in losses.values())


def test_resized_prediction_comes_back_at_the_size_of_the_image() -> None:
    torch.manual_seed(0)
    model = build_model("losnet_debug", num_classes=1, overrides={"score_threshold": 0.0, "input_short": 96, "input_long": 128}).eval()
    prediction = model.predict([torch.rand(3, 50, 70)])[0]
    assert isinstance(prediction, InstancePrediction)
    assert prediction.masks.shape[1:] == (50, 70)
    assert prediction.boxes[:, 2].max() <= 70


def test_batch_gives_what_single_images_give() -> None:
    torch.manual_seed(0)
    model = build_model("losnet_debug", num_classes=1, overrides={"score_threshold": 0.0}).eval()
    images = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(s)) for s in range(3)]
    for single, together in zip((model.predict([x])[0] for x in images), model.predict(images), strict=True):
        assert isinstance(single, InstancePrediction)
        assert isinstance(together, InstancePrediction)
        assert torch.allclose(single.scores, together.scores, atol=1e-5)


def test_presets_are_what_the_paper_compares() -> None:
    sizes = {}
    for name in ("losnet", "losnet_r50", "condinst_mv3"):
        sizes[name] = sum(p.numel() for p in build_model(name, num_classes=1).parameters())
    assert 2.3e6 < sizes["losnet"] < 2.5e6  # the paper's 26 MB is a training checkpoint of a network of this size
    assert sizes["losnet"] < sizes["condinst_mv3"] < sizes["losnet_r50"]


def test_every_preset_resolves() -> None:
    for name in CATALOG:
        assert resolve_config(name) == CATALOG[name].config


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(UserError, match=r"unknown model 'losnett': known are losnet, "):
        build_model("losnett", num_classes=1)
    with pytest.raises(UserError, match=r"no option 'fpn': known are backbone, fpn_channels"):
        build_model("losnet", num_classes=1, overrides={"fpn": 3})
    with pytest.raises(UserError, match="at least one class"):
        build_model("losnet", num_classes=0)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("fpn_channels", "64", 64),
        ("extra_levels", "true", True),
        ("fpn_convs", "no", False),
        ("norm", "gn", "gn"),
        ("center_radius", "2", 2.0),
        ("input_short", "none", None),
        ("input_short", "320", 320),
        ("size_limits", "32,64", (32.0, 64.0)),
    ],
)
def test_overrides_may_be_text(key: str, text: str, value: object) -> None:
    assert getattr(resolve_config("losnet", {key: text}), key) == value


@pytest.mark.parametrize(("key", "text"), [("fpn_channels", "many"), ("fpn_channels", "96.5"), ("extra_levels", "maybe"), ("norm", "ln")])
def test_overrides_that_do_not_fit_are_named(key: str, text: str) -> None:
    with pytest.raises(UserError, match=key):
        resolve_config("losnet", {key: text})


def test_missing_backbone_file_is_named() -> None:
    with pytest.raises(UserError, match=r"nowhere\.safetensors: no such file"):
        build_model("losnet", num_classes=1, backbone_weights="nowhere.safetensors")


def test_backbone_from_a_local_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(3)
    classifier = timm.create_model("mobilenetv3_small_100", pretrained=False)
    save_file(classifier.state_dict(), tmp_path / "weights.safetensors")
    model = build_model("losnet", num_classes=1, backbone_weights=str(tmp_path / "weights.safetensors"))
    state = model.state_dict()
    assert torch.equal(state["backbone.trunk.conv_stem.weight"], classifier.conv_stem.weight)
    save_file({"conv_stem.weight": classifier.conv_stem.weight.detach().clone()}, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match="do not fit"):
        build_model("losnet", num_classes=1, backbone_weights=str(tmp_path / "part.safetensors"))
