"""Figures of semantic models: what is taken for what, and how the classes compare.

Shapes: ``K`` classes, ``R`` resolutions.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stratum.report.style import GRID, INK, MUTED, colour, empty, new_figure, save

Floats = npt.NDArray[np.float64]
MOST_WRITTEN = 24  # classes up to which the cells of a confusion matrix have room for a number


def confusion_plot(matrix: npt.NDArray[np.int64], classes: Sequence[str], path: Path | str) -> Path:
    """The confusion matrix ``[K, K]`` (rows labelled, columns predicted), each row as percent of the class's labelled pixels."""
    side = min(4.2 + 0.55 * len(classes), 16.0)
    figure, (axes,) = new_figure(side + 1.0, side)
    axes.set(xlabel="predicted", ylabel="labelled")
    totals = matrix.sum(axis=1, keepdims=True)
    if not totals.any():
        empty(axes, "nothing labelled")
        return save(figure, path)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    axes.grid(visible=False)
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    figure.colorbar(shown, ax=axes, shrink=0.75, format=lambda share, _: f"{share:.0%}")
    ticks = range(len(classes))
    axes.set_xticks(ticks, classes, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, [f"{name}\n{_pixels(int(total))}" for name, total in zip(classes, totals[:, 0], strict=True)])
    if len(classes) <= MOST_WRITTEN:
        for row, column in np.ndindex(*matrix.shape):
            text = _percent(float(shares[row, column])) if totals[row, 0] else "-"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if shares[row, column] > 0.55 else INK)
    return save(figure, path)


def class_bars(values: Sequence[float], classes: Sequence[str], path: Path | str, *, label: str) -> Path:
    """One bar for each class, 0 to 1, with a line at their mean; classes whose value is NaN have none."""
    figure, (axes,) = new_figure(7.0, 1.3 + 0.36 * len(classes))
    places, known = np.arange(len(classes)), ~np.isnan(np.asarray(values, dtype=np.float64))
    axes.barh(places[known], np.asarray(values)[known], color=colour(0), height=0.62, zorder=2)
    for place, value in enumerate(values):
        text, start = ("not labelled", 0.0) if math.isnan(value) else (f"{value:.3f}", value)
        axes.text(start + 0.01, place, text, va="center", fontsize=9)
    axes.set_yticks(places, classes)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.1), xlabel=label)
    if known.any():
        mean = float(np.asarray(values)[known].mean())
        axes.axvline(mean, color=INK, linewidth=1.1, linestyle=(0, (5, 3)), zorder=3)
        axes.text(mean, -0.75, f"mean {mean:.3f}", ha="center", va="bottom", fontsize=9, color=INK)
    axes.grid(visible=False, axis="y")
    return save(figure, path)


def share_bars(shares: Floats, rows: Sequence[str], parts: Sequence[str], path: Path | str, *, label: str) -> Path:
    """A bar for each row of ``shares [rows, parts]``, 0 to 1, cut into its parts; a row without any is empty."""
    figure, (axes,) = new_figure(7.6, 1.6 + 0.4 * len(rows))
    left = np.zeros(len(rows))
    for number, part in enumerate(parts):
        axes.barh(range(len(rows)), shares[:, number], left=left, color=colour(number), height=0.66, label=part, zorder=2)
        for row, (start, share) in enumerate(zip(left, shares[:, number], strict=True)):
            if share >= 0.06:
                axes.text(start + share / 2, row, f"{share:.0%}", ha="center", va="center", fontsize=8, color="white", zorder=3)
        left = left + shares[:, number]
    for row in np.flatnonzero(left == 0).tolist():
        axes.text(0.01, row, "never predicted", va="center", fontsize=9, color=MUTED)
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel=label)
    axes.grid(visible=False, axis="y")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(parts), frameon=False, fontsize=9)
    return save(figure, path)


def area_plot(fractions: Floats, classes: Sequence[str], path: Path | str) -> Path:
    """How much of the images each class covers: ``fractions [images, K]`` as dots, one an image, and their mean."""
    figure, (axes,) = new_figure(7.0, 1.3 + 0.42 * len(classes))
    if not len(fractions):
        empty(axes, "no image")
        return save(figure, path)
    spread = np.random.default_rng(0).uniform(-0.22, 0.22, len(fractions))  # so that equal dots lie beside each other
    for number, values in enumerate(fractions.T):
        axes.plot(values, number + spread, ".", color=colour(0), alpha=0.4, markersize=5, zorder=2)
        axes.plot([values.mean()] * 2, [number - 0.33, number + 0.33], color=INK, linewidth=2, zorder=3)
        axes.text(1.02, number, f"{values.mean():.1%}", va="center", fontsize=9, color=INK)
    axes.set_yticks(range(len(classes)), classes)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.0), xlabel=f"share of the image ({len(fractions)} images; line and number: mean)")
    axes.grid(visible=True, axis="x", color=GRID)
    return save(figure, path)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}" if 0.0005 <= share < 0.9995 else f"{100 * share:.0f}"


def _pixels(count: int) -> str:
    """``12,300`` as ``12.3 k px``."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.3g} {unit} px"
    return f"{count} px"
