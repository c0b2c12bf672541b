"""Names beside points without clutter: each goes where it covers no other name and no bubble, or stays away."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox

from stratum.report.style import MUTED

_DIRECTIONS = (0, 45, -45, 90, -90, 135, -135, 180)  # degrees; right of the point first
_DISTANCES = (6, 14, 26, 40, 56)  # points beyond the bubble's edge


@dataclass(frozen=True, kw_only=True)
class PointLabel:
    """A name for the point (x, y) of the data; ``area`` is that of its bubble as matplotlib counts it: the square of its
    diameter in points. Required names are drawn in any case."""

    text: str
    x: float
    y: float
    area: float = 0.0
    colour: str = MUTED
    required: bool = False


@dataclass(kw_only=True)
class _Room:
    """What is taken, in the canvas' pixels."""

    inside: Bbox
    taken: list[Bbox] = field(default_factory=list)

    def overlap(self, box: Bbox) -> float:
        """The area that the box shares with what is taken, and twice what hangs out of the axes."""
        out = box.width * box.height - _shared(box, self.inside)
        return 2 * out + sum(_shared(box, other) for other in self.taken)


def place_labels(axes: Axes, labels: Sequence[PointLabel], *, obstacles: Sequence[Bbox] = ()) -> int:
    """Writes the names, in the order given, where there is room; a name far from its point gets a thin line. Returns how many it wrote.

    Limits and scales of the axes must be final. ``obstacles`` are boxes in pixels of the canvas to keep clear, such as a legend's.
    """
    figure = axes.get_figure(root=True)
    if figure is None or not labels:
        return 0
    figure.draw_without_rendering()  # settles the layout, and with it where the data lie on the canvas
    pixels = figure.dpi / 72
    centres = [tuple(axes.transData.transform((label.x, label.y)).tolist()) for label in labels]
    radii = [math.sqrt(label.area) / 2 * pixels for label in labels]
    bubbles = [Bbox.from_extents(x - r * 0.8, y - r * 0.8, x + r * 0.8, y + r * 0.8) for (x, y), r in zip(centres, radii, strict=True)]
    room = _Room(inside=axes.get_window_extent(), taken=[*obstacles, *bubbles])
    written = 0
    for label, centre, radius in zip(labels, centres, radii, strict=True):
        width, height = _extent(axes, label.text)
        spots = [(room.overlap(box), spot, box) for spot, box in _spots(centre, radius, width, height, pixels)]
        overlap, (x, y, distance), box = min(spots, key=lambda spot: spot[0])  # the first of equals: the nearest
        if overlap > 0 and not label.required:
            continue
        room.taken.append(box)
        written += 1
        _write(axes, label, ((x - centre[0]) / pixels, (y - centre[1]) / pixels), line=distance > _DISTANCES[1])
    return written


def _spots(
    centre: Sequence[float], radius: float, width: float, height: float, pixels: float
) -> Iterator[tuple[tuple[float, float, float], Bbox]]:
    """Middles of a text of this extent around a bubble, nearest first, with the box that it would fill."""
    for distance in _DISTANCES:
        for degrees in _DIRECTIONS:
            dx, dy = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            reach = radius + distance * pixels
            x, y = centre[0] + dx * (reach + width / 2), centre[1] + dy * (reach + height / 2)
            yield (x, y, distance), Bbox.from_extents(x - width / 2 - 2, y - height / 2 - 1, x + width / 2 + 2, y + height / 2 + 1)


def _write(axes: Axes, label: PointLabel, offset: tuple[float, float], *, line: bool) -> None:
    axes.annotate(
        label.text,
        (label.x, label.y),
        offset,
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=8,
        color=label.colour,
        zorder=5,
        arrowprops={"arrowstyle": "-", "color": label.colour, "linewidth": 0.6, "alpha": 0.7, "shrinkB": 0} if line else None,
    )


def _extent(axes: Axes, text: str) -> tuple[float, float]:
    """Width and height of a name in pixels."""
    probe = axes.text(0, 0, text, fontsize=8)
    canvas = probe.get_figure(root=True).canvas  # type: ignore[union-attr]
    assert isinstance(canvas, FigureCanvasAgg)
    box = probe.get_window_extent(canvas.get_renderer())  # type: ignore[no-untyped-call]
    probe.remove()
    return box.width, box.height


def _shared(one: Bbox, other: Bbox) -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return width * height if width > 0 and height > 0 else 0.0
