"""Polygons, RLEs and id images as COCO run-length encodings (pycocotools)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from stratum.data.records import Rle

LARGEST_ID = 65535


class LabelError(ValueError):
    """A segmentation that cannot be read."""


def clip_polygon(points: NDArray[np.float64], low: tuple[float, float], high: tuple[float, float]) -> NDArray[np.float64]:
    """The part of a polygon ``[P, 2]`` inside a rectangle, by Sutherland and Hodgman; ``[0, 2]`` where nothing is left.

    A concave polygon that falls into several parts stays one ring, joined by edges of no area along the border.
    """
    for axis in (0, 1):
        for sign, bound in ((1.0, low[axis]), (-1.0, high[axis])):
            points = _clip_side(points, axis, sign, bound)
    return points


def _clip_side(points: NDArray[np.float64], axis: int, sign: float, bound: float) -> NDArray[np.float64]:
    inside = sign * (points[:, axis] - bound) >= 0
    if inside.all():
        return points
    kept: list[NDArray[np.float64]] = []
    for i in range(len(points)):
        if inside[i] != inside[i - 1]:
            before, after = points[i - 1], points[i]
            crossing = before + (after - before) * ((bound - before[axis]) / (after[axis] - before[axis]))
            crossing[axis] = bound
            kept.append(crossing)
        if inside[i]:
            kept.append(points[i])
    return np.array(kept).reshape(-1, 2)


def polygon_area(points: NDArray[np.float64]) -> float:
    """The area inside a ring ``[P, 2]`` of points, in square pixels."""
    if len(points) < 3:
        return 0.0
    x, y = (points - points[0]).T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2.0


def read_polygons(segmentation: object) -> list[NDArray[np.float64]]:
    """The rings ``[P, 2]`` of a COCO polygon list (one flat list is taken as one ring). Raises :class:`LabelError`."""
    if not isinstance(segmentation, list):
        raise LabelError(f"a segmentation is a list of polygons or an RLE, not {type(segmentation).__name__}")
    flat = bool(segmentation) and not isinstance(segmentation[0], list)
    rings = []
    for ring in [segmentation] if flat else segmentation:
        try:
            numbers = np.array(ring, dtype=np.float64)
        except (TypeError, ValueError):
            raise LabelError("a polygon holds something that is no number") from None
        if numbers.ndim != 1 or len(numbers) % 2 or not np.isfinite(numbers).all():
            raise LabelError("a polygon is no flat list of finite x, y pairs")
        rings.append(numbers.reshape(-1, 2))
    return rings


def polygon_rle(rings: Sequence[NDArray[np.float64]], height: int, width: int) -> tuple[Rle, bool]:
    """The union of polygons on an image of this size, as pycocotools draws it, and whether anything was cut off.

    pycocotools itself cuts at the image's edges, exactly, so the mask equals ``COCO.annToMask``; but its work grows with the length of
    the outline. So what lies further out than one image size is clipped away before.
    """
    low, high = (-float(width), -float(height)), (2.0 * width, 2.0 * height)
    outside = any(((r < 0) | (r > (width, height))).any() for r in rings)
    near = [clip_polygon(ring, low, high) for ring in rings if len(ring) >= 3]
    flat = [ring.reshape(-1).tolist() for ring in near if len(ring) >= 3]
    if not flat:  # what has two points would be read as a box
        return empty_rle(height, width), outside
    merged: Rle = coco_mask.merge(coco_mask.frPyObjects(flat, height, width))
    return merged, outside


def empty_rle(height: int, width: int) -> Rle:
    """No pixel at all."""
    rle: Rle = coco_mask.frPyObjects({"size": [height, width], "counts": [height * width]}, height, width)
    return rle


def read_rle(segmentation: dict[str, object], height: int, width: int) -> Rle:
    """A COCO RLE, compressed or not, checked against the image's size. Raises :class:`LabelError`."""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise LabelError(f"an RLE of size {size} on an image of [{height}, {width}]")
    runs = _runs(counts)
    if any(run < 0 for run in runs) or sum(runs) != height * width:
        raise LabelError(f"an RLE whose runs do not add up to {height}x{width} pixels")
    rle: Rle = coco_mask.frPyObjects({"size": size, "counts": runs}, height, width)
    return rle


