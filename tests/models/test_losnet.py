"""LosNet as a whole: BN of each level when it is folded, sizes, batches, backbones."""

import pytest
import torch

from stratum_models.catalog import build_model
from stratum_models.errors import UserError
from stratum_models.interface import InstancePrediction, InstanceTarget
from stratum_models.losnet.backbone import build_backbone
from stratum_models.losnet.model import LosNet
from stratum_models.optimize import prepare_for_inference


def nothing(height: int, width: int) -> InstanceTarget:
    return InstanceTarget(
        boxes=torch.zeros(0, 4),
        labels=torch.zeros(0, dtype=torch.long),
        masks=torch.zeros(0, height, width, dtype=torch.bool),
        crowd=torch.zeros(0, dtype=torch.bool),
    )


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
    image, target = torch.rand(3, 20, 31), nothing(20, 31)
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


@pytest.mark.parametrize("name", ["dla34", "ese_vovnet39b", "mobilenetv3_small_100", "regnetx_002", "resnet50", "shufflenet_v2_x1_0"])
def test_backbones_give_maps_at_the_strides_of_the_head(name: str) -> None:
    """timm's DLA counts its maps from another than the first."""
    with torch.device("meta"):
        backbone = build_backbone(name)
        maps = backbone(torch.zeros(1, 3, 64, 96))
    assert [tuple(x.shape) for x in maps] == [(1, c, 64 // s, 96 // s) for c, s in zip(backbone.channels, (8, 16, 32), strict=True)]


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
