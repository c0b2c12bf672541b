import contextlib
import csv
import io
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from scipy.stats import ks_2samp
from skimage.measure import regionprops

from stratum.measurements import (
    Particle,
    RosinRammler,
    SizeDistribution,
    compare,
    feret_diameters,
    fit_rosin_rammler,
    histogram,
    log_edges,
    measure_instances,
    particles_csv,
    size_distribution,
)
from stratum_models.errors import UserError
from stratum_models.interface import InstancePrediction, InstanceTarget

# Hypothesis: no deadlines (no clocks in tests), few examples (the suite is short of time).
FEW = settings(deadline=None, max_examples=40)
SIZES = st.lists(st.floats(0.5, 500), min_size=1, max_size=40)


def grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    return np.mgrid[0:height, 0:width] + 0.5


def disc(radius: float, size: int, cx: float, cy: float) -> torch.Tensor:
    y, x = grid(size, size)
    return torch.from_numpy((x - cx) ** 2 + (y - cy) ** 2 <= radius**2)


def turned(a: float, b: float, degrees: float, shape: str, size: int = 160) -> np.ndarray:
    """An ellipse of half axes a, b, or a rectangle of half sides a, b, turned about the centre of the image."""
    y, x = grid(size, size) - size / 2
    angle = math.radians(degrees)
    u, v = x * math.cos(angle) + y * math.sin(angle), -x * math.sin(angle) + y * math.cos(angle)
    return (u / a) ** 2 + (v / b) ** 2 <= 1 if shape == "ellipse" else (abs(u) <= a) & (abs(v) <= b)


def measure(masks: torch.Tensor, *, image: str = "", mm_per_px: float | None = None) -> list[Particle]:
    """The particles of labelled masks of one class."""
    count = len(masks)
    target = InstanceTarget(
        boxes=torch.zeros(count, 4),
        labels=torch.zeros(count, dtype=torch.int64),
        masks=masks,
        crowd=torch.zeros(count, dtype=torch.bool),
    )
    return measure_instances(target, image=image, classes=("ore",), mm_per_px=mm_per_px)


def predicted(masks: torch.Tensor, scores: list[float]) -> InstancePrediction:
    """Predictions of the classes 0, 1, ... in turn."""
    return InstancePrediction(boxes=torch.zeros(len(masks), 4), labels=torch.arange(len(masks)), masks=masks, scores=torch.tensor(scores))


def by_number(sizes: list[float] | np.ndarray, **options: str) -> SizeDistribution:
    values = np.asarray(sizes, dtype=np.float64)
    return SizeDistribution(sizes=values, weights=np.ones(len(values)), weighting="number", **options)


def blob(seed: int, size: int = 48) -> np.ndarray:
    """A random connected region that is not convex."""
    g = np.random.default_rng(seed)
    y, x = grid(size, size)
    mask = np.zeros((size, size), dtype=bool)
    cx, cy = g.uniform(12, size - 12, 2)
    for _ in range(5):
        rx, ry = g.uniform(2, 10, 2)
        mask |= ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1
        cx, cy = np.clip(cx + g.uniform(-4, 4), 6, size - 6), np.clip(cy + g.uniform(-4, 4), 6, size - 6)
    return mask


def test_a_disc_measures_its_diameter() -> None:
    for radius in (4.0, 15.3, 60.0):
        (particle,) = measure(disc(radius, 160, 80.2, 75.6)[None])
        assert particle.equivalent_diameter_px == pytest.approx(2 * radius, rel=0.03)
        assert particle.feret_max_px == pytest.approx(2 * radius, abs=1.0)
        assert particle.feret_min_px == pytest.approx(2 * radius, abs=1.0)
        assert (particle.x_px, particle.y_px) == pytest.approx((80.2, 75.6), abs=0.3)
        assert not particle.touches_border


@pytest.mark.parametrize("degrees", [0, 17, 45, 90, 133])
def test_ellipses_and_rectangles_at_any_angle(degrees: float) -> None:
    longest, shortest = feret_diameters(turned(60, 20, degrees, "ellipse"))
    assert (longest, shortest) == pytest.approx((120, 40), abs=1.2)
    longest, shortest = feret_diameters(turned(55, 18, degrees, "rectangle"))
    assert (longest, shortest) == pytest.approx((2 * math.hypot(55, 18), 36), abs=1.5)


