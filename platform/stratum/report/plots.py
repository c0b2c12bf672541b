"""Figures of runs: the Pareto front of a sweep, precision and recall, size distributions, training curves.

Everything is drawn on matplotlib's objects with the Agg canvas: no global state, no window, safe in threads and workers. Every function
writes to ``path`` (the suffix says the format) and returns it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from stratum.measurements import SizeDistribution, compare, fit_rosin_rammler, log_edges
from stratum.metrics.instance import OperatingPoint, PrecisionRecall
from stratum.pareto import Objective, pareto_front
from stratum.report.annotate import PointLabel, place_labels
from stratum.report.style import GRID, INK, MUTED, colour, empty, log_axis, new_figure, save

_LARGEST_BUBBLE, _SMALLEST_BUBBLE = 900.0, 40.0  # points squared
_CORNERS: Final = ("lower right", "upper left", "lower left", "upper right")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One model on the Pareto plot; ``size_mb`` sets the area of its bubble, ``group`` its colour."""

    name: str
    cost: float
    quality: float
    size_mb: float | None = None
    group: str = ""

    @property
    def drawable(self) -> bool:
        """Whether it has both coordinates; a cost stands on a logarithmic axis and must be above 0."""
        return math.isfinite(self.cost) and math.isfinite(self.quality) and self.cost > 0


def pareto_plot(
    candidates: Sequence[Candidate],
    path: Path | str,
    *,
    cost_label: str = "multiply-adds (G)",
    quality_label: str = "mask AP50",
    title: str = "",
    front: Sequence[int] | None = None,
) -> Path:
    """Cost to the right, quality upwards, a bubble per model with the area of its size, and a line along the best trade-offs.

    ``front`` are the indices of those (worked out from cost and quality where not given). Candidates without a finite cost or quality are
    left out. The front is named in ink, the others in grey as far as there is room.
    """
    best = {candidates[i].name for i in front} if front is not None else _front(candidates)
    shown = sorted((c for c in candidates if c.drawable), key=lambda c: -(c.size_mb or 0.0))  # small bubbles on top of large ones
    figure, (axes,) = new_figure(8.8, 5.6, title=title)
    axes.set(xlabel=cost_label, ylabel=quality_label)
    if not shown:
        empty(axes, "no finished trial")
        return save(figure, path)
    costs, qualities = [c.cost for c in shown], [c.quality for c in shown]
    margin = max(0.12 * (max(qualities) - min(qualities)), 0.01)
    log_axis(axes, min(costs) / 1.35, max(costs) * 1.5)
    axes.set_ylim(min(qualities) - margin, max(qualities) + margin)
    largest = max(c.size_mb or 0.0 for c in shown)
    areas = [_bubble(c.size_mb, largest) for c in shown]
    groups = list(dict.fromkeys(c.group for c in candidates))
    colours = [colour(groups.index(c.group)) for c in shown]
    faces = [to_rgba(shade, 0.85 if c.name in best else 0.35) for shade, c in zip(colours, shown, strict=True)]
    axes.scatter(costs, qualities, s=areas, c=faces, edgecolors="white", linewidths=0.8, zorder=3)
    line = sorted((c.cost, c.quality) for c in shown if c.name in best)
    axes.plot([x for x, _ in line], [y for _, y in line], color=INK, linewidth=1.1, linestyle=(0, (5, 3)), zorder=2)
    legend = _in_free_corner(_pareto_legend(axes, groups, largest), list(zip(costs, qualities, areas, strict=True)))
    labels = [_label(c, area, c.name in best) for c, area in zip(shown, areas, strict=True)]
    labels.sort(key=lambda label: (not label.required, -label.y))  # the front is named first
    figure.draw_without_rendering()
    place_labels(axes, labels, obstacles=[legend.get_window_extent()])
    return save(figure, path)


def precision_recall_plot(
    curves: Sequence[PrecisionRecall],
    path: Path | str,
    *,
    classes: Sequence[str] = (),
    point: OperatingPoint | None = None,
    title: str = "",
) -> Path:
    """The curves at IoU 0.5, one per class with its AP50, over lines of equal F1; ``point`` marks the chosen score threshold."""
    figure, (axes,) = new_figure(5.8, 5.4, title=title)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision", aspect="equal")
    if not curves:
        empty(axes, "nothing labelled")
        return save(figure, path)
    for level in (0.2, 0.4, 0.6, 0.8):
        recall = np.linspace(level / 2 + 1e-3, 1, 200)
        axes.plot(recall, level * recall / (2 * recall - level), color="#cfd6dd", linewidth=0.9, zorder=1)
        axes.text(1.01, level / (2 - level), f"F1 {level}", color=MUTED, fontsize=7, va="center")
    for number, curve in enumerate(curves):
        name = classes[curve.label] if curve.label < len(classes) else f"class {curve.label}"
        precision = np.asarray(curve.precision)
        reached = np.flatnonzero(precision > 0)
        recall, precision = np.asarray(curve.recall)[reached], precision[reached]
        axes.plot(recall, precision, color=colour(number), linewidth=2, zorder=3, label=f"{name}: AP50 {curve.average_precision:.3f}")
        axes.fill_between(recall, precision, color=colour(number), alpha=0.08, linewidth=0)
    if point is not None:
        text = f"score from {point.threshold:.2f}: F1 {point.f1:.3f}"
        axes.plot(point.recall, point.precision, "o", color=INK, markersize=7, markeredgecolor="white", zorder=4, label=text)
    axes.legend(loc="lower left", frameon=True, framealpha=0.9, edgecolor="none", fontsize=9)
    return save(figure, path)


