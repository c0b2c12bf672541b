"""What all figures share: colours, clean axes, readable logarithmic ticks, saving. Agg canvases only, no state of pyplot."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

INK, MUTED, GRID = "#22303c", "#7d8b99", "#e3e8ed"
COLOURS = ("#1f6fb4", "#d1495b", "#2a9d6f", "#e39b21", "#7b5ea7", "#4aa5b8", "#8c6d46", "#c2679f")


def colour(index: int) -> str:
    """The colour of the series with this number; they repeat after eight."""
    return COLOURS[index % len(COLOURS)]


def new_figure(
    width: float,
    height: float,
    *,
    rows: int = 1,
    columns: int = 1,
    title: str = "",
    heights: Sequence[float] | None = None,
    share_x: bool = True,
) -> tuple[Figure, list[Axes]]:
    """A figure of inches with its own canvas, and its styled axes row by row; rows share their x axis unless ``share_x`` is off."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = [
        axes for row in figure.subplots(rows, columns, squeeze=False, sharex=share_x and rows > 1, height_ratios=heights) for axes in row
    ]
    for each in axes:
        _style(each)
    if title:
        figure.suptitle(title, color=INK, fontsize=12, fontweight="bold")
    return figure, axes


def empty(axes: Axes, text: str) -> None:
    """Says in the middle of the axes why nothing is drawn."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=MUTED, fontsize=11)


def log_axis(axes: Axes, low: float, high: float) -> None:
    """A logarithmic x axis from ``low`` to ``high`` with plain numbers at 1, 2 and 5 of each decade (at every digit if it is short)."""
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    steps: Sequence[float] = (1, 2, 5) if high / low > 20 else (1, 1.5, 2, 3, 4, 5, 7)
    axes.xaxis.set_major_locator(LogLocator(subs=steps, numticks=30))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def save(figure: Figure, path: Path | str) -> Path:
    """Writes the figure; the suffix says the format, folders are made."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=140)
    return target


def _style(axes: Axes) -> None:
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
    axes.tick_params(colors=INK, labelsize=9, color=MUTED)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
