"""What every model of the catalog must do, instance and semantic alike."""

import pytest
import torch

from stratum_models.baselines.mask_rcnn import MaskRCNN
from stratum_models.catalog import build_model, resolve_config
from stratum_models.errors import UserError
from stratum_models.interface import InstancePrediction, InstanceTarget, SegmentationModel
from stratum_models.losnet.config import LosNetConfig
from stratum_models.losnet.model import LosNet
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
    model = build_model(name, num_classes=2, overrides={"score_threshold": 0.0, "max_detections": 5})
    if isinstance(model, MaskRCNN):  # a thousand proposals on 64 pixels only cost time
        model.net.rpn._pre_nms_top_n = model.net.rpn._post_nms_top_n = {"training": 20, "testing": 20}
    return model


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
        for part, module in model.named_children():  # not each parameter: BN that starts at zero keeps those before it still
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            assert not gradients or any(g.any() for g in gradients), part

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
        if isinstance(loaded, MaskRCNN) and isinstance(model, MaskRCNN):
            loaded.net.rpn._post_nms_top_n = loaded.net.rpn._pre_nms_top_n = model.net.rpn._pre_nms_top_n
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
        model.eval()
        image, _ = scene(97, 131)
        plain, fast = model.predict([image])[0], prepare_for_inference(model).predict([image])[0]
        assert isinstance(plain, InstancePrediction)
        assert isinstance(fast, InstancePrediction)
        assert torch.allclose(plain.scores, fast.scores, atol=1e-4)
        assert torch.allclose(plain.boxes, fast.boxes, atol=1e-2)

    def test_bf16_autocast_trains(self, model: SegmentationModel) -> None:
        model.train()
        image, target = scene()
        with torch.autocast("cpu", torch.bfloat16):
            losses = model.loss([image, image], [target, target])
        assert all(term.isfinite() for term in losses.values())


@pytest.mark.parametrize("preset", ["losnet_debug", "losnet"])
def test_every_bn_is_folded_with_its_own_statistics(preset: str) -> None:
    """Each level has BN of its own (figure 5): were one level's taken for another's, the dense outputs would differ."""
    generator = torch.Generator().manual_seed(0)
    model = build_model(preset, num_classes=2).eval()
    assert isinstance(model, LosNet)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values, low in (
                (module.weight.data, 0.5),
                (module.bias.data, -0.5),
                (module.running_mean, -0.5),
                (module.running_var, 0.5),
            ):
                assert values is not None
                values.copy_(torch.rand(values.shape, generator=generator) + low)
    fast = prepare_for_inference(model)
    assert isinstance(fast, LosNet)
    assert not [m for m in fast.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    images = torch.randn(1, 3, 96, 128, generator=generator)
    with torch.no_grad():
        (ours, ours_masks, _), (theirs, theirs_masks, _) = model.dense(images), fast.dense(images)
    for name in ("logits", "distances", "centerness"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours_masks, theirs_masks, rtol=1e-3, atol=1e-4)


def test_resized_prediction_comes_back_at_the_size_of_the_image() -> None:
    torch.manual_seed(0)
    model = build_model("losnet_debug", num_classes=1, overrides={"score_threshold": 0.0, "input_short": 96, "input_long": 128}).eval()
    prediction = model.predict([torch.rand(3, 50, 70)])[0]
    assert isinstance(prediction, InstancePrediction)
    assert prediction.masks.shape[1:] == (50, 70)
    assert prediction.boxes[:, 2].max() <= 70


@pytest.mark.parametrize("overrides", [{}, {"extra_levels": "true"}])
def test_one_image_smaller_than_a_cell_trains(overrides: dict[str, object]) -> None:
    model = build_model("losnet_debug", num_classes=1, overrides=overrides).train()
    image, target = scene(20, 31, count=0)
    assert all(term.isfinite() for term in model.loss([image], [target]).values())
    assert model.eval().predict([image])


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


def test_condinst_has_what_losnet_leaves_out() -> None:
    light, heavy = resolve_config("losnet"), resolve_config("condinst_mv3")
    assert isinstance(light, LosNetConfig)
    assert isinstance(heavy, LosNetConfig)
    assert (light.fpn_channels, light.fpn_convs, light.extra_levels, light.head_convs, light.norm) == (96, False, False, 2, "bn")
    assert (heavy.fpn_channels, heavy.fpn_convs, heavy.extra_levels, heavy.head_convs, heavy.norm) == (256, True, True, 4, "gn")
    assert light.backbone == heavy.backbone == "mobilenetv3_small_100"


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


def test_unreachable_hub_names_the_two_other_ways(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read from the environment at import alone
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"could not be fetched.*local file or s3:// URI.*backbone-weights none"):
        build_model("losnet", num_classes=1, backbone_weights="imagenet")


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
