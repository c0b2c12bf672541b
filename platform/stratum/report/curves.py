"""A figure over a counted quantity: one line for each series, and level lines for what does not depend on it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.ticker import FuncFormatter, NullLocator

from stratum.report.style import INK, colour, empty, new_figure, save

DASHES = ((0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))  # of level lines, in their order


@dataclass(frozen=True, kw_only=True)
class Series:
    """A named line through points ``(x, y)``."""

    name: str
    points: Sequence[tuple[float, float]]


def curves_plot(
    series: Sequence[Series], levels: Mapping[str, float], path: Path | str, *, x_label: str, y_label: str, title: str = ""
) -> Path:
    """Lines over a logarithmic x axis with a tick at every x there is; values that are not finite are left out."""
    figure, (axes,) = new_figure(7.6, 5.0, title=title)
    axes.set(xlabel=x_label, ylabel=y_label)
    drawn = [(one.name, sorted(point for point in one.points if math.isfinite(point[1]))) for one in series]
    ticks = sorted({x for _, points in drawn for x, _ in points})
    known = {name: value for name, value in levels.items() if math.isfinite(value)}
    if not ticks:
        empty(axes, "no finished trial")
        return save(figure, path)
    for number, (name, points) in enumerate(drawn):
        if points:
            axes.plot(*zip(*points, strict=True), color=colour(number), marker="o", markersize=5, linewidth=1.8, label=name)
    for number, (name, value) in enumerate(known.items()):
        axes.axhline(value, color=INK, linewidth=1.2, linestyle=DASHES[number % len(DASHES)], label=f"{name}: {value:.3g}")
    axes.set_xscale("log")
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.06, y=0.1)
    axes.legend(frameon=True, framealpha=0.85, edgecolor="none", fontsize=8)
    return save(figure, path)