def test_upright_rectangles_are_exact() -> None:
    mask = torch.zeros(1, 30, 40, dtype=torch.bool)
    mask[0, 5:17, 3:34] = True
    (particle,) = measure(mask)
    assert particle.area_px == 12 * 31
    assert particle.feret_min_px == pytest.approx(12)
    assert (particle.x_px, particle.y_px) == pytest.approx((18.5, 11.0))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_the_smallest_particles_have_a_size(shape: tuple[int, int]) -> None:
    longest, shortest = feret_diameters(np.ones(shape, dtype=bool))
    assert max(shape) <= longest <= math.hypot(*shape)
    assert 0 < shortest <= min(shape) <= longest


@pytest.mark.parametrize("seed", range(12))
def test_region_properties_agree_with_scikit_image(seed: int) -> None:
    mask = blob(seed)
    (particle,) = measure(torch.from_numpy(mask)[None])
    (region,) = regionprops(mask.astype(np.uint8))
    assert particle.area_px == region.area
    assert particle.equivalent_diameter_px == pytest.approx(region.equivalent_diameter_area)
    assert (particle.y_px - 0.5, particle.x_px - 0.5) == pytest.approx(region.centroid)
    # scikit-image first fills the convex hull with whole pixels, which adds up to one.
    assert region.feret_diameter_max - 1 <= particle.feret_max_px <= region.feret_diameter_max + 1e-9


@pytest.mark.parametrize("seed", range(6))
def test_calipers_agree_with_turning_the_particle(seed: int) -> None:
    mask = blob(seed)
    rows, columns = np.nonzero(mask)
    points = np.concatenate([np.stack([columns + dx, rows + dy], 1) for dx, dy in ((0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5))])
    angles = np.linspace(0, math.pi, 3000)
    widths = np.ptp(points @ np.stack([np.cos(angles), np.sin(angles)]), axis=0)
    assert feret_diameters(mask) == pytest.approx((widths.max(), widths.min()), abs=0.02)


@FEW
@given(st.integers(0, 10_000), st.integers(0, 3))
def test_calipers_do_not_change_with_quarter_turns_mirrors_and_place(seed: int, turns: int) -> None:
    mask = blob(seed % 50)
    moved = np.pad(np.rot90(mask[::-1], turns), ((seed % 7, 2), (1, seed % 5)))
    assert feret_diameters(moved) == pytest.approx(feret_diameters(mask), abs=1e-9)


def test_a_scale_gives_millimetres_and_its_absence_none() -> None:
    masks = torch.stack([disc(9, 64, 30, 30), disc(5, 64, 10, 50)])
    for plain, scaled in zip(measure(masks), measure(masks, mm_per_px=0.25), strict=True):
        assert plain.area_mm2 is None
        assert plain.feret_max_mm is None
        assert scaled.area_mm2 == pytest.approx(plain.area_px / 16)
        assert scaled.equivalent_diameter_mm == pytest.approx(plain.equivalent_diameter_px / 4)
        assert scaled.feret_max_mm == pytest.approx(plain.feret_max_px / 4)
        assert scaled.feret_min_mm == pytest.approx(plain.feret_min_px / 4)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_that_is_no_length_is_refused(scale: float) -> None:
    with pytest.raises(UserError, match="mm per pixel"):
        measure(torch.zeros(0, 4, 4, dtype=torch.bool), mm_per_px=scale)


@pytest.mark.parametrize(("side", "cut"), [("top", True), ("bottom", True), ("left", True), ("right", True), ("none", False)])
def test_particles_at_the_border_are_marked(side: str, cut: bool) -> None:
    mask = torch.zeros(1, 20, 30, dtype=torch.bool)
    mask[0, 8:12, 8:12] = True
    row, column = {"top": (0, 9), "bottom": (19, 9), "left": (9, 0), "right": (9, 29), "none": (9, 9)}[side]
    mask[0, row, column] = True
    assert measure(mask)[0].touches_border is cut


