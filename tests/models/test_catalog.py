"""The catalog: what presets are, how large they are, and how options are given."""

import pytest
import torch

from stratum_models.catalog import CATALOG, build_model, resolve_config
from stratum_models.errors import UserError
from stratum_models.losnet.config import LosNetConfig

LEAST_CLASSES = {"instance": 1, "semantic": 2}
PARAMETERS = {  # with the classes of the paper's setting, or as few as there can be
    "losnet": 2_399_386,  # the paper's 26 MB is a training checkpoint of a network of this size
    "losnet_r50": 25_262_266,
    "losnet_r101": 44_254_394,
    "condinst_mv3": 10_649_564,
    "condinst_r50": 33_982_204,
    "mask_rcnn_r50": 43_975_515,
    "fm_hrnet_v0": 38_583_572,
    "fm_hrnet_v1": 22_688_148,
    "fm_hrnet_v2": 22_902_548,
    "fm_hrnet_v3": 14_361_492,
    "fm_hrnet_v4": 14_575_892,
    "hrnet_w18": 9_637_055,
    "hrnet_w18_ocr": 12_069_060,
    "hrnet_w32": 29_539_301,
    "hrnet_w48": 65_847_844,
    "hrnet_w18_arsm": 9_722_950,
    "hrnet_w32_arsm": 29_792_776,
    "lite_hrnet_18": 1_056_436,
    "lite_hrnet_30": 1_689_384,
    "hrformer_small": 8_089_679,
    "slag_deeplab": 3_869_891,
    "deeplab_mv2_ema": 5_827_331,
    "deeplab_mv2": 5_811_171,
    "deeplab_xception": 54_706_579,
    "deeplab_r50": 40_347_556,
    "deeplab_vgg16": 20_159_139,
    "unet_r18": 14_328_644,
    "unet_r50": 32_521_395,
    "unet_vgg16": 24_866_307,
    "fcn_r50": 23_508_032 + 3 * (512 + 1024 + 2048) + 9,  # ResNet-50 without its classifier, and three layers of scores
    "fcn_vgg16": 27_836_492,
    "unet_s2": 14_123_682,
    "two_stage": 2 * 14_123_682,
    "two_stage_small": 1_767_252,
    "sliding": 14_123_682,
}
DEVIATING = {"fcn_r50", "hrformer_small", "slag_deeplab"}  # from the paper's parameters by more than 3 %: see the READMEs


def test_every_preset_has_its_parameters() -> None:
    counts = {}
    for name, known in CATALOG.items():
        if not name.endswith("_debug"):
            with torch.device("meta"):
                model = build_model(name, num_classes=known.setting.classes if known.setting else LEAST_CLASSES[known.task])
            assert model.task == known.task, name
            counts[name] = sum(p.numel() for p in model.parameters())
    assert counts == PARAMETERS


def test_parameters_are_the_papers() -> None:
    deviations = {
        name: PARAMETERS[name] / 1e6 / p.paper["params_m"] - 1 for name, p in CATALOG.items() if p.paper and "params_m" in p.paper
    }
    assert len(deviations) >= 16
    assert {name for name, deviation in deviations.items() if abs(deviation) > 0.03} == DEVIATING


@pytest.mark.parametrize("name", [name for name in CATALOG if name.endswith("_debug")])
def test_debug_presets_are_small_and_have_no_paper(name: str) -> None:
    assert sum(p.numel() for p in build_model(name, num_classes=2).parameters()) < 2e6
    assert CATALOG[name].paper is None
    assert CATALOG[name].setting is None


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
