"""FM-HRNet: its presets against the paper's tables, each option alone, the whole network in training and prediction."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stratum_models.catalog import CATALOG, FM_V1, FM_V4, resolve_config
from stratum_models.errors import UserError
from stratum_models.fm_hrnet.aggregation import GROUPS, KERNELS
from stratum_models.fm_hrnet.build import build_fm_hrnet, build_network
from stratum_models.fm_hrnet.config import FMHRNetConfig
from stratum_models.fm_hrnet.model import FMHRNet
from stratum_models.fm_hrnet.paper import row
from stratum_models.interface import SemanticPrediction, SemanticTarget
from stratum_models.optimize import prepare_for_inference


def fm_config(name: str) -> FMHRNetConfig:
    config = resolve_config(name)
    assert isinstance(config, FMHRNetConfig)
    return config


DEBUG = fm_config("fm_hrnet_debug")
HRNET_W48_MACS = 85e9  # at 512x512


@lru_cache
def on_meta(config: FMHRNetConfig) -> FMHRNet:
    with torch.device("meta"):
        return build_network(config, 4).eval()


def weights(network: nn.Module) -> dict[str, torch.Size]:
    return {name: p.shape for name, p in network.named_parameters()}


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def multiply_adds(network: FMHRNet) -> int:
    """At 512x512."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 3, 512, 512, device="meta"))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("name", "tolerance", "macs_tolerance"),
    [
        ("fm_hrnet_v0", None, 0.33),  # the table gives no parameters
        ("fm_hrnet_v1", 0.005, 0.09),
        ("fm_hrnet_v2", 0.02, 0.30),
        ("fm_hrnet_v3", 0.02, 0.13),
        ("fm_hrnet_v4", 0.005, 0.15),
    ],
)
def test_presets_against_the_papers_tables(name: str, tolerance: float | None, macs_tolerance: float) -> None:
    figures = CATALOG[name].paper
    assert figures is not None
    network = on_meta(fm_config(name))
    if tolerance is not None:
        assert parameters(network) / 1e6 == pytest.approx(figures["params_m"], rel=tolerance)
    assert multiply_adds(network) / 1e9 == pytest.approx(figures["gmacs"], rel=macs_tolerance)


def test_v4_has_at_most_a_twenty_fifth_of_hrnets_multiply_adds() -> None:
    assert multiply_adds(on_meta(FM_V4)) <= HRNET_W48_MACS / 25


def test_the_papers_figures_agree_between_its_tables() -> None:
    first, second = row("t1/FM-HRNet-V1"), row("t2/FM-HRNet-V1")
    assert (first.miou, first.pa, first.mpa, first.gflops) == (second.miou, second.pa, second.mpa, second.gflops)
    assert row("t1/HRNet").gmacs == pytest.approx(HRNET_W48_MACS / 1e9, rel=0.03)


def test_down_sampling_module_ends_at_an_eighth_with_64_channels() -> None:
    network = on_meta(replace(FM_V1, stem_strides=(2, 2, 2, 1)))
    detail, last = network.downsampling(torch.empty(1, 3, 256, 192, device="meta"))
    assert detail.shape == last.shape == (1, 64, 32, 24)
    assert [x.shape[1:] for x in network.trunk(last)] == [(64, 32, 24), (128, 16, 12), (256, 8, 6), (256, 4, 3)]


def _delta(c: int) -> int:
    """What a second 3x3 convolution of ``c`` channels has more, BN included, than a depthwise and a 1x1 one."""
    return (9 * c * c + 2 * c) - (9 * c + 2 * c + c * c + 2 * c)


BRANCHES = (64, 128, 256, 256, 64, 128, 256, 64, 128, 64)  # the branches of the four stages


@pytest.mark.parametrize(
    ("changes", "where", "more", "side"),
    [
        ({"stem_strides": (2, 2, 2, 1)}, "downsampling.stage4.shortcut", -(64 * 64 + 2 * 64), 16),
        ({"stem_strides": (2, 2, 1, 2)}, "", 0, 16),
        ({"separable": 1}, "branches", -4 * sum(map(_delta, BRANCHES)), 8),
        ({"separable": 2}, "branches", -8 * sum(map(_delta, BRANCHES)), 8),
        ({"blocks": 1}, "branches", -3 * sum(2 * (9 * c * c + 2 * c) for c in BRANCHES), 8),
        ({"detail": True}, "head.classify", 64 * 4, 16),
        ({"repeats": (1, 1, 1, 2)}, "trunk.stages.3", None, 8),
        ({"repeats": (1, 1, 4, 1)}, "trunk.stages.2", None, 8),
        ({"aggregation_channels": 32}, "", 0, 8),
        ({"dilations": (2, 3)}, "", 0, 8),
        ({"pyconv": True}, "head", None, 8),
        ({"dilated_pyramid": True}, "head", None, 8),
    ],
)
def test_each_part_alone_changes_itself_and_nothing_else(changes: dict[str, object], where: str, more: int | None, side: int) -> None:
    plain, changed = on_meta(FM_V1), on_meta(replace(FM_V1, **changes))  # type: ignore[arg-type]
    before, after = weights(plain).items(), weights(changed).items()
    touched = {name for name, _ in before ^ after}
    assert all(where in name for name in touched)
    assert bool(touched) == bool(where)
    if more is not None:
        assert parameters(changed) - parameters(plain) == more
    assert changed(torch.empty(1, 3, 128, 128, device="meta")).shape == (1, 4, side, side)