def test_empty_masks_are_no_particles_and_keep_their_place() -> None:
    masks = torch.stack([disc(5, 32, 16, 16), torch.zeros(32, 32, dtype=torch.bool), disc(3, 32, 16, 16)])
    particles = measure_instances(predicted(masks, [0.9, 0.8, 0.5]), classes=("a", "b", "c"), image="x.png")
    assert [(p.index, p.label, p.score, p.image) for p in particles] == [
        (0, "a", pytest.approx(0.9), "x.png"),
        (2, "c", pytest.approx(0.5), "x.png"),
    ]
    assert measure(masks[:0]) == []


def test_predictions_below_the_threshold_and_crowds_are_not_measured() -> None:
    masks = torch.stack([disc(5, 32, 16, 16), disc(6, 32, 16, 16), disc(7, 32, 16, 16)])
    boxes, labels = torch.zeros(3, 4), torch.tensor([0, 1, 7])
    prediction = predicted(masks, [0.9, 0.5, 0.1])
    target = InstanceTarget(boxes=boxes, labels=labels, masks=masks, crowd=torch.tensor([False, True, False]))
    found = measure_instances(prediction, classes=("ore", "belt"), score_threshold=0.5, image="a", mm_per_px=2.0)
    assert [(p.index, p.label, p.image) for p in found] == [(0, "ore", "a"), (1, "belt", "a")]
    assert [p.score for p in found] == [pytest.approx(0.9), 0.5]
    assert [p.area_px for p in found] == [int(mask.sum()) for mask in masks[:2]]
    assert [(p.index, p.label, p.score) for p in measure_instances(target, classes=("ore",))] == [(0, "ore", None), (2, "7", None)]


def test_records_go_through_json_and_csv() -> None:
    masks = torch.stack([disc(5, 32, 16, 16), disc(7, 32, 16, 16)])
    particles = measure_instances(predicted(masks, [1.0, 0.5]), classes=("ore", 'od"d, name'))
    assert [json.loads(json.dumps(p.record())) for p in particles] == [p.record() for p in particles]
    rows = list(csv.DictReader(io.StringIO(particles_csv(particles))))
    assert [row["label"] for row in rows] == ["ore", 'od"d, name']
    assert float(rows[1]["feret_max_px"]) == particles[1].feret_max_px
    assert rows[0]["area_mm2"] == ""
    assert list(csv.DictReader(io.StringIO(particles_csv([])))) == []


def test_weights_are_those_of_a_sieve() -> None:
    """One large disc among 27 of a third of its diameter: half of the volume, a quarter of the area, 1/28 of the number."""
    masks = torch.stack([disc(30, 80, 40, 40)] + [disc(10, 80, 40, 40)] * 27)
    particles = measure(masks)
    for weighting, share in (("volume", 27 / 54), ("area", 27 / 36), ("number", 27 / 28)):
        distribution = size_distribution(particles, weighting=weighting)  # type: ignore[arg-type]
        assert distribution.passing(25) == pytest.approx(share, abs=0.01)
        assert distribution.passing(1) == 0
        assert distribution.passing(100) == pytest.approx(1)
        assert distribution.weighting == weighting


def test_the_measure_and_the_border_can_be_chosen_and_the_unit_follows() -> None:
    masks = torch.stack([torch.from_numpy(turned(30, 9, 20, "ellipse")), torch.from_numpy(turned(200, 9, 20, "ellipse"))])
    particles = measure(masks, mm_per_px=2.0)
    assert size_distribution(particles, size="feret_min").sizes == pytest.approx(sorted(p.feret_min_mm for p in particles))
    inner = size_distribution(particles, size="feret_max", with_border=False)
    assert (inner.unit, inner.sizes.tolist()) == ("mm", [particles[0].feret_max_mm])
    assert size_distribution(measure(masks)).unit == "px"
    assert size_distribution([*particles, *measure(masks)]).unit == "px"  # one without a scale: pixels for all


