"""From a labelled image to the height of the slag band on a dip tube, and what each class covers.

Shapes: ``K`` classes, ``H`` and ``W`` the size of the image, ``C`` columns across the tube. Positions are ``(x, y)`` in pixels.

The ladle is raised, the tube dips through the slag and comes back with a band of another colour on its outside; the band's height along
the tube is the thickness of the slag. The band is measured in columns that run along the tube, one pixel apart; the figure is their median
and its uncertainty is how much they differ.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage, stats

from stratum.measurements import check_scale
from stratum_models.errors import UserError
from stratum_models.interface import IGNORE_INDEX, SemanticPrediction, SemanticTarget

Floats = npt.NDArray[np.float64]
Found = SemanticPrediction | SemanticTarget | npt.NDArray[np.generic]
"""What can be measured: a prediction, a labelled mask, a class map of integers ``[H, W]`` or probabilities ``[K, H, W]``."""

STEP = 0.25  # pixels between two samples along a line
SPECK = 0.1  # parts of the tube with less than this share of its largest part's area are errors
MARGIN = 0.1  # this share of a width or length is left out on each side, where edges are ragged and corners round
TURNS = 3  # times that the direction is improved by the tube's sides
MOST_LINES = 200  # across the tube, to find its direction
LEAST_PIXELS = 25  # of a class that is measured
ROUND = 1.1  # a visible tube whose longer axis is less than this many times its shorter one has no axis
TWO_EDGES = math.sqrt(2 / 12)  # standard deviation of the distance of two edges, each known to one pixel


@dataclass(frozen=True, kw_only=True)
class SlagBand:
    """The band of one image. Uncertainties are standard deviations; what ends in ``_mm`` is None without a scale."""

    height_px: float  # median over the columns
    uncertainty_px: float  # half of what the middle 68 % of the columns span, and the pixels' own size
    columns: int  # in which the band was measured
    coverage: float  # share of the tube's columns that the band reaches, 0..1
    axis_degrees: float  # the tube's direction, 0 along x, 90 along y, in 0..180
    tube_width_px: float  # median across the tube
    height_mm: float | None = None
    uncertainty_mm: float | None = None
    mm_per_px: float | None = None

    def record(self) -> dict[str, float | int | None]:
        """The fields as plain values, for a line of JSON or of a table."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class ClassArea:
    """What one class covers in one image."""

    label: str
    area_px: int
    fraction: float  # of the pixels of which something is known
    area_mm2: float | None = None

    def record(self) -> dict[str, str | float | int | None]:
        """The fields as plain values, for a line of JSON or of a table."""
        return asdict(self)


def class_areas(found: Found, classes: Sequence[str], *, mm_per_px: float | None = None) -> list[ClassArea]:
    """The area of every class, in the order of their names; pixels with ``IGNORE_INDEX`` count nowhere."""
    check_scale(mm_per_px)
    known = class_map(found)
    known = known[known != IGNORE_INDEX]
    if known.size and int(known.max()) >= len(classes):
        raise UserError(f"class {int(known.max())} appears in the class map, but only {len(classes)} classes have names: name all of them")
    counts = np.bincount(known.ravel(), minlength=len(classes))
    return [
        ClassArea(
            label=name,
            area_px=int(count),
            fraction=float(count / known.size) if known.size else 0.0,
            area_mm2=float(count) * mm_per_px**2 if mm_per_px is not None else None,
        )
        for name, count in zip(classes, counts, strict=True)
    ]


def class_map(found: Found) -> npt.NDArray[np.int64]:
    """The class of each pixel, int64 ``[H, W]``; of probabilities, the likeliest."""
    values = _values(found)
    return values.astype(np.int64) if values.ndim == 2 else values.argmax(axis=0).astype(np.int64)


