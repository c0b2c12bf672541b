"""The sliding window sees each patch by itself, and puts all of them back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stratum_models.catalog import build_model
from stratum_models.errors import UserError
from stratum_models.interface import IGNORE_INDEX, SemanticPrediction, SemanticTarget
from stratum_models.semantic.config import SemanticConfig
from stratum_models.semantic.model import SemanticModel
from stratum_models.two_stage.sliding import Sliding, SlidingConfig


def found(model: Sliding, image: torch.Tensor) -> torch.Tensor:
    (prediction,) = model.predict([image])
    assert isinstance(prediction, SemanticPrediction)
    return prediction.probabilities


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    patch=st.integers(8, 40),
    margin=st.integers(0, 8),
    blend=st.booleans(),
    patch_batch=st.integers(1, 5),
)
@torch.no_grad()
def test_a_function_of_the_pixels_is_applied_to_every_pixel(
    height: int, width: int, patch: int, margin: int, blend: bool, patch_batch: int
) -> None:
    torch.manual_seed(0)
    stage = SemanticModel(nn.Conv2d(3, 3, 1), 3, SemanticConfig(), divisor=1)
    model = Sliding(stage, SlidingConfig(patch=patch, margin=margin, blend=blend, patch_batch=patch_batch)).eval()
    image = torch.rand(3, height, width)
    whole = stage.network((image[None] - stage.normalize.mean) / stage.normalize.std).softmax(1)[0]
    torch.testing.assert_close(found(model, image), whole, atol=1e-5, rtol=1e-4)


def test_without_a_margin_patches_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    model = build_model("sliding_debug", num_classes=2, overrides={"margin": 0}).eval()
    assert isinstance(model, Sliding)
    image = torch.rand(3, 64, 64)
    before = found(model, image)
    image[:, 32:] = 0
    after = found(model, image)
    assert torch.equal(before[:, :32], after[:, :32])
    assert not torch.equal(before[:, 32:], after[:, 32:])


def test_it_learns_from_as_many_patches_as_asked_and_from_no_unknown_pixel() -> None:
    model = build_model("sliding_debug", num_classes=2, overrides={"train_patches": 3, "margin": 0})
    seen: list[tuple[int, ...]] = []
    model.stage.network.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))  # type: ignore[operator, union-attr]
    unknown = SemanticTarget(mask=torch.full((64, 64), IGNORE_INDEX))
    terms = model.loss([torch.rand(3, 64, 64)] * 2, [unknown] * 2)
    assert seen == [(6, 3, 32, 32)]
    assert all(float(term.detach()) == 0 for term in terms.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 4}, "patch=4: must be 8 or more"),
        ({"margin": 40}, "margin=40: must be 0 or more, and 32 or less"),
        ({"patch": 96, "image_size": "64,200"}, "larger than the images, which are 64x200"),
        ({"stage": "two_stage"}, "semantic model of one stage"),
        ({"stage": "sliding"}, "semantic model of one stage"),
        ({"stage": "unet_s2:input_short=64"}, "change the resolution"),
    ],
)
def test_what_cannot_work_is_refused_at_construction(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_model("sliding_debug", num_classes=2, overrides=options)