@FEW
@given(SIZES, st.sampled_from([10, 37.5, 50, 80, 90]))
def test_percentiles_by_number_are_numpys(sizes: list[float], percent: float) -> None:
    assert by_number(sizes).percentile(percent) == pytest.approx(np.quantile(sizes, percent / 100, method="hazen"))


@FEW
@given(SIZES, st.floats(0.01, 100), st.randoms(use_true_random=False))
def test_percentiles_follow_scale_and_not_order(sizes: list[float], factor: float, random) -> None:
    values = np.array(sizes)
    one = SizeDistribution(sizes=values, weights=values**3)
    shuffled = np.array(random.sample(sizes, len(sizes))) * factor
    other = SizeDistribution(sizes=shuffled, weights=shuffled**3)
    levels = [one.percentile(p) for p in (0, 10, 50, 80, 90, 100)]
    assert levels == sorted(levels)
    assert levels[0] == values.min()
    assert levels[-1] == values.max()
    assert [other.percentile(p) for p in (0, 10, 50, 80, 90, 100)] == pytest.approx([factor * level for level in levels])


@FEW
@given(SIZES)
def test_passing_is_a_plain_sum(sizes: list[float]) -> None:
    values = np.array(sizes)
    distribution = SizeDistribution(sizes=values, weights=values**2)
    for at in (*sizes, 0.1, 77.7, 1000.0):
        slow = sum(size**2 for size in sizes if size <= at) / sum(size**2 for size in sizes)
        assert distribution.passing(at) == pytest.approx(slow, abs=1e-12)


def test_no_particle_has_no_size() -> None:
    empty = size_distribution([])
    assert math.isnan(empty.percentile(50))
    assert math.isnan(empty.passing(3))
    assert empty.summary() == {"count": 0, "d10": None, "d50": None, "d80": None, "d90": None, "unit": "px", "weighting": "volume"}
    assert fit_rosin_rammler(empty) is None
    assert sum(histogram(empty).counts) == 0
    record = compare(empty, by_number([1, 2, 3])).record()
    assert (record["predicted_count"], record["d50"], record["d50_true"], record["d50_error"], record["largest_gap"]) == (
        0,
        None,
        2.0,
        None,
        None,
    )
    assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize(
    ("sizes", "weights"), [([1, 2], [1]), ([0, 1], [1, 1]), ([1, math.nan], [1, 1]), ([1, 2], [-1, 2]), ([1, 2], [0, 0])]
)
def test_impossible_distributions_are_refused(sizes: list[float], weights: list[float]) -> None:
    with pytest.raises(ValueError, match="must"):
        SizeDistribution(sizes=np.array(sizes, dtype=float), weights=np.array(weights, dtype=float))
    with pytest.raises(ValueError, match=r"0\.\.100"):
        by_number([1.0]).percentile(101)


@pytest.mark.parametrize(("x632", "n"), [(40.0, 0.8), (12.5, 1.5), (300.0, 4.0)])
def test_a_rosin_rammler_sample_gives_its_parameters_back(x632: float, n: float) -> None:
    fit = fit_rosin_rammler(by_number(x632 * np.random.default_rng(3).weibull(n, 4000)))
    assert fit is not None
    assert (fit.x632, fit.n) == pytest.approx((x632, n), rel=0.06)
    assert fit.r_squared > 0.998


def test_an_exact_rosin_rammler_curve_weighted_by_volume_is_found_exactly() -> None:
    law = RosinRammler(x632=50, n=1.3, r_squared=1)
    edges = np.geomspace(0.05, 800, 4001)
    shares = np.diff([law.passing(edge) for edge in edges])
    fit = fit_rosin_rammler(SizeDistribution(sizes=np.sqrt(edges[1:] * edges[:-1]), weights=shares))
    assert fit is not None
    assert (fit.x632, fit.n, fit.r_squared) == pytest.approx((50, 1.3, 1), rel=2e-3)


def test_the_law_is_its_own_inverse() -> None:
    law = RosinRammler(x632=20, n=2.5, r_squared=1)
    assert law.passing(20) == pytest.approx(1 - 1 / math.e)
    assert law.percentile(100 * (1 - 1 / math.e)) == pytest.approx(20)
    assert [100 * law.passing(law.percentile(p)) for p in (1, 50, 99.9)] == pytest.approx([1, 50, 99.9])
    assert law.percentile(100) == math.inf


