"""ARSM as a model: the paper's sizes, training, the temperature, and the gate that can be looked at."""

import copy

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from stratum_models.arsm.config import ARSMConfig
from stratum_models.arsm.joined import JoinedSelection
from stratum_models.arsm.model import ARSM, build_arsm
from stratum_models.arsm.paper import COVID, DROSOPHILA, PAPER_RESULTS, result
from stratum_models.errors import UserError
from stratum_models.hrnet.build import build_hrnet
from stratum_models.hrnet.config import HRNetConfig
from stratum_models.interface import IGNORE_INDEX, SemanticPrediction, SemanticTarget
from stratum_models.optimize import prepare_for_inference


def tiny(**options: object) -> ARSM:
    torch.manual_seed(0)
    return build_arsm(ARSMConfig(width=4, modules=(1, 1, 1), blocks=1, **options), 3)  # type: ignore[arg-type]


def scene(height: int, width: int, seed: int = 0) -> tuple[Tensor, SemanticTarget]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, 3, (height, width), generator=generator)
    mask[0, 0] = IGNORE_INDEX
    return torch.rand(3, height, width, generator=generator), SemanticTarget(mask=mask)


def test_monte_carlo_approaches_the_expectation_in_one_pass_of_the_trunk() -> None:
    image, _ = scene(16, 24)
    few, many = tiny(gate="monte_carlo", samples=2).eval(), tiny(gate="monte_carlo", samples=1000).eval()
    exact = tiny().eval()
    runs: list[object] = []
    many.selecting.trunk.register_forward_hook(lambda *_: runs.append(1))
    found = {}
    for name, model in (("few", few), ("many", many), ("exact", exact)):
        model.selecting.load_state_dict(exact.selecting.state_dict())
        (prediction,) = model.predict([image])
        assert isinstance(prediction, SemanticPrediction)
        found[name] = prediction.probabilities
    assert len(runs) == 1
    assert (found["many"] - found["exact"]).abs().mean() < 0.1 * (found["few"] - found["exact"]).abs().mean()


@pytest.mark.parametrize(("name", "width"), [("W18", 18), ("W32", 32)])
def test_sizes_and_costs_are_the_papers(name: str, width: int) -> None:
    counts = {}
    with torch.device("meta"), torch.no_grad():
        selecting = build_arsm(ARSMConfig(width=width), 5).eval()
        plain = build_hrnet(HRNetConfig(width=width, stem_strides=(1, 1)), 5).eval()
        for key, model in (("arsm", selecting), ("hrnet", plain)):
            with FlopCounterMode(display=False) as counter:
                model.dense(torch.empty(1, 3, 256, 256))
            counts[key] = counter.get_total_flops() / 2e9
    paper = result(f"HRNet{name} +ARSM").figures()
    assert sum(p.numel() for p in selecting.parameters()) / 1e6 == pytest.approx(paper["params_m"], abs=0.005)
    assert counts["arsm"] == pytest.approx(paper["gmacs"], rel=0.015)
    assert counts["arsm"] <= 1.1 * counts["hrnet"]


def test_paper_means_are_those_of_its_classes() -> None:
    for row in PAPER_RESULTS:
        for names, classes, mean in ((DROSOPHILA, row.drosophila, row.drosophila_miou), (COVID, row.covid, row.covid_miou)):
            assert len(names) == len(classes)
            assert sum(value for value, _ in classes) / len(classes) == pytest.approx(mean[0], abs=0.05), row.method


