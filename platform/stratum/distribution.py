"""How sizes are distributed: passing curves as a set of sieves gives them, Rosin and Rammler's law, histograms, comparisons.

Shapes: ``N`` particles. A passing curve says what share of the whole is no larger than a size; D80 is the size that 80 % of it pass.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import curve_fit

Floats = npt.NDArray[np.float64]
Weighting = Literal["volume", "area", "number"]
Unit = Literal["px", "mm"]
Value = str | int | float | bool | None
D_LEVELS = (10, 50, 80, 90)


@dataclass(frozen=True, eq=False, kw_only=True)
class SizeDistribution:
    """Sizes in ascending order and what share of the whole each carries. Empty where there is no particle."""

    sizes: Floats  # [N]
    weights: Floats  # [N], sums to 1
    unit: Unit = "px"
    weighting: Weighting = "volume"

    def __post_init__(self) -> None:
        sizes, weights = np.asarray(self.sizes, dtype=np.float64), np.asarray(self.weights, dtype=np.float64)
        if sizes.shape != weights.shape or not (np.isfinite(sizes).all() and np.isfinite(weights).all()):
            raise ValueError("sizes and weights must be finite and as many as each other")
        if len(sizes) and (sizes.min() <= 0 or weights.min() < 0 or weights.sum() <= 0):
            raise ValueError("sizes must be above 0 and weights must not be negative, nor all 0")
        order = np.argsort(sizes, kind="stable")
        object.__setattr__(self, "sizes", sizes[order])
        object.__setattr__(self, "weights", weights[order] / weights.sum() if len(weights) else weights)

    def __len__(self) -> int:
        return len(self.sizes)

    def cumulative(self) -> Floats:
        """The share that passes each size ``[N]``, 0..1; a particle itself counts half (Hazen's plotting position)."""
        return np.asarray(np.cumsum(self.weights) - self.weights / 2)

    def percentile(self, percent: float) -> float:
        """D of ``percent``: the size that this part of the whole passes, linear between particles; NaN without any particle."""
        if not 0 <= percent <= 100:
            raise ValueError(f"a percentile lies in 0..100, got {percent}")
        return float(np.interp(percent / 100, self.cumulative(), self.sizes)) if len(self) else math.nan

    def passing(self, size: float) -> float:
        """The share of the whole in particles up to ``size``, as a sieve of that opening would let pass; NaN without any particle."""
        return float(self.passing_all(np.array([size]))[0])

    def passing_all(self, sizes: Floats) -> Floats:
        """:meth:`passing` of many sizes at once."""
        if not len(self):
            return np.full(len(sizes), math.nan)
        return np.concatenate([[0.0], np.cumsum(self.weights)])[np.searchsorted(self.sizes, sizes, side="right")]

    def summary(self) -> dict[str, Value]:
        """Count, D10, D50, D80 and D90 (None without any particle), unit and weighting."""
        values: dict[str, Value] = {"count": len(self)}
        values.update({f"d{level}": _none_if_nan(self.percentile(level)) for level in D_LEVELS})
        return {**values, "unit": self.unit, "weighting": self.weighting}


@dataclass(frozen=True, kw_only=True)
class RosinRammler:
    """Rosin and Rammler's law: the share ``1 - exp(-(x / x632) ** n)`` passes size x. A large n means that sizes are alike."""

    x632: float  # the size that 63.2 % pass
    n: float
    r_squared: float  # of the passing shares: 1 is a perfect fit
    unit: Unit = "px"

    def passing(self, size: float) -> float:
        """The share that passes ``size``, 0..1."""
        return -math.expm1(-((size / self.x632) ** self.n))

    def percentile(self, percent: float) -> float:
        """The size that ``percent`` of the whole pass; infinite at 100."""
        return self.x632 * (-math.log1p(-percent / 100)) ** (1 / self.n) if percent < 100 else math.inf


def fit_rosin_rammler(distribution: SizeDistribution) -> RosinRammler | None:
    """Fits the law to the passing curve by least squares; None for fewer than three different sizes, which say nothing of its shape.

    The curve is read at 2, 4, ... 98 % passing, so that many small particles do not outweigh the few that carry most of the volume.
    """
    if len(np.unique(distribution.sizes)) < 3:
        return None
    shares = np.arange(2, 100, 2) / 100
    sizes = np.interp(shares, distribution.cumulative(), distribution.sizes)
    slope, offset = np.polyfit(np.log(sizes), np.log(-np.log1p(-shares)), 1)  # the law is a line in these coordinates: where to start
    start = (max(float(slope), 0.1), -float(offset) / max(float(slope), 0.1))
    try:
        (n, log_x), _ = curve_fit(_law, np.log(sizes), shares, p0=start, bounds=((0.01, -np.inf), (100.0, np.inf)))
    except RuntimeError:  # no optimum within scipy's number of steps
        n, log_x = start
    residual = float(((_law(np.log(sizes), n, log_x) - shares) ** 2).sum())
    total = float(((shares - shares.mean()) ** 2).sum())
    return RosinRammler(x632=math.exp(log_x), n=float(n), r_squared=1 - residual / total, unit=distribution.unit)


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """The share of the whole in each class of size: ``edges[i] <= size < edges[i + 1]``, the last edge included."""

    edges: list[float]
    shares: list[float]  # one fewer than edges
    counts: list[int]
    below: float  # the shares outside of the edges
    above: float


def histogram(distribution: SizeDistribution, *, bins: int = 12, edges: Sequence[float] | None = None) -> Histogram:
    """Shares and counts per class: between the given edges (a set of sieves), or in ``bins`` classes even in the logarithm of size."""
    borders = np.asarray(edges, dtype=np.float64) if edges is not None else log_edges([distribution], bins)
    if len(borders) < 2 or (np.diff(borders) <= 0).any():
        raise ValueError(f"a histogram needs at least two ascending edges, got {borders.tolist()}")
    sizes, weights = distribution.sizes, distribution.weights
    return Histogram(
        edges=borders.tolist(),
        shares=np.histogram(sizes, borders, weights=weights)[0].tolist(),
        counts=np.histogram(sizes, borders)[0].tolist(),
        below=float(weights[sizes < borders[0]].sum()),
        above=float(weights[sizes > borders[-1]].sum()),
    )


def log_edges(distributions: Sequence[SizeDistribution], bins: int = 12) -> Floats:
    """``bins + 1`` edges, even in the logarithm, around all sizes of the distributions (1 to 10 where there are none)."""
    sizes = np.concatenate([distribution.sizes for distribution in distributions])
    low, high = (float(sizes.min()), float(sizes.max())) if len(sizes) else (1.0, 10.0)
    return np.geomspace(low * 0.999, max(high * 1.001, low * 1.1), bins + 1)


@dataclass(frozen=True, kw_only=True)
class DError:
    """One D of the prediction beside that of the ground truth; None where a side has no particle."""

    predicted: float | None
    truth: float | None
    error: float | None  # predicted - truth
    relative: float | None  # error / truth


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How far the predicted distribution is from the true one."""

    predicted_count: int
    true_count: int
    d: dict[int, DError]  # by percent: 10, 50, 80, 90
    largest_gap: float | None  # of the two passing curves, 0..1 (the statistic of Kolmogorov and Smirnov)
    unit: Unit

    def record(self) -> dict[str, Value]:
        """The figures as one flat row."""
        row: dict[str, Value] = {"predicted_count": self.predicted_count, "true_count": self.true_count, "unit": self.unit}
        for percent, value in self.d.items():
            row.update({f"d{percent}": value.predicted, f"d{percent}_true": value.truth})
            row.update({f"d{percent}_error": value.error, f"d{percent}_relative_error": value.relative})
        return {**row, "largest_gap": self.largest_gap}


def compare(predicted: SizeDistribution, truth: SizeDistribution) -> Comparison:
    """The errors of D10, D50, D80 and D90 and the largest gap of the curves; ``ValueError`` for different units or weightings."""
    if len(predicted) and len(truth) and (predicted.unit, predicted.weighting) != (truth.unit, truth.weighting):
        raise ValueError(f"cannot compare {predicted.unit} by {predicted.weighting} with {truth.unit} by {truth.weighting}")
    gap = None
    if len(predicted) and len(truth):
        every = np.union1d(predicted.sizes, truth.sizes)
        gap = float(np.abs(predicted.passing_all(every) - truth.passing_all(every)).max())
    return Comparison(
        predicted_count=len(predicted),
        true_count=len(truth),
        d={level: _d_error(predicted.percentile(level), truth.percentile(level)) for level in D_LEVELS},
        largest_gap=gap,
        unit=truth.unit if len(truth) else predicted.unit,
    )


def _d_error(predicted: float, truth: float) -> DError:
    error = predicted - truth
    return DError(
        predicted=_none_if_nan(predicted), truth=_none_if_nan(truth), error=_none_if_nan(error), relative=_none_if_nan(error / truth)
    )


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _law(log_size: Floats, n: float, log_x: float) -> Floats:
    return -np.expm1(-np.exp(n * (log_size - log_x)))
