"""The slag band's height on drawn tubes whose measures are known."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stratum.inference.bands import BandRule, BandStudy
from stratum.slag import class_areas, class_map, measure_slag
from stratum_models.errors import UserError
from stratum_models.interface import IGNORE_INDEX, SemanticPrediction, SemanticTarget

CLASSES = ("background", "tube", "slag")
TUBE, SLAG = 1, 2
Classes = npt.NDArray[np.int64]


def draw(degrees: float, width: float, above: float, height: float, below: float, size: int = 240, shift: float = 0.0) -> Classes:
    """A tube that turns by an angle round the image's middle: tube, slag, tube along its axis."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2 + shift
    along = np.array([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])
    u, v = x * along[0] + y * along[1], -x * along[1] + y * along[0]
    start = -(above + height + below) / 2
    inside = (v >= -width / 2) & (v < width / 2) & (u >= start) & (u < start + above + height + below)
    band = inside & (u >= start + above) & (u < start + above + height)
    return np.where(band, SLAG, np.where(inside, TUBE, 0)).astype(np.int64)


def difference(a: float, b: float) -> float:
    """Between two directions, in degrees."""
    return abs((a - b + 90) % 180 - 90)


tubes = st.tuples(st.floats(0, 180), st.floats(30, 80), st.floats(30, 90), st.floats(6, 50), st.sampled_from([0.0, 35.0]), st.floats(0, 1))


@settings(max_examples=60, deadline=None)
@given(tubes)
def test_height_width_and_direction_of_drawn_tubes(tube: tuple[float, ...]) -> None:
    degrees, width, above, height, below, shift = tube
    image = draw(degrees, width, above, height, below, shift=shift)
    variances = np.linalg.eigvalsh(np.cov(np.stack(np.nonzero(image == TUBE))))
    assume(variances[1] > 1.3 * variances[0])  # as long as it is wide a tube has no axis
    found = measure_slag(image, tube=TUBE, slag=SLAG)
    assert found.height_px == pytest.approx(height, abs=1.0)
    assert found.tube_width_px == pytest.approx(width, abs=1.0)
    assert difference(found.axis_degrees, degrees) < 2
    assert found.coverage == 1
    assert 0.4 <= found.uncertainty_px < 1.5
    given_axis = measure_slag(image, tube=TUBE, slag=SLAG, axis_degrees=degrees)
    assert given_axis.height_px == pytest.approx(height, abs=1.0)  # an upright band has whole rows


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60), st.integers(20, 60))
def test_upright_bands_are_counted_to_the_row(height: int, width: int) -> None:
    image = np.zeros((200, 100), np.int64)
    image[:110, 20 : 20 + width] = TUBE  # cut by the image's border above
    image[110 : 110 + height, 20 : 20 + width] = SLAG
    assume(image[image == SLAG].size >= 25)
    found = measure_slag(image, tube=TUBE, slag=SLAG)
    assert found.height_px == pytest.approx(height, abs=1e-9)
    assert found.tube_width_px == pytest.approx(width, abs=1e-9)
    assert found.axis_degrees == pytest.approx(90)
    assert found.uncertainty_px == pytest.approx(math.sqrt(1 / 6))  # what the pixels leave open


def test_tube_that_is_wider_than_long() -> None:
    found = measure_slag(draw(70, width=150, above=50, height=22, below=0), tube=TUBE, slag=SLAG)
    assert found.height_px == pytest.approx(22, abs=1)
    assert difference(found.axis_degrees, 70) < 1


@pytest.mark.parametrize("slant", [-0.5, 0.3])
def test_slanted_band_does_not_turn_the_axis(slant: float) -> None:
    y, x = np.mgrid[:200, :200]
    inside = (x >= 60) & (x < 120)
    edge = 120 + slant * (x - 90)  # the band goes down to one side
    image = np.where(inside & (y < edge), TUBE, np.where(inside & (y < edge + 25), SLAG, 0)).astype(np.int64)
    found = measure_slag(image, tube=TUBE, slag=SLAG)
    assert difference(found.axis_degrees, 90) < 0.5
    assert found.height_px == pytest.approx(25, abs=0.5)


