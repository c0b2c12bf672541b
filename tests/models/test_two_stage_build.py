"""What stages a two-stage pipeline can have, and what it refuses at construction."""

import pytest
import torch
from torch import Tensor, nn

from stratum_models.catalog import build_model
from stratum_models.errors import UserError
from stratum_models.interface import SemanticPrediction
from stratum_models.semantic.config import SemanticConfig
from stratum_models.semantic.model import SemanticModel
from stratum_models.two_stage.config import TwoStageConfig
from stratum_models.two_stage.model import TwoStage
from stratum_models.two_stage.stage import parse_stage
from stratum_models.two_stage.unet import StridedUNetConfig, build_strided_unet


def tiny(classes: int = 2, **options: object) -> TwoStage:
    torch.manual_seed(0)
    model = build_model("two_stage_debug", num_classes=classes, overrides=options)
    assert isinstance(model, TwoStage)
    return model


def probabilities(model: TwoStage, image: Tensor) -> Tensor:
    (prediction,) = model.predict([image])
    assert isinstance(prediction, SemanticPrediction)
    return prediction.probabilities


STAGES = (
    "fm_hrnet_debug",
    "hrnet_debug",
    "hrnet_arsm_debug",
    "lite_hrnet_18",
    "hrformer_small",
    "slag_deeplab_debug",
    "unet_r18",
    "fcn_r50",
)


@pytest.mark.parametrize("name", STAGES)
def test_any_model_serves_and_the_prior_starts_without_weight(name: str) -> None:
    models = [tiny(3, stage1="unet_s2_debug", stage2=name, prior=prior).eval() for prior in (False, True)]
    models[1].stage1.load_state_dict(models[0].stage1.state_dict())
    plain, widened = models[0].stage2.state_dict(), models[1].stage2.state_dict()
    changed = [key for key in plain if plain[key].shape != widened[key].shape]
    assert len(changed) == 1
    colours = plain[changed[0]].shape[1]
    assert not widened[changed[0]][:, colours:].any()
    plain[changed[0]] = torch.cat([plain[changed[0]], widened[changed[0]][:, colours:]], 1)
    models[1].stage2.load_state_dict(plain)
    image = torch.rand(3, 64, 64)
    without, given = (probabilities(model, image) for model in models)
    torch.testing.assert_close(without, given, atol=1e-5, rtol=1e-4)


def test_what_the_prior_costs_is_known_without_weights() -> None:
    with torch.device("meta"):
        model = tiny(3, prior=True)
    plain = tiny(3)
    assert sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters()) == 3 * 9 * 8
    assert probabilities(model, torch.rand(3, 64, 64, device="meta")).shape == (3, 64, 64)


def test_options_of_stages() -> None:
    assert parse_stage("stage1", "a:b=1,2,3,c=ce:1+dice:2") == ("a", {"b": "1,2,3", "c": "ce:1+dice:2"})
    model = tiny(stage1="unet_s2_debug:loss=ce", loss="dice", class_weights="1,2")
    assert list(model.stage1.criterion.weights) == ["ce"]
    assert list(model.stage2.criterion.weights) == ["dice"]
    assert model.stage2.criterion.class_weights is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage2": "unet_s3"}, "unknown model 'unet_s3'"),
        ({"stage2": "losnet"}, "semantic model of one stage"),
        ({"stage1": "two_stage"}, "semantic model of one stage"),
        ({"stage1": "unet_s2:wide=3"}, "no option 'wide'"),
        ({"stage1": "unet_s2:width"}, "each option once"),
        ({"stage1": "unet_s2:width=4,width=8"}, "each option once"),
        ({"stage2": "unet_r18:input_short=64"}, "change the resolution"),
        ({"scale": 0.5}, "scale=0.5: must be 1 or more"),
        ({"scale": "nan"}, "scale=nan"),
        ({"margin": -1}, "margin=-1: must be 0 or more"),
        ({"margin": 33}, "no more than the patch of 32"),
        ({"patch": 4}, "patch=4: must be 8 or more"),
        ({"patch": 5000}, "4096 or less"),
        ({"count": -1}, "count=-1"),
        ({"share": 1.5}, "share=1.5"),
        ({"pick": "all"}, "count, share, threshold"),
        ({"uncertainty": "variance"}, "entropy, margin, distance"),
        ({"reduction": "sum"}, "mean, max"),
        ({"train_random": 0.6, "train_easy": 0.6}, "1 or less together"),
        ({"patch": 96, "image_size": "64,200"}, "larger than the images, which are 64x200"),
        ({"patch": 32, "count": 17, "image_size": "128,128"}, "hold 16 patches of 32"),
        ({"image_size": "128"}, "a height and a width"),
    ],
)
def test_what_cannot_work_is_refused_at_construction(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        tiny(**options)
    assert "\n" not in str(caught.value)


def test_stages_that_do_not_fit_are_refused() -> None:
    config = TwoStageConfig()
    two, three = (build_strided_unet(StridedUNetConfig(width=2), classes) for classes in (2, 3))
    with pytest.raises(UserError, match="stage 1 has 2 classes and stage 2 has 3"):
        TwoStage(two, three, config)
    with pytest.raises(UserError, match="cannot label patches of 5 channels"):
        TwoStage(two, two, TwoStageConfig(prior=True))
    resizing = build_strided_unet(StridedUNetConfig(width=2, input_short=64), 2)
    with pytest.raises(UserError, match="stage2: its option input_short=64"):
        TwoStage(two, resizing, config)

    class Half(SemanticModel):
        def dense(self, images: Tensor) -> Tensor:
            return self.network(images)[..., ::2, ::2]  # type: ignore[no-any-return]

    with pytest.raises(UserError, match=r"changes the resolution: patches of 64x64 give \(1, 2, 32, 32\)"):
        TwoStage(two, Half(nn.Conv2d(3, 2, 1), 2, SemanticConfig()), config)