def measure_slag(
    found: Found,
    *,
    tube: int,
    slag: int,
    mm_per_px: float | None = None,
    tube_diameter_mm: float | None = None,
    axis_degrees: float | None = None,
) -> SlagBand:
    """Measures the largest region of slag along the axis of the tube.

    The tube's pixels have two principal axes. The one along which the slag covers less of the tube is its axis: a band reaches from side
    to side but not from end to end, also on a tube of which less is seen in length than in width.

    Its direction is that of the line between the tube's two sides, since what ends the tube may be slanted.

    Args:
        found: classes or probabilities; with probabilities, edges are found between the pixels.
        tube: number of the tube's class, without the slag on it.
        slag: number of the slag's class.
        mm_per_px: the scale, if known.
        tube_diameter_mm: the tube's outer diameter, from which the scale follows; its uncertainty goes into that of the height.
        axis_degrees: the tube's direction, if the camera's position tells it: 0 along x, 90 along y, downwards.

    Raises:
        UserError: a class is missing, the tube has no axis, or both scales are given.
    """
    check_scale(mm_per_px)
    check_diameter(tube_diameter_mm, mm_per_px)
    classes, values = class_map(found), _values(found)
    tube_mask = _parts(_present(classes, tube, "tube"), SPECK)
    slag_mask = _parts(_present(classes, slag, "slag"), 1.0)
    along = _direction(axis_degrees) if axis_degrees is not None else _tube_axis(tube_mask, slag_mask)
    heights, coverage = _band_heights(_margin(values, classes, slag, slag_mask), tube_mask, slag_mask, along)
    widths = _tube_widths(tube_mask, along)
    height, spread = _median_and_spread(heights)
    width, width_spread = _median_and_spread(widths)
    scale = tube_diameter_mm / width if tube_diameter_mm is not None else mm_per_px
    relative = math.hypot(spread / height, width_spread / width if tube_diameter_mm is not None else 0.0)
    return SlagBand(
        height_px=height,
        uncertainty_px=spread,
        columns=len(heights),
        coverage=coverage,
        axis_degrees=math.degrees(math.atan2(along[1], along[0])) % 180,
        tube_width_px=width,
        height_mm=height * scale if scale is not None else None,
        uncertainty_mm=height * scale * relative if scale is not None else None,
        mm_per_px=scale,
    )


def _values(found: Found) -> npt.NDArray[np.generic]:
    """Classes ``[H, W]`` or probabilities ``[K, H, W]``."""
    if isinstance(found, SemanticPrediction):
        return np.asarray(found.probabilities.detach().cpu().float().numpy())
    values = np.asarray(found.mask.cpu().numpy()) if isinstance(found, SemanticTarget) else np.asarray(found)
    if values.ndim == 3 and values.dtype.kind == "f":
        return values
    if values.ndim == 2 and values.dtype.kind in "iu":
        return values
    raise UserError(f"an array of {values.dtype} and shape {values.shape} holds no classes: give integers [H, W] or floats [K, H, W]")


def check_diameter(diameter: float | None, scale: float | None) -> None:
    """Refuses a tube's diameter in mm that is no length, or that comes with a scale in mm per pixel."""
    if diameter is None:
        return
    if scale is not None:
        raise UserError("both a scale and the tube's diameter are given: give one of them")
    if not (math.isfinite(diameter) and diameter > 0):
        raise UserError(f"the tube's diameter is {diameter} mm: give a number above 0")


def _present(classes: npt.NDArray[np.int64], index: int, name: str) -> npt.NDArray[np.bool_]:
    mask: npt.NDArray[np.bool_] = classes == index
    count = int(mask.sum())
    if count < LEAST_PIXELS:
        raise UserError(
            f"the image shows no {name}: class {index} has {count} pixels, {LEAST_PIXELS} are needed; "
            f"check the class number, or leave images without {name} out"
        )
    return mask


def _parts(mask: npt.NDArray[np.bool_], least: float) -> npt.NDArray[np.bool_]:
    """A mask without the connected parts that have less than this share of the largest one's area."""
    parts = np.asarray(ndimage.label(mask, structure=np.ones((3, 3)))[0])
    areas = np.bincount(parts.ravel())
    areas[0] = 0
    kept: npt.NDArray[np.bool_] = ((areas > 0) & (areas >= least * areas.max()))[parts]
    return kept


def _points(mask: npt.NDArray[np.bool_]) -> Floats:
    """The pixels of a mask as (x, y), float ``[P, 2]``."""
    rows, columns = np.nonzero(mask)
    return np.stack([columns, rows], axis=1).astype(np.float64)


def _direction(degrees: float) -> Floats:
    if not math.isfinite(degrees):
        raise UserError(f"the tube's direction is {degrees} degrees: give a number, 90 for a tube that stands upright")
    return np.array([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])


def _tube_axis(tube: npt.NDArray[np.bool_], slag: npt.NDArray[np.bool_]) -> Floats:
    """The unit vector along the tube, see :func:`measure_slag`."""
    on_tube, on_slag = _points(tube), _points(slag)
    variances, axes = np.linalg.eigh(np.cov(on_tube.T))
    if variances[1] < ROUND**2 * variances[0]:
        raise UserError("as much of the tube is seen in length as in width: its axis is open; give axis_degrees, 90 if it stands upright")
    both = np.concatenate([on_tube, on_slag])
    reach = [(on_slag @ axis).std() / (both @ axis).std() for axis in axes.T]
    along = np.asarray(axes[:, int(np.argmin(reach))], dtype=np.float64)
    for _ in range(TURNS):
        along = _between_sides(tube, along)
    return along