def test_tube_without_axis_wants_one() -> None:
    image = draw(90, width=60, above=60, height=20, below=0)
    with pytest.raises(UserError, match="give axis_degrees"):
        measure_slag(image, tube=TUBE, slag=SLAG)
    assert measure_slag(image, tube=TUBE, slag=SLAG, axis_degrees=90).height_px == pytest.approx(20, abs=0.5)


def test_scale_and_diameter_give_millimetres() -> None:
    image = draw(90, width=50, above=100, height=20, below=0)
    plain = measure_slag(image, tube=TUBE, slag=SLAG)
    assert plain.height_mm is None
    assert plain.uncertainty_mm is None
    scaled = measure_slag(image, tube=TUBE, slag=SLAG, mm_per_px=3.0)
    assert scaled.height_mm == pytest.approx(60)
    assert scaled.uncertainty_mm == pytest.approx(3 * plain.uncertainty_px)
    known = measure_slag(image, tube=TUBE, slag=SLAG, tube_diameter_mm=200.0)
    assert known.mm_per_px == pytest.approx(4)
    assert known.height_mm == pytest.approx(80)
    edge = math.sqrt(1 / 6)
    assert known.uncertainty_mm == pytest.approx(80 * math.hypot(edge / 20, edge / 50))


def test_uncertainty_is_the_spread_of_the_columns() -> None:
    generator = np.random.default_rng(0)
    image = np.zeros((200, 340), np.int64)
    image[:100, 20:320] = TUBE
    for block in range(60):  # five columns alike, so that what lies between two columns hardly counts
        image[100 : 100 + round(generator.normal(50, 4)), 20 + 5 * block : 25 + 5 * block] = SLAG
    found = measure_slag(image, tube=TUBE, slag=SLAG, axis_degrees=90)
    assert found.height_px == pytest.approx(50, abs=1.5)
    assert found.uncertainty_px == pytest.approx(4, rel=0.3)


def test_specks_and_holes_change_nothing() -> None:
    image = draw(60, width=50, above=90, height=24, below=0)
    clean = measure_slag(image, tube=TUBE, slag=SLAG)
    rows, columns = np.nonzero(image == SLAG)
    image[int(rows.mean()) - 2 : int(rows.mean()) + 3, int(columns.mean()) - 2 : int(columns.mean()) + 3] = TUBE  # a hole
    image[3:9, 3:9] = SLAG
    image[-9:-3, 3:9] = TUBE
    found = measure_slag(image, tube=TUBE, slag=SLAG)
    assert found.height_px == pytest.approx(clean.height_px, abs=0.3)
    assert found.axis_degrees == pytest.approx(clean.axis_degrees, abs=0.5)


def test_band_on_part_of_the_tube() -> None:
    image = np.zeros((160, 100), np.int64)
    image[:120, 10:90] = TUBE
    image[120:140, 10:50] = SLAG
    found = measure_slag(image, tube=TUBE, slag=SLAG)
    assert found.height_px == pytest.approx(20)
    assert found.coverage == pytest.approx(0.5, abs=0.02)
    assert found.columns == 32  # of the 64 without the margins


def test_probabilities_place_edges_between_pixels() -> None:
    height = 20.4
    slag = np.zeros((120, 60))
    slag[70:90] = 1
    slag[90] = height - 20  # the band ends within this row
    tube = np.zeros_like(slag)
    tube[:70] = 1
    probabilities = np.stack([1 - slag - tube, tube, slag])
    probabilities[:, :, :10] = probabilities[:, :, 50:] = np.array([1, 0, 0])[:, None, None]
    found = measure_slag(probabilities, tube=TUBE, slag=SLAG)
    assert found.height_px == pytest.approx(height, abs=0.25)


