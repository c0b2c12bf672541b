"""From instances to particle sizes: what each stone measures, and how the sizes are distributed, as a set of sieves would say.

Shapes: ``N`` particles, ``H`` and ``W`` the size of the image. Lengths are in pixels, and in millimetres where the scale is known.

An image shows areas and a sieve weighs: a distribution is therefore weighted by volume unless told otherwise, taking each particle for a
sphere of the same projected area (volume as the cube of the equivalent diameter, one density for all). ``weighting="area"`` is what the
eye sees; ``"number"`` counts every particle once. Particles that the image's border cuts are measured as far as they are seen and marked.
"""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.spatial import ConvexHull

from stratum.distribution import (
    Comparison,
    Floats,
    Histogram,
    RosinRammler,
    SizeDistribution,
    Unit,
    Value,
    Weighting,
    compare,
    fit_rosin_rammler,
    histogram,
    log_edges,
)
from stratum_models.errors import UserError
from stratum_models.interface import InstancePrediction, InstanceTarget

Measure = Literal["equivalent_diameter", "feret_max", "feret_min"]

__all__ = [  # sizes and what is made of them are asked for here
    "Comparison",
    "Histogram",
    "Measure",
    "Particle",
    "RosinRammler",
    "SizeDistribution",
    "Weighting",
    "check_scale",
    "compare",
    "feret_diameters",
    "fit_rosin_rammler",
    "histogram",
    "log_edges",
    "measure_instances",
    "particles_csv",
    "size_distribution",
]


@dataclass(frozen=True, kw_only=True)
class Particle:
    """One particle of one image. Lengths end in ``_px`` or ``_mm``; those in millimetres are None without a scale."""

    image: str
    index: int  # its place among the instances of the image
    label: str
    score: float | None  # None for a labelled particle
    x_px: float  # centroid, the centre of the first pixel being (0.5, 0.5)
    y_px: float
    area_px: int
    equivalent_diameter_px: float  # of the disc of the same area
    feret_max_px: float  # the largest and the smallest distance of two parallel lines that hold the particle between them
    feret_min_px: float
    touches_border: bool  # cut by the image's border: it may be larger than it looks
    area_mm2: float | None = None
    equivalent_diameter_mm: float | None = None
    feret_max_mm: float | None = None
    feret_min_mm: float | None = None

    def record(self) -> dict[str, Value]:
        """The fields as plain values, for a line of JSON or of a table."""
        return asdict(self)


def measure_instances(
    found: InstancePrediction | InstanceTarget,
    *,
    image: str = "",
    classes: Sequence[str] = (),
    score_threshold: float = 0.0,
    mm_per_px: float | None = None,
) -> list[Particle]:
    """Measures what was predicted (from the score threshold up) or labelled (without crowds: they are no single particles).

    An empty mask is no particle and is left out.
    """
    check_scale(mm_per_px)
    if isinstance(found, InstanceTarget):
        kept, scores = ~found.crowd.bool(), None
    else:
        kept, scores = found.scores >= score_threshold, found.scores.tolist()
    particles = []
    for index in kept.nonzero()[:, 0].tolist():
        mask, label = found.masks[index].cpu().numpy().astype(bool, copy=False), int(found.labels[index])
        name = classes[label] if label < len(classes) else str(label)
        if mask.any():
            particles.append(_particle(mask, image, index, name, scores[index] if scores is not None else None, mm_per_px))
    return particles


def check_scale(mm_per_px: float | None) -> None:
    """Refuses a scale that is no length."""
    if mm_per_px is not None and not (math.isfinite(mm_per_px) and mm_per_px > 0):
        raise UserError(f"the scale is {mm_per_px} mm per pixel: give a number above 0, or none to measure in pixels")


def particles_csv(particles: Iterable[Particle]) -> str:
    """A table with a header and one line per particle; unknown values are empty."""
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=[field.name for field in fields(Particle)], lineterminator="\n")
    table.writeheader()
    table.writerows(particle.record() for particle in particles)
    return text.getvalue()