def _between_sides(tube: npt.NDArray[np.bool_], along: Floats) -> Floats:
    """A direction turned to that of the points halfway between the tube's sides (Theil and Sen's line: some may lie anywhere)."""
    across = np.array([-along[1], along[0]])
    points = _points(tube)
    lines, positions = _inner(points @ along), _samples(points @ across)
    lines = lines[:: max(1, len(lines) // MOST_LINES)]
    inside = _on_lines(np.where(tube, 1.0, -1.0), lines, along, positions, across) >= 0
    hit = inside.any(axis=1)
    if hit.sum() < 2:
        return along
    first, last = _ends(inside[hit])
    slope = stats.theilslopes((positions[first] + positions[last]) / 2, lines[hit]).slope
    turned: Floats = along + slope * across
    turned /= np.linalg.norm(turned)
    return turned


def _margin(values: npt.NDArray[np.generic], classes: npt.NDArray[np.int64], index: int, region: npt.NDArray[np.bool_]) -> Floats:
    """How far the slag is ahead of all other classes, float ``[H, W]``: above 0 on it, and on its largest region alone."""
    if values.ndim == 2:
        return np.where(region, 1.0, -1.0)
    others = np.delete(values, index, axis=0).max(axis=0)
    ahead: Floats = (values[index] - others).astype(np.float64)
    ahead[(classes == index) & ~region] = -1.0
    return ahead


def _band_heights(margin: Floats, tube: npt.NDArray[np.bool_], slag: npt.NDArray[np.bool_], along: Floats) -> tuple[Floats, float]:
    """The band's height in the tube's columns that it reaches, float ``[C]``, and the share of columns that it reaches."""
    across = np.array([-along[1], along[0]])
    on_tube, on_slag = _points(tube), _points(slag)
    columns = _inner(on_tube @ across)
    positions = _samples(on_slag @ along)
    inside = _on_lines(margin, columns, across, positions, along) >= 0
    heights = _extents(inside)
    reached = heights > 0
    if not reached.any():
        raise UserError("no slag lies in line with the tube: the two classes are apart; check their numbers, or give axis_degrees")
    return heights[reached], float(reached.mean())


def _tube_widths(tube: npt.NDArray[np.bool_], along: Floats) -> Floats:
    """The tube's widths along its largest visible part, float ``[R]``."""
    across = np.array([-along[1], along[0]])
    part = _parts(tube, 1.0)
    points = _points(part)
    inside = _on_lines(np.where(part, 1.0, -1.0), _inner(points @ along), along, _samples(points @ across), across) >= 0
    widths = _extents(inside)
    return widths[widths > 0]


def _inner(projected: Floats) -> Floats:
    """Positions one pixel apart over the pixels' range without its margins, at least one."""
    low, high = float(projected.min()) - 0.5, float(projected.max()) + 0.5
    edge = MARGIN * (high - low)
    count = max(1, round(high - low - 2 * edge))
    return np.linspace(low + edge, high - edge, 2 * count + 1)[1::2]


def _samples(projected: Floats) -> Floats:
    """Positions ``STEP`` apart that hold all pixels, corners included; none on the border of two pixels of an upright tube."""
    return np.arange(float(projected.min()) - 2 + STEP / 2, float(projected.max()) + 2, STEP)


def _on_lines(field: Floats, offsets: Floats, across: Floats, positions: Floats, along: Floats) -> Floats:
    """A field ``[H, W]`` between its pixels (linear; -1 outside), on one line per offset: ``[offsets, positions]``."""
    points = offsets[:, None, None] * across + positions[None, :, None] * along  # [offsets, positions, (x, y)]
    padded = np.pad(field, 1, constant_values=-1.0)  # beyond the border there is nothing
    return np.asarray(ndimage.map_coordinates(padded, [points[..., 1] + 1, points[..., 0] + 1], order=1, mode="constant", cval=-1.0))


def _extents(inside: npt.NDArray[np.bool_]) -> Floats:
    """From the first to the last sample inside, in pixels, for each line ``[lines, samples]``; 0 where there is none."""
    first, last = _ends(inside)
    lengths: Floats = np.where(inside.any(axis=1), (last - first + 1) * STEP, 0.0)
    return lengths


def _ends(inside: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The first and the last sample inside, for each line ``[lines, samples]`` that has one."""
    return inside.argmax(axis=1), inside.shape[1] - 1 - inside[:, ::-1].argmax(axis=1)


def _median_and_spread(lengths: Floats) -> tuple[float, float]:
    """The median, and half of the span of the middle 68 % together with what the pixels themselves leave open."""
    low, middle, high = np.percentile(lengths, [15.87, 50.0, 84.13])
    return float(middle), math.hypot((float(high) - float(low)) / 2, TWO_EDGES)
