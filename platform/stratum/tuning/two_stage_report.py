"""What a sweep over two-stage refinement draws beside its tables: figures 3 and 4 of the paper, and Dice over time, which it lacks."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stratum.report.curves import Series, curves_plot
from stratum.report.plots import Candidate, pareto_plot
from stratum.tuning.studies.study import RELATIVE_TIME
from stratum.tuning.sweep import TrialRow
from stratum_models.catalog import resolve_config
from stratum_models.preset import Config
from stratum_models.two_stage.config import TwoStageConfig
from stratum_models.two_stage.sliding import SlidingConfig

FULL, SLIDING, ALONE, REFINED = "full resolution", "sliding window", "stage 1 alone", "two stages"
DICE, MACS, LATENCY = "val/foreground_dice", "cost/macs", "cost/latency_ms"
DICE_LABEL = "Dice of the foreground, %"
PATCHES = "patches that are refined"


def two_stage_plots(rows: Sequence[TrialRow], folder: Path, title: str) -> list[Path]:
    """``dice_patches.png`` (figure 3), ``macs_patches.png`` (figure 4) and ``dice_time.png``."""
    finished = [row for row in rows if row.state == "finished"]
    return [
        _over_patches(finished, DICE, 100.0, folder / "dice_patches.png", DICE_LABEL, title),
        _over_patches(finished, MACS, 1e-9, folder / "macs_patches.png", "multiply-adds, G", title),
        _over_time(finished, folder / "dice_time.png", title),
    ]


def kind_of(row: TrialRow) -> str:
    """Which of the compared methods a trial is."""
    config = resolve_config(row.preset, row.overrides)
    if isinstance(config, SlidingConfig):
        return SLIDING
    if not isinstance(config, TwoStageConfig):
        return FULL
    return ALONE if _picks_nothing(config) else REFINED


def _picks_nothing(config: TwoStageConfig) -> bool:
    nothing = {"count": config.count == 0, "share": config.share == 0, "threshold": config.threshold == 0}
    return nothing[config.pick] or config.cap == 0


def _over_patches(rows: Sequence[TrialRow], metric: str, scale: float, path: Path, label: str, title: str) -> Path:
    """A line for each size of a patch, through the trials that differ in nothing but size and number of patches."""
    counted = [(row, config) for row, config in _refined(rows) if config.pick == "count"]
    shared = _most_common([_without_patches(config) for _, config in counted])
    points: dict[int, list[tuple[float, float]]] = {}
    for row, config in counted:
        if _without_patches(config) == shared:
            points.setdefault(config.patch, []).append((float(config.count), scale * row.metrics.get(metric, math.nan)))
    series = [Series(name=f"patches of {side}x{side}", points=sorted(set(found))) for side, found in sorted(points.items())]
    levels = {kind: scale * value for kind in (FULL, SLIDING, ALONE) if (value := _level(rows, kind, metric)) is not None}
    return curves_plot(series, levels, path, x_label=PATCHES, y_label=label, title=title)


def _over_time(rows: Sequence[TrialRow], path: Path, title: str) -> Path:
    """All trials; by the clock at the end, where it was asked of all, else by what each took beside the full-resolution network."""
    timed = all(LATENCY in row.metrics for row in rows)
    metric, label = (LATENCY, "time of a prediction, ms") if timed else (RELATIVE_TIME, "time of a prediction, relative to full resolution")
    candidates = [
        Candidate(
            name=_short(row), cost=row.metrics.get(metric, math.nan), quality=100 * row.metrics.get(DICE, math.nan), group=kind_of(row)
        )
        for row in rows
    ]
    return pareto_plot(candidates, path, cost_label=label, quality_label=DICE_LABEL, title=title)


def _short(row: TrialRow) -> str:
    """What tells a trial apart in a figure: the label of its row."""
    return row.rows[0].partition("/")[2] if row.rows else row.name


def _refined(rows: Sequence[TrialRow]) -> list[tuple[TrialRow, TwoStageConfig]]:
    found = [(row, resolve_config(row.preset, row.overrides)) for row in rows]
    return [(row, config) for row, config in found if isinstance(config, TwoStageConfig) and not _picks_nothing(config)]


def _without_patches(config: TwoStageConfig) -> TwoStageConfig:
    """The configuration at one size and number of patches, so that those that differ in nothing else are equal."""
    return replace(config, patch=96, count=16, image_size=()) if config.margin <= 96 else config


def _most_common(configs: Sequence[Config]) -> Config | None:
    return max(configs, key=configs.count, default=None)


def _level(rows: Sequence[TrialRow], kind: str, metric: str) -> float | None:
    """The best value of a kind of trial; None where there is none."""
    values = [row.metrics[metric] for row in rows if kind_of(row) == kind and math.isfinite(row.metrics.get(metric, math.nan))]
    return (min if metric == MACS else max)(values, default=None)