def test_last_branch_changes_what_touches_it() -> None:
    plain, wide = weights(on_meta(FM_V1)), weights(on_meta(replace(FM_V1, last_channels=512)))
    touched = {name for name, _ in plain.items() ^ wide.items()}
    assert {name.split(".")[0] for name in touched} == {"trunk", "head"}
    assert not [name for name in touched if name.startswith(("trunk.stages.0", "trunk.stages.1", "trunk.stages.2", "trunk.entries.0"))]
    assert wide["head.classify.3.weight"] == (4, 512, 1, 1)


def test_aggregation_parts_add_up() -> None:
    pyramid, both = on_meta(replace(FM_V4, pyconv=False)), on_meta(FM_V4)
    assert parameters(both) - parameters(pyramid) == sum(16 * (64 // g) * k * k for k, g in zip(KERNELS, GROUPS, strict=True)) + 128
    assert not [name for name in weights(pyramid).keys() ^ weights(both).keys() if not name.startswith("head.parts")]
    shapes = [on_meta(replace(FM_V4, dilations=dilations)) for dilations in ((6, 12, 18), (1, 2, 3))]
    assert weights(shapes[0]) == weights(shapes[1])


@pytest.fixture(params=[DEBUG, replace(DEBUG, pyconv=False, dilated_pyramid=False, detail=False, separable=2, blocks=2)])
def config(request: pytest.FixtureRequest) -> FMHRNetConfig:
    torch.manual_seed(0)
    chosen: FMHRNetConfig = request.param
    return chosen


def scene(height: int, width: int, seed: int = 0) -> tuple[Tensor, SemanticTarget]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, 3, (height, width), generator=generator)
    return torch.rand(3, height, width, generator=generator), SemanticTarget(mask=mask)


def test_batches_of_odd_sizes_give_every_parameter_a_gradient(config: FMHRNetConfig) -> None:
    model = build_fm_hrnet(config, 3).train()
    images, targets = zip(scene(97, 131, 1), scene(64, 80, 2), strict=True)
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.loss(images, targets)
    sum(terms.values(), torch.zeros(())).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_one_image_of_one_cell_trains(config: FMHRNetConfig) -> None:
    model = build_fm_hrnet(config, 3).train()
    image, target = scene(20, 31)
    terms = model.loss([image], [target])
    sum(terms.values(), torch.zeros(())).backward()
    assert all(term.isfinite() for term in terms.values())


def test_prediction_is_the_same_twice_folded_and_channels_last(config: FMHRNetConfig) -> None:
    model = build_fm_hrnet(config, 3).train()
    images, targets = zip(*(scene(96, 96, seed) for seed in range(2)), strict=True)
    model.loss(images, targets)  # statistics that are not those of the start
    model.eval()
    image, _ = scene(97, 131, 3)
    first, second, folded = (m.predict([image])[0] for m in (model, model, prepare_for_inference(model)))
    assert isinstance(first, SemanticPrediction)
    assert isinstance(second, SemanticPrediction)
    assert isinstance(folded, SemanticPrediction)
    assert first.probabilities.shape == (3, 97, 131)
    assert torch.equal(first.probabilities, second.probabilities)
    torch.testing.assert_close(first.probabilities, folded.probabilities, rtol=0, atol=1e-4)


def test_a_few_steps_lower_the_loss() -> None:
    torch.manual_seed(0)
    model = build_fm_hrnet(DEBUG, 2).train()
    image = torch.rand(3, 64, 64)
    mask = (torch.arange(64)[None, :] > 32).long().expand(64, 64)
    image[:, mask == 1] += 0.5
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(24):
        loss = model.loss([image, image.flip(1)], [SemanticTarget(mask=mask)] * 2)["ce"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(np.log(2), abs=0.1)
    assert losses[-1] < losses[0] * 2 / 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stem_strides": (2, 2, 2)}, r"stem_strides=\(2, 2, 2\): must be four strides of 1 or 2"),
        ({"stem_strides": (2, 2, 4, 1)}, "stem_strides"),
        ({"channels": 30}, "channels=30: must be a multiple of 4"),
        ({"last_channels": 0}, "last_channels"),
        ({"repeats": (1, 1, 4)}, "repeats"),
        ({"blocks": 0}, "blocks"),
        ({"separable": 3}, "separable=3: must be 0, 1 or 2"),
        ({"aggregation_channels": 6}, "aggregation_channels"),
        ({"dilations": ()}, "dilations"),
        ({"loss": "cee"}, "loss"),
    ],
)
def test_bad_options_are_named(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        replace(FM_V4, **changes)  # type: ignore[arg-type]


def test_pretrained_weights_are_refused() -> None:
    with pytest.raises(UserError, match="no pretrained weights"):
        build_fm_hrnet(DEBUG, 2, "imagenet")
