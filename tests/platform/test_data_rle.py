"""Polygons, RLEs and id images against pycocotools, scikit-image and a slow raster."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from skimage.draw import polygon2mask
from skimage.measure import regionprops

from stratum.data import rle

COORDINATE = st.floats(-40, 70, allow_nan=False).map(lambda v: round(v, 2))
RING = st.lists(st.tuples(COORDINATE, COORDINATE), min_size=3, max_size=8)
HEIGHT, WIDTH = 24, 31


def convex_ring(points: list[tuple[float, float]]) -> np.ndarray:
    """The points in the order of their angle around their middle: a ring without crossings."""
    ring = np.array(points, dtype=np.float64)
    offset = ring - ring.mean(axis=0)
    return ring[np.argsort(np.arctan2(offset[:, 1], offset[:, 0]), kind="stable")]


def sampled_area(ring: np.ndarray, low: tuple[float, float], high: tuple[float, float], step: float) -> float:
    """The area of ring and rectangle by counting points of a grid, by the even-odd rule."""
    xs, ys = np.arange(low[0] + step / 2, high[0], step), np.arange(low[1] + step / 2, high[1], step)
    inside = np.zeros((len(ys), len(xs)), dtype=bool)
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if y0 == y1:
            continue
        crossed = (ys >= min(y0, y1)) & (ys < max(y0, y1))
        at = x0 + (ys - y0) * (x1 - x0) / (y1 - y0)
        inside ^= crossed[:, None] & (xs[None] < at[:, None])
    return float(inside.sum()) * step * step


@settings(deadline=None)
@given(RING)
def test_clipped_area_is_that_of_the_part_inside(points: list[tuple[float, float]]) -> None:
    ring = convex_ring(points)
    low, high = (0.0, 0.0), (float(WIDTH), float(HEIGHT))
    clipped = rle.clip_polygon(ring, low, high)
    assert ((clipped >= 0) & (clipped <= high)).all()
    expected = sampled_area(ring, low, high, 0.125)
    assert rle.polygon_area(clipped) == pytest.approx(expected, abs=0.125 * 2 * (WIDTH + HEIGHT))


def test_clipping_a_known_triangle() -> None:
    clipped = rle.clip_polygon(np.array([[-10.0, 0.0], [10.0, 0.0], [10.0, 20.0]]), (0.0, 0.0), (20.0, 20.0))
    assert rle.polygon_area(clipped) == pytest.approx(150.0)
    assert len(rle.clip_polygon(np.array([[-9.0, 0.0], [-1.0, 0.0], [-1.0, 9.0]]), (0.0, 0.0), (20.0, 20.0))) == 0


@settings(deadline=None)
@given(RING)
def test_masks_agree_with_another_rasteriser_but_for_the_outline(points: list[tuple[float, float]]) -> None:
    ring = convex_ring(points)
    encoded, outside = rle.polygon_rle([ring], HEIGHT, WIDTH)
    assert outside == bool((ring < 0).any() or (ring > (WIDTH, HEIGHT)).any())
    found = rle.decode([encoded], HEIGHT, WIDTH)[0]
    reference = polygon2mask((HEIGHT, WIDTH), ring[:, ::-1] - 0.5)
    differing = np.argwhere(found != reference) + 0.5
    if len(differing):
        assert max(distance_to_ring(point[::-1], ring) for point in differing) < 1.5


def distance_to_ring(point: np.ndarray, ring: np.ndarray) -> float:
    best = np.inf
    for start, end in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        along = end - start
        length = float(along @ along)
        t = 0.0 if length == 0 else float(np.clip((point - start) @ along / length, 0, 1))
        best = min(best, float(np.linalg.norm(point - start - t * along)))
    return best


@settings(deadline=None)
@given(st.lists(RING, min_size=1, max_size=3))
def test_masks_equal_pycocotools_where_nothing_is_far_out(rings: list[list[tuple[float, float]]]) -> None:
    height, width = 40, 45  # every coordinate is within one image size
    flat = [[float(v) for point in ring for v in point] for ring in rings]
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flat, height, width)))
    encoded, _ = rle.polygon_rle(rle.read_polygons(flat), height, width)
    np.testing.assert_array_equal(rle.decode([encoded], height, width)[0], expected.astype(bool))


def test_a_polygon_of_astronomic_size_covers_the_image() -> None:
    far = 1e12
    encoded, outside = rle.polygon_rle([np.array([[-far, -far], [far, -far], [far, far], [-far, far]])], HEIGHT, WIDTH)
    assert outside
    assert rle.area(encoded) == HEIGHT * WIDTH


@pytest.mark.parametrize("ring", [[[1.0, 1.0], [8.0, 8.0]], [[5.0, 5.0]], [], [[-9.0, -9.0], [-2.0, -9.0], [-2.0, -3.0]], [[3.0, 3.0]] * 3])
def test_polygons_without_area(ring: list[list[float]]) -> None:
    encoded, _ = rle.polygon_rle([np.array(ring).reshape(-1, 2)], HEIGHT, WIDTH)
    assert rle.area(encoded) == 0
    assert not rle.decode([encoded], HEIGHT, WIDTH).any()


def test_two_points_are_not_taken_for_a_box() -> None:
    triangle = np.array([[2.0, 2.0], [12.0, 2.0], [12.0, 12.0]])
    alone, _ = rle.polygon_rle([triangle], HEIGHT, WIDTH)
    both, _ = rle.polygon_rle([np.array([[0.0, 0.0], [20.0, 20.0]]), triangle], HEIGHT, WIDTH)
    assert both == alone


@pytest.mark.parametrize(
    "segmentation",
    [
        "abc",
        7,
        [["a", "b", "c", "d", "e", "f"]],
        [[1, 2, 3, 4, 5]],
        [[1, 2, 3, 4, 5, float("nan")]],
        [[1, 2, 3, 4, 5, float("inf")]],
        [[[1, 2]]],
    ],
)
def test_unreadable_polygons(segmentation: object) -> None:
    with pytest.raises(rle.LabelError):
        rle.read_polygons(segmentation)


def test_one_flat_list_is_one_polygon() -> None:
    np.testing.assert_array_equal(rle.read_polygons([1, 2, 3, 4, 5, 6])[0], [[1, 2], [3, 4], [5, 6]])


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.integers(1, 40), st.integers(1, 40))
def test_rles_of_all_three_writings(seed: int, density: float, height: int, width: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < density
    packed = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    flat = mask.T.reshape(-1)
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate(([0], changes, [flat.size]))).tolist()
    plain = runs if not flat[0] else [0, *runs]
    for counts in (packed["counts"], packed["counts"].decode(), plain):
        encoded = rle.read_rle({"size": [height, width], "counts": counts}, height, width)
        np.testing.assert_array_equal(rle.decode([encoded], height, width)[0], mask)


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [24, 30], "counts": [720]},
        {"size": [HEIGHT, WIDTH], "counts": [10, 20]},
        {"size": [HEIGHT, WIDTH], "counts": [800, -56]},
        {"size": [HEIGHT, WIDTH], "counts": "o"},
        {"size": [HEIGHT, WIDTH], "counts": "\x01\x02"},
        {"size": [HEIGHT, WIDTH], "counts": "ééé"},
        {"size": [HEIGHT, WIDTH], "counts": ""},
        {"size": [HEIGHT, WIDTH], "counts": [1.5]},
        {"size": [HEIGHT, WIDTH]},
        {"counts": [HEIGHT * WIDTH]},
    ],
)
def test_unreadable_rles(segmentation: dict[str, object]) -> None:
    with pytest.raises(rle.LabelError):
        rle.read_rle(segmentation, HEIGHT, WIDTH)


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_random_bytes_are_never_handed_to_pycocotools(counts: bytes) -> None:
    try:
        encoded = rle.read_rle({"size": [HEIGHT, WIDTH], "counts": counts}, HEIGHT, WIDTH)
    except rle.LabelError:
        return
    assert rle.decode([encoded], HEIGHT, WIDTH).shape == (1, HEIGHT, WIDTH)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 25), st.integers(1, 25), st.sampled_from([2, 5, 60000]))
def test_id_images(seed: int, height: int, width: int, top: int) -> None:
    ids = np.random.default_rng(seed).integers(0, top, (height, width)).astype(np.uint16)
    found = rle.id_rles(ids)
    assert list(found) == [int(i) for i in np.unique(ids) if i]
    for ident, encoded in found.items():
        np.testing.assert_array_equal(rle.decode([encoded], height, width)[0], ids == ident)


def test_boxes_and_areas_agree_with_scikit_image() -> None:
    ids = np.random.default_rng(3).integers(0, 9, (20, 33)).astype(np.uint16)
    found = rle.id_rles(ids)
    for region, box in zip(regionprops(ids), rle.boxes(list(found.values())), strict=True):
        top, left, bottom, right = region.bbox
        assert box.tolist() == [left, top, right, bottom]
        assert rle.area(found[region.label]) == region.area


def test_encode_and_decode_masks() -> None:
    masks = np.random.default_rng(4).random((5, 13, 17)) < 0.4
    np.testing.assert_array_equal(rle.decode(rle.encode(masks), 13, 17), masks)
    assert rle.encode(masks[:0]) == []
    assert rle.decode([], 13, 17).shape == (0, 13, 17)
    assert rle.boxes([]).shape == (0, 4)