def size_distribution(
    particles: Sequence[Particle], *, size: Measure = "equivalent_diameter", weighting: Weighting = "volume", with_border: bool = True
) -> SizeDistribution:
    """The distribution of one measure over particles of any number of images, in millimetres where all of them have a scale.

    ``with_border=False`` leaves out what the border cuts. That takes large particles away more often than small ones, as keeping them
    makes some look smaller; between a prediction and its ground truth either is fair.
    """
    chosen = [particle for particle in particles if with_border or not particle.touches_border]
    unit: Unit = "mm" if chosen and all(particle.area_mm2 is not None for particle in chosen) else "px"
    sizes = np.array([getattr(particle, f"{size}_{unit}") for particle in chosen], dtype=np.float64)
    diameters = np.array([getattr(particle, f"equivalent_diameter_{unit}") for particle in chosen], dtype=np.float64)
    return SizeDistribution(sizes=sizes, weights=diameters ** _POWERS[weighting], unit=unit, weighting=weighting)


_POWERS: dict[Weighting, int] = {"volume": 3, "area": 2, "number": 0}


def _particle(mask: npt.NDArray[np.bool_], image: str, index: int, label: str, score: float | None, mm_per_px: float | None) -> Particle:
    filled_rows, filled_columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    (top, bottom), (left, right) = filled_rows[[0, -1]], filled_columns[[0, -1]]
    crop = mask[top : bottom + 1, left : right + 1]  # a stone is small beside the image
    rows, columns = np.nonzero(crop)
    area = len(rows)
    diameter = 2 * math.sqrt(area / math.pi)
    longest, shortest = feret_diameters(crop)
    scale = mm_per_px
    return Particle(
        image=image,
        index=index,
        label=label,
        score=score,
        x_px=float(left + columns.mean()) + 0.5,
        y_px=float(top + rows.mean()) + 0.5,
        area_px=area,
        equivalent_diameter_px=diameter,
        feret_max_px=longest,
        feret_min_px=shortest,
        touches_border=bool(top == 0 or left == 0 or bottom == mask.shape[0] - 1 or right == mask.shape[1] - 1),
        area_mm2=area * scale**2 if scale is not None else None,
        equivalent_diameter_mm=diameter * scale if scale is not None else None,
        feret_max_mm=longest * scale if scale is not None else None,
        feret_min_mm=shortest * scale if scale is not None else None,
    )


def feret_diameters(mask: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """The largest and smallest caliper, in pixels, of a mask ``[H, W]`` that is not empty.

    Measured on the convex hull of the middles of the pixels' outer sides: their corners would add up to 0.7 pixels.
    """
    points = _extremes(mask)
    hull = points[ConvexHull(points).vertices]
    gaps = hull[:, None] - hull[None]
    sides = np.roll(hull, -1, axis=0) - hull
    normals = np.stack([-sides[:, 1], sides[:, 0]], axis=1) / np.linalg.norm(sides, axis=1, keepdims=True)
    across = normals @ hull.T  # [sides, vertices]: the smallest caliper lies along a side of the hull
    return float(np.sqrt((gaps**2).sum(axis=2).max())), float((across.max(axis=1) - across.min(axis=1)).min())


def _extremes(mask: npt.NDArray[np.bool_]) -> Floats:
    """The middles of the outer sides of the first and last pixel of every row and column, as (x, y) ``[P, 2]``."""
    ends = []
    for lines, swap in ((mask, False), (mask.T, True)):
        filled = np.flatnonzero(lines.any(axis=1))
        first = lines[filled].argmax(axis=1) - 0.5
        last = lines.shape[1] - 1 - lines[filled][:, ::-1].argmax(axis=1) + 0.5
        for along in (first, last):
            ends.append(np.stack([filled, along] if swap else [along, filled], axis=1).astype(np.float64))
    return np.concatenate(ends)