def size_plot(
    predicted: SizeDistribution,
    truth: SizeDistribution | None,
    path: Path | str,
    *,
    title: str = "",
    size_label: str = "equivalent diameter",
) -> Path:
    """Passing curves (with the prediction's Rosin-Rammler fit and the D values) above histograms, on one logarithmic axis of size."""
    figure, (above, below) = new_figure(7.4, 6.6, rows=2, title=title, heights=[3, 2])
    sides = [side for side in (("predicted", predicted, colour(0)), ("ground truth", truth, INK)) if side[1] is not None and len(side[1])]
    known = [distribution for _, distribution, _ in sides if distribution is not None]
    if not known:
        empty(above, "no particle")
        empty(below, "")
        return save(figure, path)
    edges = log_edges(known, bins=16)
    for (name, _, shade), distribution in zip(sides, known, strict=True):
        filled = name == "predicted"
        sizes, shares = np.repeat(distribution.sizes, 2), np.concatenate([[0.0], np.repeat(np.cumsum(distribution.weights), 2)[:-1]])
        sizes, shares = np.concatenate([sizes, edges[-1:]]), np.concatenate([shares, [1.0]])
        above.plot(sizes, shares * 100, color=shade, linewidth=2, label=f"{name}, {len(distribution)} particles", zorder=3)
        heights = np.histogram(distribution.sizes, edges, weights=distribution.weights)[0] * 100
        below.stairs(heights, edges, color=shade, fill=filled, alpha=0.45 if filled else 1.0, linewidth=1.6)
    _rosin_rammler_curve(above, predicted, edges)
    _d_values(above, predicted, truth)
    above.set(ylabel=f"passing, % by {known[0].weighting}", ylim=(0, 101))
    below.set(ylabel=f"share, % by {known[0].weighting}", xlabel=f"{size_label} ({known[0].unit})")
    # Stones that carry no visible share of the whole would only stretch the axis.
    log_axis(below, min(distribution.percentile(0.2) for distribution in known) * 0.9, edges[-1] * 1.04)
    above.legend(loc="upper left", frameon=False, fontsize=9)
    return save(figure, path)


def training_plot(history: Sequence[Mapping[str, float]], path: Path | str, *, x: str = "epoch", title: str = "") -> Path:
    """Losses to the left, validation to the right, over a run's history (one mapping of metrics per epoch).

    Metrics with ``loss`` in their name are losses, ``val/...ap...`` and ``val/...iou`` go to the right; others are not drawn, nor are
    values that are missing or not finite. The best of the first validation curve is marked.
    """
    names = list(dict.fromkeys(name for row in history for name in row))
    losses = sorted((name for name in names if "loss" in name), key=lambda name: ("/" in name, name))
    quality = sorted(name for name in names if name.startswith("val/") and name not in losses and ("_ap" in name or "iou" in name))
    quality.sort(key=lambda name: name not in ("val/mask_ap50", "val/miou"))
    figure, both = new_figure(10.4, 4.3, columns=2, title=title)
    for axes, chosen, text in zip(both, (losses, quality), ("loss", "validation"), strict=True):
        axes.set(xlabel=x, ylabel=text)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        series = [(name, _series(history, name, x)) for name in chosen]
        series = [(name, points) for name, points in series if points]
        for number, (name, points) in enumerate(series):
            marker = "o" if len(points) < 15 else None
            axes.plot(*zip(*points, strict=True), color=colour(number), linewidth=1.8, marker=marker, markersize=3.5, label=name)
        if not series:
            empty(axes, f"no {text}")
        else:
            axes.legend(frameon=True, framealpha=0.85, edgecolor="none", fontsize=8)
    if quality and (points := _series(history, quality[0], x)):
        best_x, best = max(points, key=lambda point: point[1])
        both[1].plot(best_x, best, "o", color=INK, markersize=6, zorder=4)
        both[1].annotate(f"{best:.3f}", (best_x, best), (0, -14), textcoords="offset points", ha="center", fontsize=9, color=INK)
        both[1].margins(y=0.12)
    return save(figure, path)