def test_every_form_of_classes_gives_the_same() -> None:
    image = draw(33, width=40, above=80, height=15, below=20)
    hot = np.moveaxis(np.eye(3, dtype=np.float32)[image], -1, 0)
    forms = [image, hot, SemanticTarget(mask=torch.from_numpy(image)), SemanticPrediction(probabilities=torch.from_numpy(hot))]
    assert len({str(measure_slag(form, tube=TUBE, slag=SLAG).record()) for form in forms}) == 1
    assert all((class_map(form) == image).all() for form in forms)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (np.zeros((40, 40), np.int64), {}, "shows no tube: class 1 has 0 pixels"),
        (np.ones((40, 20), np.int64), {}, "shows no slag: class 2 has 0 pixels"),
        (np.zeros((40, 40)), {}, "holds no classes"),
        (np.zeros((2, 3, 40, 40)), {}, "holds no classes"),
        (draw(90, 40, 80, 20, 0), {"mm_per_px": 0.0}, "scale is 0.0"),
        (draw(90, 40, 80, 20, 0), {"tube_diameter_mm": -1.0}, "diameter is -1.0"),
        (draw(90, 40, 80, 20, 0), {"tube_diameter_mm": 9.0, "mm_per_px": 1.0}, "give one of them"),
        (draw(90, 40, 80, 20, 0), {"axis_degrees": math.nan}, "direction is nan"),
    ],
)
def test_what_cannot_be_measured_is_named(image: Classes, options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        measure_slag(image, tube=TUBE, slag=SLAG, **options)


def test_slag_beside_the_tube_is_no_band() -> None:
    image = np.zeros((100, 100), np.int64)
    image[10:90, 10:30] = TUBE
    image[20:40, 60:90] = SLAG
    with pytest.raises(UserError, match="in line with the tube"):
        measure_slag(image, tube=TUBE, slag=SLAG, axis_degrees=90)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.sampled_from([0, 1, 2, IGNORE_INDEX]), min_size=4, max_size=4), min_size=1, max_size=5), st.floats(0.1, 5))
def test_areas_are_counts(rows: list[list[int]], scale: float) -> None:
    found = class_areas(np.array(rows), CLASSES, mm_per_px=scale)
    pixels = [value for row in rows for value in row]
    known = sum(value != IGNORE_INDEX for value in pixels)
    assert [area.label for area in found] == list(CLASSES)
    for index, area in enumerate(found):
        assert area.area_px == pixels.count(index)
        assert area.area_mm2 == pytest.approx(pixels.count(index) * scale**2)
        assert area.fraction == pytest.approx(pixels.count(index) / known if known else 0)


def test_areas_want_a_name_for_each_class() -> None:
    with pytest.raises(UserError, match="class 2 appears"):
        class_areas(np.array([[0, 2]]), ("a", "b"))


def test_heights_are_compared_with_those_of_the_labels() -> None:
    def tube(height: float) -> Classes:
        return draw(90, 50, 60, height, 60 - height)

    bare = np.where(tube(20) == SLAG, TUBE, tube(20))
    bands = BandStudy(CLASSES, BandRule(mm_per_px=0.5))
    for found, labelled in ((tube(24), tube(20)), (tube(30), tube(36)), (bare, tube(20)), (tube(20), bare)):
        bands.add(found, labelled)
    metrics = bands.metrics()
    assert metrics["val/slag_height_error_px"] == pytest.approx(5.0, abs=0.5)
    assert metrics["val/slag_missed"] == 1
    assert np.array(bands.record()["slag"]["heights_px"]) == pytest.approx(np.array([[24, 20], [30, 36]]), abs=1.0)
    assert metrics["val/slag_height_error_mm"] == pytest.approx(metrics["val/slag_height_error_px"] / 2)
    name = "height of the slag band, median of 2 images"
    assert bands.rows() == [(name, "27.0 px", "28.0 px"), (name, "13.5 mm", "14.0 mm")]
    assert BandStudy(CLASSES, BandRule()).rows() == []


def test_the_classes_may_have_other_names() -> None:
    found, names = draw(90, 50, 60, 20, 40), [{"tube": "pipe", "slag": "crust"}.get(name, name) for name in CLASSES]
    rule = BandRule(tube_class="pipe", slag_class="crust", tube_diameter_mm=30)
    assert rule.band(found, names) == BandRule(tube_diameter_mm=30).band(found, CLASSES)
    assert rule.band(found, names)[0] is not None
    assert BandRule().band(found, names) == (None, "")
    assert rule.unfit(CLASSES) == ["tube_diameter_mm", "tube_class", "slag_class"]
