from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stratum import cost
from stratum.memory import MemoryRequest, MemoryUse, example_target, peak_memories
from stratum_models.catalog import build_model, resolve_config
from stratum_models.errors import UserError
from stratum_models.interface import InstanceTarget, Prediction, SegmentationModel, SemanticPrediction, Target


class Convolutions(SegmentationModel):
    """One plain, one strided and one depthwise convolution, then a matrix product for each pixel."""

    task = "semantic"
    num_classes = 2

    def __init__(self, inference_mode: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 16, 5, stride=2, padding=2, bias=False),
            nn.Conv2d(16, 16, 3, padding=1, groups=16),
        )
        self.classify = nn.Linear(16, 2)
        self.inference_mode = inference_mode

    def loss(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        return {"zero": self.classify.weight.sum() * 0}

    def predict(self, images: Sequence[Tensor]) -> Sequence[Prediction]:
        with torch.inference_mode(self.inference_mode):
            features = self.layers(torch.stack(list(images))).permute(0, 2, 3, 1)
            return [SemanticPrediction(probabilities=p.permute(2, 0, 1)) for p in self.classify(features).softmax(-1)]


@pytest.mark.parametrize("inference_mode", [False, True])
@pytest.mark.parametrize(("height", "width"), [(32, 48), (64, 64)])
def test_multiply_adds_are_those_of_the_formula(height: int, width: int, inference_mode: bool) -> None:
    pixels, quarter = height * width, (height // 2) * (width // 2)
    expected = pixels * 9 * 3 * 8 + quarter * 25 * 8 * 16 + quarter * 9 * 16 + quarter * 16 * 2
    assert cost.multiply_adds(Convolutions(inference_mode), (height, width)) == expected


def test_counting_leaves_the_mode_alone() -> None:
    model = Convolutions().train()
    cost.multiply_adds(model, (32, 32))
    assert model.training


def test_parameters_and_bytes() -> None:
    model = Convolutions()
    expected = 3 * 8 * 9 + 8 + 8 * 16 * 25 + 16 * 9 + 16 + 16 * 2 + 2
    assert cost.count_parameters(model) == expected
    assert cost.state_bytes(model) == 4 * expected
    assert cost.state_bytes(model.half()) == 2 * expected


def test_losnet_has_the_size_of_the_paper() -> None:
    figures = cost.preset_cost("losnet", (64, 64))
    assert 2.3e6 <= figures["cost/params"] <= 2.5e6
    assert figures["cost/size_mb"] < 10


def test_multiply_adds_grow_with_the_image_and_ignore_what_is_found() -> None:
    small, large = (cost.preset_cost("losnet_debug", (side, side))["cost/macs"] for side in (128, 256))
    assert large == pytest.approx(4 * small, rel=0.03)  # what follows a global pooling does not grow
    found_all = build_model("losnet_debug", num_classes=1, overrides=cost.full_load_overrides("losnet_debug", {}))
    assert cost.multiply_adds(found_all, (128, 128)) > small


def test_limits_are_set_where_a_preset_has_them() -> None:
    full = resolve_config("mask_rcnn_r50", cost.full_load_overrides("mask_rcnn_r50", {}))
    assert (full.score_threshold, full.max_detections) == (0.0, cost.MAX_INSTANCES)
    kept = cost.dense_overrides("losnet", {"head_convs": 1})
    assert kept["head_convs"] == 1
    assert resolve_config("losnet", kept).score_threshold > 0.99


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that calls move by hand."""
    now = [0.0]
    monkeypatch.setattr(cost.time, "perf_counter", lambda: now[0])
    return now


def test_models_are_timed_in_turn_and_compared_round_by_round(clock: list[float]) -> None:
    order: list[str] = []
    slowdown = iter([9, 9, 1, 1, 100, 1])  # the machine's, in each round; the first two are the warm-up

    def call(name: str, seconds: float) -> None:
        if name == "a":
            clock.append(float(next(slowdown)))
        order.append(name)
        clock[0] += seconds * clock[-1]

    timings = cost.time_calls({"a": lambda: call("a", 0.010), "b": lambda: call("b", 0.030)}, repeats=4, warmup=2)
    assert order == ["a", "b"] * 6
    assert timings["a"].latency_ms == pytest.approx(10)
    assert timings["b"].latency_ms == pytest.approx(30)
    assert (timings["a"].ratio, timings["b"].ratio) == (pytest.approx(1), pytest.approx(3))


def test_nothing_to_time_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to time"):
        cost.time_calls({})


def test_images_take_turns() -> None:
    seen: list[tuple[int, ...]] = []

    class Remembering(Convolutions):
        def predict(self, images: Sequence[Tensor]) -> Sequence[Prediction]:
            seen.append(tuple(images[0].shape[-2:]))
            return super().predict(images)

    cost.time_models({"x": Remembering()}, [torch.rand(3, 32, 32), torch.rand(3, 32, 64)], repeats=3, warmup=1)
    assert seen == [(32, 32), (32, 64)] * 2


SMALL = MemoryRequest(preset="losnet_debug", size=(64, 64), train_batch=1, threads=1)


@pytest.fixture(scope="module")
def memory() -> dict[str, MemoryUse | UserError]:
    requests = {
        "small": SMALL,
        "wrong": replace(SMALL, overrides={"bogus": 1}),
        "unknown": MemoryRequest(preset="no_such", size=(64, 64)),
        "large": replace(SMALL, size=(640, 640), train_size=(64, 64)),
        "weighty": MemoryRequest(preset="condinst_r50", size=(64, 64), threads=1),
    }
    return dict(zip(requests, peak_memories(list(requests.values())), strict=True))


def test_memory_is_measured_in_a_process_of_its_own(memory: dict[str, Any]) -> None:
    small, large = memory["small"], memory["large"]
    assert 0 < small.infer_mb < 300
    assert small.train_mb >= small.infer_mb * 0.5
    assert small.train_step_ms > 0
    assert large.infer_mb > small.infer_mb
    assert large.train_mb < large.infer_mb  # ten times the side, a hundred times the pixels


def test_memory_that_cannot_be_measured_costs_the_others_nothing(memory: dict[str, Any]) -> None:
    assert isinstance(memory["wrong"], UserError)
    assert "bogus" in str(memory["wrong"])


def test_memory_is_that_of_the_network_and_not_of_its_making(memory: dict[str, Any]) -> None:
    weights = cost.state_bytes(build_model("condinst_r50", num_classes=1)) / 2**20
    assert weights * 0.9 < memory["weighty"].infer_mb < weights * 1.8  # fusing works on a copy: for a while the weights are there twice


def test_memory_that_takes_too_long_is_given_up() -> None:
    (late,) = peak_memories([SMALL], timeout_s=0.01)
    assert isinstance(late, UserError)
    assert "not within 0 s" in str(late)


def test_models_are_timed_a_few_at_once_beside_the_first() -> None:
    assert list(cost.timed_together(range(8))) == [[0, 1, 2, 3], [0, 4, 5, 6], [0, 7]]
    assert list(cost.timed_together("a")) == [["a"]]


def test_costs_are_those_of_the_size_that_is_named() -> None:
    assert cost.unresized({"input_short": 256, "input_long": 320, "head_convs": 1}) == {"head_convs": 1}


def test_a_failed_measurement_names_its_reason(memory: dict[str, Any]) -> None:
    assert isinstance(memory["unknown"], UserError)
    assert "no_such" in str(memory["unknown"])


@pytest.mark.parametrize("text", ["480", "480x", "x640", "a x b", "8x8", "480x640x3"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="HEIGHTxWIDTH"):
        cost.parse_size(text)


def test_size_is_height_first() -> None:
    assert cost.parse_size("480x640") == (480, 640)


def test_example_target_fits_its_image() -> None:
    target = example_target(build_model("losnet_debug", num_classes=1), (96, 128))
    assert isinstance(target, InstanceTarget)
    assert target.masks.shape == (16, 96, 128)
    assert torch.equal(
        target.masks.flatten(1).sum(1), ((target.boxes[:, 2] - target.boxes[:, 0]) * (target.boxes[:, 3] - target.boxes[:, 1])).long()
    )