class TestModel:
    def test_training_repeats_with_the_seed(self) -> None:
        model = tiny().train()
        image, target = scene(16, 16)
        losses = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            losses.append(model.loss([image], [target])["ce"].item())
        assert losses[0] == losses[1] != losses[2]

    @pytest.mark.parametrize("gate", ["expected", "monte_carlo"])
    def test_small_image_trains_and_predicts_the_same_twice(self, gate: str) -> None:
        model = tiny(gate=gate, samples=3).train()
        image, target = scene(7, 5)
        assert all(term.isfinite() for term in model.loss([image], [target]).values())
        (first,), (second,) = model.eval().predict([image]), model.predict([image])
        assert isinstance(first, SemanticPrediction)
        assert isinstance(second, SemanticPrediction)
        assert first.probabilities.shape == (3, 7, 5)
        assert torch.equal(first.probabilities, second.probabilities)

    def test_temperature_follows_training_and_is_saved(self) -> None:
        model = tiny(temperature=1.0, temperature_end=0.01)
        temperatures = []
        for fraction in (-1.0, 0.0, 0.5, 1.0, 2.0):
            model.set_progress(fraction)
            temperatures.append(model.selecting.selection.temperature.item())
        assert temperatures == pytest.approx([1.0, 1.0, 0.1, 0.01, 0.01])
        assert "network.selection.temperature" not in dict(model.named_parameters())
        other = tiny(temperature=1.0, temperature_end=0.01)
        other.load_state_dict(model.state_dict())
        assert other.selecting.selection.temperature.item() == pytest.approx(0.01)
        constant = tiny()
        constant.set_progress(0.7)
        assert constant.selecting.selection.temperature.item() == pytest.approx(0.1)

    @pytest.mark.parametrize("options", [{}, {"stem_strides": (2, 2), "input_short": 40}])
    def test_gate_maps(self, options: dict[str, object]) -> None:
        model = tiny(**options).eval()
        images = [scene(19, 30)[0], scene(24, 16, seed=1)[0]]
        for image, gate, prediction in zip(images, model.gate_maps(images), model.predict(images), strict=True):
            height, width = image.shape[1:]
            assert isinstance(prediction, SemanticPrediction)
            assert gate.weights.shape == gate.responses.shape == (4, 3, height, width)
            torch.testing.assert_close(gate.weights.sum(0), torch.ones(3, height, width))
            assert gate.responses.amin((0, 2, 3)).tolist() == [0.0] * 3
            torch.testing.assert_close(gate.responses.amax((0, 2, 3)), torch.ones(3))
            counts = [[0] * 4 for _ in range(3)]
            label = prediction.probabilities.argmax(0)
            for y in range(height):
                for x in range(width):
                    k = int(label[y, x])
                    counts[k][int(gate.weights[:, k, y, x].argmax())] += 1
            assert gate.decided.tolist() == counts
            for share, row in zip(gate.shares.tolist(), counts, strict=True):
                assert share == pytest.approx([n / max(sum(row), 1) for n in row])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "option temperature=0.0"),
        ({"temperature_end": 1000.0}, "option temperature_end=1000.0"),
        ({"gate": "sample"}, "must be expected or monte_carlo"),
        ({"samples": 0}, "option samples=0"),
        ({"width": 0}, "option width=0"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ARSMConfig(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("height", "width"), [(32, 48), (40, 24)])
def test_the_quicker_order_gives_the_same(height: int, width: int) -> None:
    model = tiny().eval()
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 2.0),
                (module.bias, -1.0, 1.0),
            ):
                assert values is not None
                values.data.copy_(low + (high - low) * torch.rand(values.shape, generator=generator))
    branches = [torch.randn(2, 4 * 2**i, height >> i, width >> i, generator=generator, dtype=torch.float64) for i in range(4)]
    selection = model.selecting.selection.double()
    quick = JoinedSelection(copy.deepcopy(selection))
    for wanted, found in zip(selection.parts(branches), quick.parts(branches), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("channels_last", [True, False])
def test_prepared_for_inference_it_says_the_same(channels_last: bool) -> None:
    model = tiny(temperature=1.0).eval()  # a lower one magnifies what float32 rounds
    prepared = prepare_for_inference(model, channels_last=channels_last)
    assert any(isinstance(module, JoinedSelection) for module in prepared.modules())
    image, _ = scene(40, 24)
    (before,), (after,) = model.predict([image]), prepared.predict([image])
    assert isinstance(before, SemanticPrediction)
    assert isinstance(after, SemanticPrediction)
    torch.testing.assert_close(after.probabilities, before.probabilities, rtol=1e-3, atol=1e-3)
    assert isinstance(prepared, ARSM)
    for one, other in zip(model.gate_maps([image]), prepared.gate_maps([image]), strict=True):
        torch.testing.assert_close(other.weights, one.weights, rtol=1e-3, atol=1e-3)
