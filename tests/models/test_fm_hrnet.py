"""FM-HRNet: its presets against the paper's tables, each option alone, the whole network in training and prediction."""

from dataclasses import replace
from functools import lru_cache
from math import prod

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stratum_models.catalog import CATALOG, FM_V1, FM_V4, resolve_config
from stratum_models.errors import UserError
from stratum_models.fm_hrnet.aggregation import GROUPS, KERNELS, summed
from stratum_models.fm_hrnet.build import build_fm_hrnet, build_network
from stratum_models.fm_hrnet.config import FMHRNetConfig
from stratum_models.fm_hrnet.model import FMHRNet
from stratum_models.fm_hrnet.paper import row
from stratum_models.fm_hrnet.parallel import Fusion
from stratum_models.interface import SemanticTarget


def fm_config(name: str) -> FMHRNetConfig:
    config = resolve_config(name)
    assert isinstance(config, FMHRNetConfig)
    return config


DEBUG = fm_config("fm_hrnet_debug")
NO_AGGREGATION = {"detail": False, "pyconv": False, "dilated_pyramid": False}
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


@pytest.mark.parametrize(
    "changes",
    [{}, {"stem_strides": (2, 2, 2, 1)}, {"stem_strides": (2, 2, 1, 1)}, {"detail": False, "pyconv": False, "dilated_pyramid": False}],
)
def test_maps_of_sides_that_do_not_divide_lie_straight_on_each_other(changes: dict[str, object]) -> None:
    """Each map holds where in the image its pixels lie; enlarged, they must still say so."""
    config = replace(FM_V4, **changes)  # type: ignore[arg-type]
    head = on_meta(config).head
    strides = [prod(config.stem_strides) * 2**branch for branch in range(4)]
    strides = [prod(config.stem_strides[:3]), *strides] if config.detail else strides
    places = [(torch.arange(-(-416 // stride)) + 0.5) * stride for stride in strides]
    maps = [place[:, None] + place for place in places]
    total = summed(nn.ModuleList(nn.Identity() for _ in maps), [one[None, None] for one in maps], head.factors)[0, 0]  # type: ignore[arg-type]
    inside = slice(strides[-1] // strides[0], len(places[0]) - strides[-1] // strides[0])  # where there are neighbours on both sides
    torch.testing.assert_close(total[inside, inside], len(maps) * maps[0][inside, inside])


def test_branches_are_exchanged_straight_too() -> None:
    """The second branch has nothing but a ramp, which the first must find where it is."""
    fusion = Fusion((1, 1, 1)).eval()
    for name, values in fusion.state_dict().items():
        values.fill_(float(not name.endswith(("bias", "running_mean"))))
    ramps = [(torch.arange(-(-13 // side)) + 0.5)[:, None].expand(-1, 13).mul(side)[None, None] for side in (1, 2, 4)]
    zeros = [torch.zeros(1, 1, -(-13 // side), -(-13 // side)) for side in (1, 2, 4)]
    for source in (1, 2):
        maps = [ramps[number][..., : zeros[number].shape[-1]] if number == source else zeros[number] for number in range(3)]
        found = fusion(maps)[0][0, 0]
        torch.testing.assert_close(found[4:9] * (1 + 1e-5) ** 0.5, ramps[0][0, 0, 4:9])


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
