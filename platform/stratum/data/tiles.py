"""Large images cut into tiles that do not overlap, so that a batch holds parts of them at full resolution."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from stratum.data import rle
from stratum.data.classmask import Labels, count, pack, unpack
from stratum.data.records import Record

Place = tuple[int, int, int, int]  # top, left, height, width


def tiles(height: int, width: int, side: int) -> list[Place]:
    """The parts of an image, row by row: each pixel in one, none longer than ``side``, as even as whole pixels allow.

    Sides that are no multiple are shared out, so that no sliver is left at the edge: 565 pixels by 256 give 188, 189 and 188.
    """
    rows, columns = (_cuts(length, side) for length in (height, width))
    return [(top, left, bottom - top, right - left) for top, bottom in rows for left, right in columns]


def _cuts(length: int, side: int) -> list[tuple[int, int]]:
    parts = max(math.ceil(length / side), 1)
    edges = [round(i * length / parts) for i in range(parts + 1)]
    return list(pairwise(edges))


def cut(records: Sequence[Record], side: int) -> list[Record]:
    """Every record as its tiles; images that are small enough stay as they are."""
    return [tile for record in records for tile in _tiles_of(record, side)]


def _tiles_of(record: Record, side: int) -> Iterator[Record]:
    places = tiles(*record.size, side)
    if len(places) == 1:
        yield record
        return
    labels = None if record.mask is None else unpack(record.mask, record.size)
    for place in places:
        top, left, height, width = place
        tile = replace(record, uri=f"{record.uri}#y{top}x{left}", file=record.file or record.uri, size=(height, width), window=(top, left))
        yield _with_instances(tile, record, place) if labels is None else _with_mask(tile, labels, place)


def _with_mask(tile: Record, labels: Labels, place: Place) -> Record:
    top, left, height, width = place
    part = labels[top : top + height, left : left + width]
    return replace(tile, mask=pack(part), pixel_counts=count(part, len(tile.pixel_counts)))


def _with_instances(tile: Record, whole: Record, place: Place) -> Record:
    """The instances of which anything lies in the tile; one by one, since all masks of a large image may not fit into memory."""
    top, left, height, width = place
    boxes = rle.boxes(whole.rles)
    near = (boxes[:, 0] < left + width) & (boxes[:, 2] > left) & (boxes[:, 1] < top + height) & (boxes[:, 3] > top)
    kept = []
    for i in near.nonzero()[0].tolist():
        part = rle.decode([whole.rles[i]], *whole.size)[:, top : top + height, left : left + width]
        if part.any():
            kept.append((whole.labels[i], rle.encode(part)[0], whole.crowd[i]))
    return replace(tile, labels=tuple(k[0] for k in kept), rles=tuple(k[1] for k in kept), crowd=tuple(k[2] for k in kept))