def _runs(counts: object) -> list[int]:
    if isinstance(counts, list) and all(isinstance(c, int) for c in counts):
        return counts
    if isinstance(counts, str):
        counts = counts.encode("latin-1", errors="replace")
    if not isinstance(counts, bytes):
        raise LabelError("an RLE without counts")
    return _decompress(counts)


def _decompress(text: bytes) -> list[int]:
    """The runs of a compressed RLE: groups of five bits, low first, each run after the third as a difference (COCO's maskApi).

    pycocotools reads past the end of a cut string, so it is never handed one unchecked.
    """
    runs: list[int] = []
    value = shift = 0
    for char in text:
        bits = char - 48
        if not 0 <= bits < 64:
            raise LabelError("an RLE with characters that no RLE has")
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise LabelError("an RLE that ends in the middle of a number")
    return runs


def id_rles(ids: NDArray[np.generic]) -> dict[int, Rle]:
    """Each id but 0 of an image ``[H, W]`` as its RLE, in ascending order; one pass for all of them."""
    height, width = ids.shape
    flat = ids.T.reshape(-1)  # column by column, as COCO counts
    starts = np.flatnonzero(np.concatenate(([True], flat[1:] != flat[:-1])))
    lengths = np.diff(np.append(starts, flat.size))
    values = flat[starts]
    order = np.argsort(values, kind="stable")
    found: dict[int, Rle] = {}
    for group in np.split(order, np.flatnonzero(np.diff(values[order])) + 1):
        ident = int(values[group[0]])
        if ident:
            found[ident] = _from_spans(starts[group], lengths[group], height, width)
    return found


def _from_spans(starts: NDArray[np.intp], lengths: NDArray[np.intp], height: int, width: int) -> Rle:
    ends = starts + lengths
    gaps = starts - np.concatenate(([0], ends[:-1]))
    runs = np.stack([gaps, lengths], axis=1).reshape(-1).tolist()
    rle: Rle = coco_mask.frPyObjects({"size": [height, width], "counts": [*runs, height * width - int(ends[-1])]}, height, width)
    return rle


def painted(masks: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """Masks ``bool [N, H, W]`` as one image of ids ``[H, W]``: 0 where there is none, ``i + 1`` for mask ``i``, the first ones on top."""
    ids = np.zeros(masks.shape[1:], dtype=np.uint16)
    for index in reversed(range(min(len(masks), LARGEST_ID))):
        np.copyto(ids, index + 1, where=masks[index])
    return ids


def encode(masks: NDArray[np.bool_]) -> list[Rle]:
    """Masks ``bool [N, H, W]`` as RLEs, with memory for one mask."""
    codes: list[Rle] = []
    turned = np.zeros((*masks.shape[1:], 1), dtype=np.uint8, order="F")  # column by column, as pycocotools wants it
    for mask in masks:
        part = _filled(mask)
        turned[part] = mask[part][..., None]
        codes += coco_mask.encode(turned)
        turned[part] = 0
    return codes


def _filled(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The rows and columns of ``[H, W]`` outside of which there are no pixels."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return slice(0), slice(0)
    inside = slice(rows[0], rows[-1] + 1)
    columns = np.flatnonzero(mask[inside].any(axis=0))
    return inside, slice(columns[0], columns[-1] + 1)


def text(rle: Rle) -> str:
    """The counts as JSON carries them."""
    counts = rle["counts"]
    return counts.decode("ascii") if isinstance(counts, bytes) else str(counts)


def decode(rles: Sequence[Rle], height: int, width: int) -> NDArray[np.bool_]:
    """RLEs as masks ``bool [N, H, W]``."""
    if not rles:
        return np.zeros((0, height, width), dtype=np.bool_)
    stacked: NDArray[np.uint8] = coco_mask.decode(list(rles))  # [H, W, N], column-major: a transpose away from contiguous
    return np.ascontiguousarray(stacked.transpose(2, 0, 1)).view(np.bool_)


def boxes(rles: Sequence[Rle]) -> NDArray[np.float32]:
    """The tight boxes ``float32 [N, 4]`` (x0, y0, x1, y1), ends exclusive."""
    if not rles:
        return np.zeros((0, 4), dtype=np.float32)
    found = np.asarray(coco_mask.toBbox(list(rles)), dtype=np.float32)
    found[:, 2:] += found[:, :2]
    return found


def area(rle: Rle) -> int:
    """The number of pixels."""
    return int(coco_mask.area(rle))
