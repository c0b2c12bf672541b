"""What a sweep varies: the paper's ablation grid, and the joint space of the search.

A grid's variant is a preset with overrides. Rows of different tables that describe the same network share one variant, and one run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stratum_models.catalog import resolve_config
from stratum_models.errors import UserError
from stratum_models.losnet.paper import PaperRow, table_rows

TABLES = (1, 2, 3, 4, 5, 6)

# Section 4.3: the ablations vary one thing at a time in this network, which is CondInst on MobileNetV3-Small.
BASELINE_PRESET = "condinst_mv3"
BASELINE: Mapping[str, object] = {
    "backbone": "mobilenetv3_small_100",
    "fpn_channels": 256,
    "fpn_convs": True,
    "extra_levels": True,
    "head_convs": 4,
    "norm": "gn",
}

BASELINE_ROWS = ("t1/MobileNetV3-Small", "t2/256-yes", "t3/P6P7-yes", "t4/4", "t5/GN")  # the network all tables share

# Table 1 by the names of timm (torchvision's for ShuffleNetV2). VoVNetV2 is the 39-layer one: its checkpoint is as large as ResNet50's.
BACKBONES: Mapping[str, str | None] = {
    "DLA34": "dla34",
    "EfficientNet-B0": "efficientnet_b0",
    "MnasNet-0.5": "mnasnet_050",
    "MobileNetV2": "mobilenetv2_100",
    "MobileNetV3-Small": "mobilenetv3_small_100",
    "ResNet50": "resnet50",
    "ResNet101": "resnet101",
    "VoVNetV2": "ese_vovnet39b",
    "PeleeNet": None,  # neither timm nor torchvision has it
    "RegNet-200M": "regnetx_002",
    "ShuffleNetV2": "shufflenet_v2_x1_0",
}

# What the search draws from. Backbones: those of Table 1 that are no larger than what a small computer beside a belt can run.
CHOICES: Mapping[str, tuple[object, ...]] = {
    "backbone": ("mobilenetv3_small_100", "mobilenetv3_small_050", "mobilenetv2_100", "mnasnet_050", "regnetx_002", "efficientnet_b0"),
    "fpn_channels": (64, 96, 128, 256),
    "fpn_convs": (False, True),
    "extra_levels": (False, True),
    "head_convs": (1, 2, 3, 4),
    "norm": ("bn", "gn"),
    "mask_channels": (32, 64, 96, 128),
}
LEARNING_RATE_FACTOR = (0.25, 4.0)  # of the run's own learning rate, drawn on a logarithmic scale


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One network of a grid. ``rows`` are the keys of the paper's rows that it stands for, such as ``t2/96-no``.

    ``fixed`` names the overrides that these rows ask for.
    """

    name: str
    preset: str
    overrides: Mapping[str, object]
    rows: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The variants of a sweep, and the rows of the paper that cannot be run, with the reason."""

    variants: tuple[Variant, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def get(self, name: str) -> Variant:
        """The variant of this name."""
        return next(v for v in self.variants if v.name == name)


def parse_tables(text: str) -> tuple[int, ...]:
    """``"2,4"`` as ``(2, 4)``; ``"all"`` is every table. Raises UserError for numbers that are no table of the ablation."""
    if text == "all":
        return TABLES
    parts = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [part for part in parts if part not in map(str, TABLES)]
    if unknown or not parts:
        raise UserError(f"--tables {text!r}: the paper's ablation has the tables {', '.join(map(str, TABLES))}; write them like 2,4 or all")
    return tuple(sorted({int(part) for part in parts}))


def ablation_grid(tables: tuple[int, ...] = TABLES, extra: Mapping[str, object] | None = None) -> Grid:
    """The paper's Tables 1 to 6 as variants, in the order of the tables; ``extra`` overrides go into every variant."""
    found: dict[tuple[str, tuple[tuple[str, object], ...]], list[str]] = {}
    left_out: dict[str, str] = {}
    fixed: dict[str, tuple[str, ...]] = {}
    for row in table_rows(tables):
        network = _network(row)
        if network is None:
            left_out[row.key] = "neither timm nor torchvision has this backbone"
            continue
        preset, overrides = network
        fixed[row.key] = tuple(overrides)
        found.setdefault((preset, tuple(sorted({**(extra or {}), **overrides}.items()))), []).append(row.key)
    variants = [
        Variant(name=_slug(rows), preset=preset, overrides=dict(values), rows=tuple(rows), fixed=fixed[rows[0]])
        for (preset, values), rows in found.items()
    ]
    return Grid(variants=tuple(variants), left_out=left_out)


def own_variant(entry: str, extra: Mapping[str, object] | None = None) -> Variant:
    """A preset, or one with options of its own, as in ``losnet:head_convs=1+norm=gn``; of ``extra`` it takes what it has.

    Raises UserError for an unknown preset or option.
    """
    preset, _, options = entry.partition(":")
    pairs = [option for option in options.split("+") if option]
    if any("=" not in pair for pair in pairs):
        raise UserError(f"model {entry!r}: write options as losnet:head_convs=1+norm=gn")
    known = vars(resolve_config(preset, {}))
    given = dict(pair.split("=", 1) for pair in pairs)
    config = vars(resolve_config(preset, given))
    overrides = {**{name: value for name, value in (extra or {}).items() if name in known}, **{name: config[name] for name in given}}
    return Variant(name="-".join([preset, *pairs]), preset=preset, overrides=overrides)


def _network(row: PaperRow) -> tuple[str, dict[str, object]] | None:
    """Preset and overrides of a row; None where the network is not to be had."""
    if row.table == 6:
        # Table 4's two convolutions give the original FPN's 71 MB with P6 and P7 only, so that this FPN has them.
        original = row.label == "original-FPN"
        return "losnet", {"fpn_channels": 256 if original else 96, "fpn_convs": original, "extra_levels": original}
    varied = _varied(row)
    return None if None in varied.values() else (BASELINE_PRESET, {**BASELINE, **varied})


def _varied(row: PaperRow) -> dict[str, object]:
    """What a row of Tables 1 to 5 changes in the baseline."""
    if row.table == 1:
        return {"backbone": BACKBONES[row.label]}
    if row.table == 2:
        channels, convs = row.label.split("-")
        return {"fpn_channels": int(channels), "fpn_convs": convs == "yes"}
    if row.table == 3:
        return {"extra_levels": row.label.endswith("yes")}
    if row.table == 4:
        return {"head_convs": int(row.label)}
    return {"norm": row.label.lower()}


def _slug(rows: list[str]) -> str:
    """A name for files and runs: that of the first row; the baseline, which most tables share, by its own."""
    return "baseline" if len(rows) > 1 or rows[0] in BASELINE_ROWS else rows[0].replace("/", "-").replace(" ", "-")


def search_space() -> dict[str, Any]:
    """The joint space as Ray Tune's domains: one choice for each option, and a factor of the learning rate."""
    from ray import tune

    space: dict[str, Any] = {name: tune.choice(list(values)) for name, values in CHOICES.items()}
    space["learning_rate_factor"] = tune.loguniform(*LEARNING_RATE_FACTOR)
    return space


def sampled_variant(config: Mapping[str, Any], name: str, preset: str = "losnet") -> Variant:
    """The network that a sample of :func:`search_space` describes. Raises UserError where the preset cannot be built like that."""
    overrides = {key: value for key, value in config.items() if key in CHOICES}
    resolve_config(preset, overrides)
    return Variant(name=name, preset=preset, overrides=overrides)