def test_too_few_sizes_have_no_law_and_odd_ones_a_poor_fit() -> None:
    assert fit_rosin_rammler(by_number([3, 3, 5, 5])) is None
    two_kinds = fit_rosin_rammler(by_number([1.0] * 50 + [1.01] + [100.0] * 50))
    alike = fit_rosin_rammler(by_number(np.random.default_rng(0).normal(50, 2, 300)))
    assert two_kinds is not None
    assert alike is not None
    assert two_kinds.r_squared < 0.95 < alike.r_squared
    assert alike.n > 10


@FEW
@given(SIZES.filter(lambda sizes: len(set(sizes)) >= 3))
def test_a_fit_never_fails(sizes: list[float]) -> None:
    fit = fit_rosin_rammler(SizeDistribution(sizes=np.array(sizes), weights=np.array(sizes) ** 3))
    assert fit is not None
    assert fit.n > 0
    assert fit.x632 > 0
    assert math.isfinite(fit.r_squared)


@FEW
@given(SIZES)
def test_a_histogram_loses_nothing(sizes: list[float]) -> None:
    distribution = by_number(sizes)
    own = histogram(distribution, bins=7)
    assert sum(own.counts) == len(sizes)
    assert sum(own.shares) == pytest.approx(1)
    assert len(own.edges) == 8
    sieves = histogram(distribution, edges=[2, 8, 32, 128])
    assert sieves.below + sum(sieves.shares) + sieves.above == pytest.approx(1)
    assert sieves.counts == [sum(a <= s < b or s == b == 128 for s in sizes) for a, b in ((2, 8), (8, 32), (32, 128))]


def test_edges_must_ascend() -> None:
    with pytest.raises(ValueError, match="ascending"):
        histogram(by_number([1, 2]), edges=[3, 3])
    assert len(log_edges([by_number([5.0])], bins=4)) == 5


def test_a_comparison_names_every_error() -> None:
    truth = by_number(np.linspace(10, 110, 201))
    result = compare(by_number(truth.sizes * 1.1), truth)
    assert (result.predicted_count, result.true_count) == (201, 201)
    for percent, error in result.d.items():
        assert error.relative == pytest.approx(0.1)
        assert error.error == pytest.approx(0.1 * truth.percentile(percent))
    same = compare(truth, truth)
    assert same.largest_gap == 0
    assert same.d[50].error == 0
    apart = compare(by_number([1, 2]), by_number([3, 4]))
    assert apart.largest_gap == pytest.approx(1)
    with pytest.raises(ValueError, match="cannot compare mm by number with px by number"):
        compare(by_number([1.0], unit="mm"), by_number([1.0]))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of its p-value, which is not asked for
@FEW
@given(SIZES, SIZES)
def test_the_largest_gap_is_that_of_kolmogorov_and_smirnov(one: list[float], other: list[float]) -> None:
    gap = compare(by_number(one), by_number(other)).largest_gap
    assert gap == pytest.approx(ks_2samp(one, other, method="asymp").statistic, abs=1e-9)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' decode under numpy 2
def test_real_stones_have_plausible_sizes(shared) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(shared / "data" / "ore_belt" / "val.json"))
    particles = []
    for image_id in coco.getImgIds():
        marks = [a for a in coco.loadAnns(coco.getAnnIds(image_id)) if a["category_id"] != 1]
        masks = [torch.from_numpy(coco.annToMask(mark)).bool() for mark in marks]
        particles += measure(torch.stack(masks), image=str(image_id)) if masks else []
    assert len(particles) > 300
    for particle in particles:
        assert particle.feret_min_px <= particle.equivalent_diameter_px * 1.1
        assert particle.equivalent_diameter_px <= particle.feret_max_px * 1.1
    by_volume, by_count = size_distribution(particles), size_distribution(particles, weighting="number")
    assert by_count.percentile(50) < by_volume.percentile(50) < 250
    fit = fit_rosin_rammler(by_volume)
    assert fit is not None
    assert fit.r_squared > 0.9