def _front(candidates: Sequence[Candidate]) -> set[str]:
    """The names of those that no other beats in one of cost and quality without losing in the other."""
    drawn = [c for c in candidates if c.drawable]
    axes = (Objective(metric="quality", direction="max"), Objective(metric="cost", direction="min"))
    return {drawn[i].name for i in pareto_front([{"cost": c.cost, "quality": c.quality} for c in drawn], axes)}


def _bubble(size_mb: float | None, largest: float) -> float:
    """The area of a bubble, proportional to the size but never too small to see."""
    return max(_SMALLEST_BUBBLE, _LARGEST_BUBBLE * size_mb / largest) if size_mb and largest else _SMALLEST_BUBBLE


def _label(candidate: Candidate, area: float, best: bool) -> PointLabel:
    return PointLabel(text=candidate.name, x=candidate.cost, y=candidate.quality, area=area, colour=INK if best else MUTED, required=best)


def _pareto_legend(axes: Axes, groups: Sequence[str], largest: float) -> Legend:
    """Colours of the groups, the line of the front, and what a bubble's area means."""
    handles = [Line2D([], [], linestyle=(0, (5, 3)), color=INK, linewidth=1.1, label="Pareto front")]
    for number, group in enumerate(groups):
        if group:
            handles.append(Line2D([], [], linestyle="", marker="o", markersize=7, color=colour(number), label=group))
    if largest:
        size = largest / 4
        diameter = math.sqrt(_bubble(size, largest))
        ring = Line2D([], [], linestyle="", marker="o", markersize=diameter, color="none", markeredgecolor=MUTED, label=f"{size:.3g} MB")
        handles.append(ring)
    return axes.legend(
        handles=handles, loc="lower right", frameon=True, framealpha=0.9, edgecolor=GRID, fontsize=8, labelspacing=1.0, borderpad=0.9
    )


def _in_free_corner(legend: Legend, bubbles: Sequence[tuple[float, float, float]]) -> Legend:
    """The legend in the corner where it covers the fewest bubbles of (x, y, area in square points)."""
    axes = legend.axes
    figure = axes.get_figure(root=True) if axes is not None else None
    assert axes is not None
    assert figure is not None
    figure.draw_without_rendering()  # the axes find their place
    spots = axes.transData.transform([(x, y) for x, y, _ in bubbles])
    radii = [math.sqrt(area) / 2 * figure.dpi / 72 for _, _, area in bubbles]
    circles = [Bbox.from_bounds(x - r, y - r, 2 * r, 2 * r) for (x, y), r in zip(spots, radii, strict=True)]
    covered = []
    for corner in _CORNERS:
        legend.set_loc(corner)
        figure.draw_without_rendering()
        covered.append(legend.get_window_extent().count_overlaps(circles))
    legend.set_loc(_CORNERS[covered.index(min(covered))])
    return legend


def _rosin_rammler_curve(axes: Axes, predicted: SizeDistribution, edges: np.ndarray) -> None:
    law = fit_rosin_rammler(predicted)
    if law is None:
        return
    sizes = np.geomspace(edges[0], edges[-1], 200)
    text = f"Rosin-Rammler: x63.2 {law.x632:.3g} {law.unit}, n {law.n:.2f}, R² {law.r_squared:.3f}"
    axes.plot(
        sizes, [100 * law.passing(size) for size in sizes], color=colour(1), linewidth=1.3, linestyle=(0, (4, 2)), label=text, zorder=2
    )


def _d_values(axes: Axes, predicted: SizeDistribution, truth: SizeDistribution | None) -> None:
    """A small table of D10 to D90, with the errors where there is a ground truth."""
    both = truth is not None and len(truth) > 0 and len(predicted) > 0
    lines = []
    for percent, value in compare(predicted, truth if truth is not None and both else predicted).d.items():
        if value.predicted is None:
            continue
        error = f" {100 * value.relative:+6.1f} %" if both and value.relative is not None else ""
        lines.append(f"D{percent} {value.predicted:7.4g} {predicted.unit}{error}")
    frame = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none"}
    place = axes.transAxes
    axes.text(0.025, 0.72, "\n".join(lines), transform=place, va="top", family="monospace", fontsize=8.5, color=INK, bbox=frame)


def _series(history: Sequence[Mapping[str, float]], name: str, x: str) -> list[tuple[float, float]]:
    """The finite values of a metric with their place on the x axis, which is the row's number where the row does not say it."""
    return [
        (float(row.get(x, place)), float(row[name])) for place, row in enumerate(history, start=1) if math.isfinite(row.get(name, math.nan))
    ]
